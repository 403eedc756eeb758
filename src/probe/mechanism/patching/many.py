"""Means and ratios of means of many quantities over the same cases at once. Knows arrays and families; knows no patch.

The numbers are those of :func:`probe.mechanism.relation.verdicts.change` and ``fieller``; a grid has thousands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import stdtrit

from probe.behaviour.intervals import NOTHING

ONE_FAMILY = "one case family: no interval"
NO_VARIANCE = "no case differs: what so many families rule out"
HOLDS_ZERO = "undefined: the interval of the denominator holds 0"


@dataclass(frozen=True, eq=False)
class Ratios:
    """Of each quantity: its mean with a 95 % interval, the mean of the total over the same cases, and their ratio with
    its Fieller set; NaN where undefined, and ``note`` says why. ``n`` counts cases, ``families`` clusters."""

    value: Float[np.ndarray, " quantity"]
    low: Float[np.ndarray, " quantity"]
    high: Float[np.ndarray, " quantity"]
    total: Float[np.ndarray, " quantity"]
    ratio: Float[np.ndarray, " quantity"]
    ratio_low: Float[np.ndarray, " quantity"]
    ratio_high: Float[np.ndarray, " quantity"]
    n: Int[np.ndarray, " quantity"]
    families: Int[np.ndarray, " quantity"]
    note: np.ndarray


def ratios_of_means(
    shift: Float[np.ndarray, "quantity case"],
    total: Float[np.ndarray, " case"],
    family: Int[np.ndarray, " case"],
    top: float,
) -> Ratios:
    """The mean of each row of ``shift`` and its ratio to the mean of ``total``, over the row's cases that are not NaN.

    ``top`` is how far two values can lie apart: the interval of a row in which no case differs is made of it.
    """
    rows = len(shift)
    number: dict[str, np.ndarray] = {
        name: np.full(rows, np.nan) for name in ("value", "low", "high", "total", "ratio", "ratio_low", "ratio_high")
    }
    counts = {name: np.zeros(rows, dtype=int) for name in ("n", "families")}
    note = np.full(rows, NOTHING, dtype=object)
    there = ~np.isnan(shift) & ~np.isnan(total)
    patterns, member = np.unique(there, axis=0, return_inverse=True) if rows else (there, np.zeros(0, dtype=int))
    for k, kept in enumerate(patterns):
        own = np.flatnonzero(member.reshape(-1) == k)
        if kept.any():
            _fill(number, counts, note, own, shift[np.ix_(own, kept)], total[kept], family[kept], top)
    return Ratios(**number, **counts, note=note)


def _fill(
    number: dict[str, np.ndarray],
    counts: dict[str, np.ndarray],
    note: np.ndarray,
    own: Int[np.ndarray, " row"],
    shift: Float[np.ndarray, "row case"],
    total: Float[np.ndarray, " case"],
    family: Int[np.ndarray, " case"],
    top: float,
) -> None:
    """The numbers of rows that have the same cases."""
    n, (names, cluster) = len(total), np.unique(family, return_inverse=True)
    g = len(names)
    value, b = shift.mean(1), float(total.mean())
    counts["n"][own], counts["families"][own] = n, g
    number["value"][own], number["total"][own] = value, b
    note[own] = ONE_FAMILY if g < 2 else ""
    if g < 2:
        return
    sums = _by_family(shift - value[:, None], cluster, g)
    of_total = _by_family((total - b)[None], cluster, g)[0]
    factor = g / (g - 1) / n**2
    cov_aa, cov_ab, cov_bb = factor * (sums**2).sum(1), factor * sums @ of_total, factor * float(of_total @ of_total)
    t = float(stdtrit(g - 1, 0.975))
    still = np.sqrt(cov_aa) <= 1e-12 * np.maximum(top, np.abs(value))
    half = np.where(still, top * (1 - 0.05 ** (1 / g)), t * np.sqrt(cov_aa))
    number["low"][own], number["high"][own] = value - half, value + half
    note[own[still]] = NO_VARIANCE
    square = b**2 - t**2 * cov_bb
    if square <= 0:
        note[own] = [f"{words}; {HOLDS_ZERO}" if words else HOLDS_ZERO for words in note[own]]
        return
    middle, rest = value * b - t**2 * cov_ab, value**2 - t**2 * cov_aa
    root = np.sqrt(np.maximum(middle**2 - square * rest, 0.0))
    number["ratio"][own] = value / b
    number["ratio_low"][own], number["ratio_high"][own] = (middle - root) / square, (middle + root) / square


def _by_family(
    values: Float[np.ndarray, "row case"], cluster: Int[np.ndarray, " case"], g: int
) -> Float[np.ndarray, "row family"]:
    """Sums over the cases of each family."""
    member: Bool[np.ndarray, "case family"] = cluster[:, None] == np.arange(g)
    return np.asarray(values @ member)


def by_case(values: Float[np.ndarray, "*rows unit"], case: Int[np.ndarray, " unit"]) -> Float[np.ndarray, "*rows case"]:
    """The mean over the units of each case (those that are not NaN), in the order of the cases' numbers."""
    n = int(case.max(initial=-1)) + 1
    member, known = case[:, None] == np.arange(n), ~np.isnan(values)
    count = known @ member.astype(float)
    total = np.where(known, values, 0.0) @ member
    found: Float[np.ndarray, "*rows case"] = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return found
