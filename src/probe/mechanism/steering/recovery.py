"""How much of what a prompt does a steered run does: recovered fraction, pattern over cases, verdict. Knows arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from probe.mechanism.relation.verdicts import Change, fieller, status
from probe.values import Estimate

FEWEST = 3
"""Case families that a jackknife needs at least."""

SMALLEST = 1e-6
"""Mean squared log-ratio shift below which a prompt moves none, so that there is no pattern to fit."""

Verdict: TypeAlias = Literal[
    "as prompted", "partly", "not moved", "too far", "opposite", "nothing to recover", "broken", "cannot tell"
]


def recovered_fraction(
    steered: Float[np.ndarray, " case"],
    none: Float[np.ndarray, " case"],
    prompted: Float[np.ndarray, " case"],
    family: np.ndarray,
) -> Estimate:
    """R = mean(steered - none) / mean(prompted - none), with its Fieller set (95 %, clustered by family).

    For means alone (accuracy, a probability, expected urgency). Undefined where the interval of prompted - none holds
    0: then nothing was there to be recovered.
    """
    return fieller(steered - none, prompted - none, family)


@dataclass(frozen=True)
class Pattern:
    """How the shifts of a steered run lie against those of the prompted one, case by case.

    ``slope`` b = sum <Ds, Dp> / sum |Dp|^2: how far, along the prompt's own shifts. ``fit`` F = 1 - sum |Ds - Dp|^2 /
    sum |Dp|^2: 1 where they are the same in every case, 0 where nothing moved, below 0 where steering leads away.
    ``slope_centred`` and ``fit_centred``: the same after each arm's mean shift was removed: does it move the right
    cases?
    """

    slope: Estimate
    fit: Estimate
    slope_centred: Estimate
    fit_centred: Estimate


def pattern(
    steered: Float[np.ndarray, "case ratio"], prompted: Float[np.ndarray, "case ratio"], family: np.ndarray
) -> Pattern:
    """Slope and fit of the shifts Ds on Dp (label log-ratios against the unsteered, unprompted run, in nats).

    Intervals are jackknifed over case families (t, G - 1 degrees of freedom). Undefined where the prompt shifts no
    log-ratio, or all by the same amount (the centred ones).
    """
    _, member = np.unique(family.astype(str), return_inverse=True)
    sums = _Sums.of(steered, prompted, member)
    plain, centred = sums.ratios(centred=False), sums.ratios(centred=True)
    n = len(steered)
    why = "undefined: the prompt shifts no log-ratio"
    same = "undefined: the prompt shifts the log-ratios of every case alike"
    return Pattern(_told(*plain[0], n, why), _told(*plain[1], n, why), *(_told(*one, n, same) for one in centred))


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over the cases of each family: of products, and of the shifts themselves."""

    n: Float[np.ndarray, " family"]
    cross: Float[np.ndarray, " family"]
    square: Float[np.ndarray, " family"]
    error: Float[np.ndarray, " family"]
    steered: Float[np.ndarray, "family ratio"]
    prompted: Float[np.ndarray, "family ratio"]

    @staticmethod
    def of(
        steered: Float[np.ndarray, "case ratio"], prompted: Float[np.ndarray, "case ratio"], member: np.ndarray
    ) -> _Sums:
        def summed(values: np.ndarray) -> np.ndarray:
            found = np.zeros((int(member.max(initial=-1)) + 1, *values.shape[1:]))
            np.add.at(found, member, values)
            return found

        away = steered - prompted
        return _Sums(
            summed(np.ones(len(member))),
            summed((steered * prompted).sum(1)),
            summed((prompted**2).sum(1)),
            summed((away**2).sum(1)),
            summed(steered),
            summed(prompted),
        )

    def ratios(self, *, centred: bool) -> list[tuple[float, np.ndarray]]:
        """Slope and fit, each of all cases and without every family."""
        whole = self._of_sums([part.sum(0, keepdims=True) for part in vars(self).values()], centred)
        without = self._of_sums([part.sum(0, keepdims=True) - part for part in vars(self).values()], centred)
        return [(float(one[0]), many) for one, many in zip(whole, without, strict=True)]

    @staticmethod
    def _of_sums(parts: list[np.ndarray], centred: bool) -> tuple[np.ndarray, np.ndarray]:
        n, cross, square, error, steered, prompted = parts
        if centred:
            n = np.maximum(n, 1)
            cross = cross - (steered * prompted).sum(1) / n
            square = square - (prompted**2).sum(1) / n
            error = error - ((steered - prompted) ** 2).sum(1) / n
        known = np.where(square > SMALLEST * np.maximum(n, 1), square, np.nan)
        return cross / known, 1 - error / known


def _told(value: float, without: Float[np.ndarray, " family"], n: int, why: str) -> Estimate:
    if np.isnan(value):
        return Estimate(None, n=n, note=why)
    families = len(without)
    if families < FEWEST or np.isnan(without).any():
        return Estimate(value, n=n, note=f"no interval: {families} case families, or undefined without one of them")
    error = float(np.sqrt((families - 1) / families * ((without - without.mean()) ** 2).sum()))
    half = float(stdtrit(families - 1, 0.975)) * error
    return Estimate(value, value - half, value + half, n, method="jackknife over case families")


def verdict(prompted: Change, steered: Change, apart: Change, margin: float, *, broken: bool = False) -> Verdict:
    """What a steered run comes to, by equivalence at a margin: over prompted - none, steered - none and steered -
    prompted of one mean.

    *as prompted*: it stands where the prompted run does; *partly*, *too far*: moved the prompt's way, and it stands
    short of the prompted run or beyond it; *not moved*; *opposite*; *nothing to recover*: the prompt itself is still.
    A model that broke has no other verdict.
    """
    if broken:
        return "broken"
    there, moved, left = (status(one, margin) for one in (prompted, steered, apart))
    if there != "moved":
        return "nothing to recover" if there == "still" else "cannot tell"
    if left == "still":
        return "as prompted"
    if moved == "still":
        return "not moved"
    if moved == "cannot tell" or left == "cannot tell":
        return "cannot tell"
    if steered.value * prompted.value < 0:
        return "opposite"
    return "too far" if apart.value * prompted.value > 0 else "partly"


def rank_p(value: float, controls: Float[np.ndarray, " control"]) -> float:
    """p = (1 + controls at least as large) / (1 + controls): no smaller than 1 / (1 + K). NaN without a control."""
    known = controls[~np.isnan(controls)]
    if not len(known) or np.isnan(value):
        return float("nan")
    return float((1 + (known >= value).sum()) / (1 + len(known)))
