"""Does a direction come out the same from other cases? Knows shifts and case families; knows no persona or layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from probe.mechanism.geometry.arms import ROUNDING
from probe.mechanism.geometry.products import family_sums

DRAWS = 200
"""Random halves of the families, and bootstrap samples of them."""

FLIPS = 100
"""Random sign flips behind the floor, each with its own few halves (or samples)."""

HALVES_OF_A_FLIP = 10
"""Halves (samples) whose mean is taken under each flip."""

FEWEST = 4
"""Case families below which there are no two halves worth the name."""


@dataclass(frozen=True, eq=False)
class Stability:
    """Mean cosine of two estimates of one direction, where 95 % of the draws lie, and the floor of chance.

    ``floor``: 95 % quantile of ``value`` without a common shift: what a family's shift departs from the mean by, with
    random signs. The mean goes first, since cosines do not tell sizes: signs of a shift that hardly varies would leave
    two halves on one line, and the floor of the surest direction near 1. NaN where nothing varies over families.
    ``low`` and ``high`` describe the draws; they are no confidence interval.
    """

    value: float
    low: float
    high: float
    floor: float


NOTHING = Stability(np.nan, np.nan, np.nan, np.nan)


def gram_of_families(shift: Float[np.ndarray, "case d"], family: np.ndarray) -> Float[np.ndarray, "family family"]:
    """Inner products of the sums of shifts of every two families; all that the draws need."""
    sums = family_sums(shift, np.unique(family.astype(str), return_inverse=True)[1])
    return np.asarray(sums @ sums.T)


def split_half(
    gram: Float[np.ndarray, "family family"],
    rng: np.random.Generator,
    draws: int = DRAWS,
    sizes: Int[np.ndarray, " family"] | None = None,
) -> Stability:
    """Cosine of the mean shifts of two random halves of the case families; ``sizes``: their cases (by default alike).

    Undefined below four families, or where a half has no shift at all.
    """
    if len(gram) < FEWEST:
        return NOTHING
    halves = _halves(rng, draws, len(gram))
    signs = _flips(rng, len(gram))
    null = _halves(rng, len(signs), len(gram))
    apart = _departures(gram, sizes)
    return _of(_cosine(gram, halves, 1 - halves), _cosine(apart, signs * null, signs * (1 - null)))


def bootstrap(
    gram: Float[np.ndarray, "family family"],
    rng: np.random.Generator,
    draws: int = DRAWS,
    sizes: Int[np.ndarray, " family"] | None = None,
) -> Stability:
    """Cosine of the mean shift of families drawn with replacement with that of all families.

    Both share most cases, so that even without a common shift the cosine is about .7: its floor says so.
    Undefined below four families, or where there is no shift.
    """
    n = len(gram)
    if n < FEWEST:
        return NOTHING
    signs = _flips(rng, n)
    drawn, null = (rng.multinomial(n, np.full(n, 1 / n), size).astype(float) for size in (draws, len(signs)))
    apart = _departures(gram, sizes)
    return _of(_cosine(gram, drawn, np.ones(drawn.shape)), _cosine(apart, signs * null, signs))


def _of(cosines: np.ndarray, null: np.ndarray) -> Stability:
    if np.isnan(cosines).any():
        return NOTHING
    low, high = np.quantile(cosines, (0.025, 0.975))
    floor = float(np.quantile(null.reshape(FLIPS, HALVES_OF_A_FLIP).mean(1), 0.95))  # NaN where a draw is
    return Stability(float(cosines.mean()), float(low), float(high), floor)


def _departures(
    gram: Float[np.ndarray, "family family"], sizes: Int[np.ndarray, " family"] | None
) -> Float[np.ndarray, "family family"]:
    """Inner products of what families depart from the mean shift over cases by; nil where only rounding is left."""
    n = np.ones(len(gram)) if sizes is None else sizes.astype(np.float64)
    less_mean = np.eye(len(gram)) - np.outer(n, np.ones(len(gram))) / n.sum()
    left = less_mean @ gram @ less_mean.T
    return np.asarray(left if np.trace(left) > ROUNDING**2 * np.trace(gram) else np.zeros_like(left))


def _halves(rng: np.random.Generator, draws: int, n: int) -> Float[np.ndarray, "draw family"]:
    """Indicators of random halves; of an odd number one half has one family more."""
    return np.asarray(rng.permuted(np.tile(np.arange(n) < n // 2, (draws, 1)), axis=1), dtype=float)


def _flips(rng: np.random.Generator, n: int) -> Float[np.ndarray, "draw family"]:
    return np.repeat(rng.choice([-1.0, 1.0], (FLIPS, n)), HALVES_OF_A_FLIP, axis=0)


def _cosine(gram: np.ndarray, one: np.ndarray, other: np.ndarray) -> Float[np.ndarray, " draw"]:
    """Cosines of weighted sums of the families' shifts; NaN where one is nil."""
    first, second = one @ gram, other @ gram
    squares = (first * one).sum(1) * (second * other).sum(1)
    return np.asarray((first * other).sum(1) / np.sqrt(np.where(squares > 0, squares, np.nan)))
