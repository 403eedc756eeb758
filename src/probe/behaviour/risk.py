"""Which way do errors go? Knows stated or latent labels against the reference; knows no persona.

Type I is over-triage, type II under-triage. Neither is better as such. What counts as an error is a *cut*, a
function, because the paper leaves it open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

from probe.behaviour.intervals import NOTHING, Z, proportion, wilson
from probe.behaviour.outcomes import Outcomes
from probe.values import Estimate

Labels: TypeAlias = Int[np.ndarray, " row"]


@dataclass(frozen=True, eq=False)
class Errors:
    """Error indicators per answered row: 1 or 0 where that error was possible, NaN where it was not."""

    over: Float[np.ndarray, " row"]
    under: Float[np.ndarray, " row"]

    @property
    def counts(self) -> dict[str, float]:
        """Both error counts, and how many rows were at risk of each."""
        return {
            "type_1": float(np.nansum(self.over)),
            "type_2": float(np.nansum(self.under)),
            "at_risk_1": float((~np.isnan(self.over)).sum()),
            "at_risk_2": float((~np.isnan(self.under)).sum()),
        }


Cut: TypeAlias = Callable[[Labels, Labels, int], Errors]
"""(given, reference, index of the high-risk option) -> errors; ``given`` is -1 where there is no label."""


def high_vs_rest(given: Labels, reference: Labels, high: int) -> Errors:
    """I: the high-risk label where the reference is another; II: another label where the reference is high-risk."""
    return Errors(
        over=_among((given >= 0) & (reference != high), given == high),
        under=_among((given >= 0) & (reference == high), given != high),
    )


def strict(given: Labels, reference: Labels, high: int) -> Errors:
    """I: the high-risk label for a lowest-risk case; II: the lowest label for a high-risk case (A <-> C)."""
    return Errors(
        over=_among((given >= 0) & (reference == 0), given == high),
        under=_among((given >= 0) & (reference == high), given == 0),
    )


def ordinal(given: Labels, reference: Labels, high: int) -> Errors:
    """I: any label above the reference; II: any label below it, in order of rising urgency."""
    return Errors(
        over=_among((given >= 0) & (reference < high), given > reference),
        under=_among((given >= 0) & (reference > 0), given < reference),
    )


def sensitivity(outcomes: Outcomes, labels: Labels, cut: Cut) -> Estimate:
    """Risk sensitivity E_I / E_II among errors, undefined without a type II error; both counts always stand beside it.

    Above 1 over-triage prevails. The interval is Wilson's for the share of type I among errors, as odds.
    """
    n = int((labels >= 0).sum())
    if n == 0:
        return Estimate(None, note=NOTHING)
    counts = cut(labels, outcomes.reference, outcomes.high).counts
    one, two = counts["type_1"], counts["type_2"]
    if two == 0:
        what = "no error at all" if one == 0 else "no type II error"
        return Estimate(None, n=n, counts=counts, note=f"undefined: {what}")
    low, high = (p / (1 - p) for p in wilson(one, one + two))
    return Estimate(one / two, low, high, n, counts, "odds of Wilson's interval for the share of type I among errors")


def log_ratio(outcomes: Outcomes, labels: Labels, cut: Cut) -> Estimate:
    """log((E_I + .5) / (E_II + .5)): always defined, positive where over-triage prevails; normal interval."""
    n = int((labels >= 0).sum())
    if n == 0:
        return Estimate(None, note=NOTHING)
    counts = cut(labels, outcomes.reference, outcomes.high).counts
    one, two = counts["type_1"] + 0.5, counts["type_2"] + 0.5
    value, half = float(np.log(one / two)), Z * float(np.sqrt(1 / one + 1 / two))
    return Estimate(value, value - half, value + half, n, counts, "normal, 0.5 added to both counts")


def over_rate(outcomes: Outcomes, labels: Labels, cut: Cut) -> Estimate:
    """Share of type I errors among the answered cases where one was possible."""
    return proportion(cut(labels, outcomes.reference, outcomes.high).over, outcomes.case)


def under_rate(outcomes: Outcomes, labels: Labels, cut: Cut) -> Estimate:
    """Share of type II errors among the answered cases where one was possible."""
    return proportion(cut(labels, outcomes.reference, outcomes.high).under, outcomes.case)


def _among(qualifies: np.ndarray, error: np.ndarray) -> Float[np.ndarray, " row"]:
    return np.where(qualifies, error.astype(float), np.nan)
