"""Which way do errors go? Knows stated or latent labels against the reference; knows no persona.

Type I is over-triage, type II under-triage. Neither is better as such. What counts as an error is a *cut*, a
function, because the paper leaves it open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

from probe.behaviour.intervals import NOTHING, Z, proportion
from probe.behaviour.outcomes import Need, Outcomes
from probe.values import Estimate

Labels: TypeAlias = Int[np.ndarray, " row"]


@dataclass(frozen=True, eq=False)
class Errors:
    """Error indicators per answered row: 1 or 0 where that error was possible, NaN where it was not."""

    over: Float[np.ndarray, " row"]
    under: Float[np.ndarray, " row"]

    @property
    def either(self) -> np.ndarray:
        """Which rows are an error of either type."""
        return np.asarray((self.over == 1) | (self.under == 1))

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
    """I: the high-risk label for a lowest-risk case; II: the lowest label for a high-risk case (A <-> C).

    No error is possible where the first option is the high-risk one: it has no opposite.
    """
    answered = (given >= 0) & (high != 0)
    return Errors(
        over=_among(answered & (reference == 0), given == high),
        under=_among(answered & (reference == high), given == 0),
    )


def ordinal(given: Labels, reference: Labels, high: int) -> Errors:
    """I: any label above the reference; II: any label below it, in order of rising urgency."""
    top = max(high, int(given.max(initial=-1)), int(reference.max(initial=-1)))  # the high-risk option need not be last
    return Errors(
        over=_among((given >= 0) & (reference < top), given > reference),
        under=_among((given >= 0) & (reference > 0), given < reference),
    )


CUTS: Mapping[str, Cut] = {"high-vs-rest": high_vs_rest, "strict": strict, "ordinal": ordinal}
"""The cuts by the names that the command line gives them."""


def need_of(cut: Cut) -> Need:
    """What a cut must know of the options; a cut of a user's own is taken to need their order."""
    return "high-risk option" if cut is high_vs_rest else "rank of the options"


def sensitivity(outcomes: Outcomes, labels: Labels, cut: Cut) -> Estimate:
    """Risk sensitivity E_I / E_II among errors, undefined without a type II error; both counts always stand beside it.

    Above 1 over-triage prevails. The interval is Wilson's for the share of type I among errors, as odds, at the
    effective number of errors where a case has several rows.
    """
    n = int((labels >= 0).sum())
    if n == 0:
        return Estimate(None, note=NOTHING)
    errors = errors_of(outcomes, labels, cut)
    counts = errors.counts
    one, two = counts["type_1"], counts["type_2"]
    if two == 0:
        what = "no error at all" if one == 0 else "no type II error"
        return Estimate(None, n=n, counts=counts, note=f"undefined: {what}")
    share = proportion(_among(errors.either, errors.over == 1), outcomes.case)
    low, high = (p / (1 - p) for p in (share.low or 0.0, share.high or 0.0))
    return Estimate(one / two, low, high, n, counts, f"odds of the share of type I among errors; {share.method}")


def log_ratio(outcomes: Outcomes, labels: Labels, cut: Cut) -> Estimate:
    """log((E_I + .5) / (E_II + .5)): always defined, positive where over-triage prevails; normal interval.

    Its half-width is z sqrt(1 / (E_I / D + .5) + 1 / (E_II / D + .5)), where D, at least 1, is the design effect of
    rows that cluster by case: 1 with one row per case, k where every case stands k times alike.
    """
    n = int((labels >= 0).sum())
    if n == 0:
        return Estimate(None, note=NOTHING)
    errors = errors_of(outcomes, labels, cut)
    counts, design = errors.counts, _design_effect(errors, outcomes.case)
    one, two = counts["type_1"], counts["type_2"]
    value = float(np.log((one + 0.5) / (two + 0.5)))
    half = Z * float(np.sqrt(1 / (one / design + 0.5) + 1 / (two / design + 0.5)))
    method = "normal, 0.5 added to both counts"
    if design > 1:
        method += f", at {(one + two) / design:.0f} effective errors (rows cluster by case)"
    return Estimate(value, value - half, value + half, n, counts, method)


def over_rate(outcomes: Outcomes, labels: Labels, cut: Cut) -> Estimate:
    """Share of type I errors among the answered cases where one was possible."""
    return proportion(errors_of(outcomes, labels, cut).over, outcomes.case)


def under_rate(outcomes: Outcomes, labels: Labels, cut: Cut) -> Estimate:
    """Share of type II errors among the answered cases where one was possible."""
    return proportion(errors_of(outcomes, labels, cut).under, outcomes.case)


def errors_of(outcomes: Outcomes, labels: Labels, cut: Cut) -> Errors:
    """The errors of these labels under a cut."""
    assert outcomes.high is not None, "a measure that needs the high-risk option is not called without it"
    return cut(labels, outcomes.reference, outcomes.high)


def _design_effect(errors: Errors, case: np.ndarray) -> float:
    """Variance of the log-ratio with errors summed within cases over that with every row on its own; at least 1."""
    _, member = np.unique(case, return_inverse=True)
    one, two = np.nan_to_num(errors.over), np.nan_to_num(errors.under)
    influence = one / (one.sum() + 0.5) - two / (two.sum() + 0.5)
    alone = float((influence**2).sum())
    if alone == 0:
        return 1.0
    return max(1.0, float((np.bincount(member, weights=influence) ** 2).sum()) / alone)


def _among(qualifies: np.ndarray, error: np.ndarray) -> Float[np.ndarray, " row"]:
    return np.where(qualifies, error.astype(float), np.nan)
