"""The metrics of a persona study, one tidy table. Knows outcomes and estimates; knows no model, store or figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd

from probe.behaviour import risk, scores
from probe.behaviour.calibration import band_of, calibration_error, joint_limits, null_draws, usable
from probe.behaviour.intervals import mean, proportion
from probe.behaviour.outcomes import Need, Outcomes, planned_outcomes, read_outcomes
from probe.behaviour.scores import Score
from probe.values import ALL, Estimate, ProbeError


@dataclass(frozen=True)
class Settings:
    """What the paper leaves open: bins of the ECE and the cut between over- and under-triage."""

    n_bins: int = 10
    cut: risk.Cut = risk.high_vs_rest

    def __post_init__(self) -> None:
        if self.n_bins < 1:
            raise ProbeError(f"an ECE needs at least one bin, found n_bins={self.n_bins}")


Measure: TypeAlias = Callable[[Outcomes, Settings], Estimate]


@dataclass(frozen=True)
class Metric:
    """A named measure of one arm; ``planned`` where the organism's plan says what it should be.

    ``need`` is what it must know of the options; ``errors`` marks one whose need is that of the cut.
    """

    name: str
    measure: Measure
    planned: bool = True
    need: Need = "nothing"
    errors: bool = False

    def needs(self, settings: Settings) -> Need:
        """What this metric must know of the options under these settings."""
        return risk.need_of(settings.cut) if self.errors else self.need


def _share(score: Score) -> Measure:
    return lambda outcomes, _: proportion(score(outcomes), outcomes.case)


def _mean(score: Score) -> Measure:
    return lambda outcomes, _: mean(score(outcomes), outcomes.case)


def _errors(measure: Callable[[Outcomes, risk.Labels, risk.Cut], Estimate], *, latent: bool = False) -> Measure:
    return lambda outcomes, settings: measure(outcomes, outcomes.latent if latent else outcomes.stated, settings.cut)


METRICS: tuple[Metric, ...] = (
    Metric("accuracy", _share(scores.accuracy)),
    Metric("accuracy_latent", _share(scores.accuracy_latent)),
    Metric("consistency", _share(scores.consistency)),
    Metric("consistency_strict", _share(scores.consistency_strict)),
    Metric("ece", lambda outcomes, settings: calibration_error(outcomes, settings.n_bins)),
    Metric("overconfidence", _mean(scores.overconfidence)),
    Metric("brier", _mean(scores.brier)),
    Metric("log_loss", _mean(scores.log_loss)),
    Metric("risk_propensity", _share(scores.high_risk), need="high-risk option"),
    Metric("risk_propensity_latent", _share(scores.high_risk_latent), need="high-risk option"),
    Metric("risk_sensitivity", _errors(risk.sensitivity), errors=True),
    Metric("risk_sensitivity_latent", _errors(risk.sensitivity, latent=True), errors=True),
    Metric("risk_log_ratio", _errors(risk.log_ratio), errors=True),
    Metric("over_triage_rate", _errors(risk.over_rate), errors=True),
    Metric("under_triage_rate", _errors(risk.under_rate), errors=True),
    Metric("expected_urgency_latent", _mean(scores.expected_urgency_latent), need="rank of the options"),
    Metric("expected_urgency_stated", _mean(scores.expected_urgency_stated), need="rank of the options"),
    Metric("parse_rate", _share(scores.parsed), planned=False),
    Metric("refusal_rate", _share(scores.refused), planned=False),
    Metric("label_mass", _mean(scores.label_mass), planned=False),
)
"""Every metric, in the order of the table. Accuracy and risk propensity of the stated label count an unparsed answer
as neither right nor high-risk; ``consistency`` is over parsed answers, as in the paper; ``consistency_strict`` counts
an unparsed answer as a mismatch."""

COLUMNS = (
    *("metric", "persona", "stratum", "value", "low", "high", "n"),
    *("null_low", "null_high", "null_max", "planned", "n_planned", "counts", "method", "note"),
)


def metrics(
    table: pd.DataFrame,
    *,
    options: Sequence[str] | None = None,
    high_risk: str | None = None,
    settings: Settings | None = None,
    rng: np.random.Generator | None = None,
) -> pd.DataFrame:
    """Every metric for every persona, pooled ("all") and per stratum, with 95 % intervals, n and counts.

    ``value`` is NaN where a metric is undefined; ``note`` then says why and ``counts`` holds what was counted.
    ``null_low`` and ``null_high`` are the range of the ECE of a perfectly calibrated model with this arm's confidences;
    ``null_max`` is what none of the arms exceeds in 95 % of such studies (strata only, or the pool where it is alone).
    ``planned`` is the same metric of the planned distributions on the same cells (``n_planned`` of them), NaN without
    a plan. Cells of several conditions are pooled; their intervals are clustered by case. Options and the high-risk
    label are found as in :func:`read_outcomes`. ``rng`` draws the null bands; by default a generator seeded with 0.

    Raises:
        ProbeError: the table breaks a rule of :func:`read_outcomes`.
    """
    settings, rng = settings or Settings(), rng or np.random.default_rng(0)
    outcomes = read_outcomes(table, options=options, high_risk=high_risk)
    plan = planned_outcomes(table, outcomes)
    nulls, rows = _nulls(outcomes, settings, rng), []
    for metric in METRICS:
        lacking = outcomes.lacks(metric.needs(settings))
        for persona in outcomes.personas:
            for stratum in outcomes.strata:
                null = nulls.get((persona, stratum), _NO_NULL) if metric.name == "ece" else _NO_NULL
                if lacking:
                    rows.append((metric.name, persona, stratum, *_row(Estimate(None, note=lacking), null, None)))
                    continue
                estimate = metric.measure(outcomes.arm(persona, stratum), settings)
                should = metric.measure(plan.arm(persona, stratum), settings) if plan and metric.planned else None
                rows.append((metric.name, persona, stratum, *_row(estimate, null, should)))
    result = pd.DataFrame(rows, columns=list(COLUMNS))
    high = None if outcomes.high is None else outcomes.options[outcomes.high]
    result.attrs = {"options": list(outcomes.options), "high_risk": high}
    return result


_Null: TypeAlias = tuple[float, float, float]
_NO_NULL: _Null = (np.nan, np.nan, np.nan)


def _nulls(outcomes: Outcomes, settings: Settings, rng: np.random.Generator) -> dict[tuple[str, str], _Null]:
    """Ends of the null band and the joint limit of every arm with a label distribution, by persona and stratum."""
    draws = {}
    for persona in outcomes.personas:
        for stratum in outcomes.strata:
            confidence, _, case = usable(outcomes.arm(persona, stratum))
            if len(confidence):
                draws[persona, stratum] = null_draws(confidence, case, settings.n_bins, rng)
    judged = [arm for arm in draws if arm[1] != ALL or outcomes.strata == (ALL,)]
    limits = dict(zip(judged, joint_limits([draws[arm] for arm in judged]), strict=True)) if judged else {}
    bands = {arm: band_of(drawn) for arm, drawn in draws.items()}
    return {arm: (band.low, band.high, limits.get(arm, np.nan)) for arm, band in bands.items()}


def _row(estimate: Estimate, null: _Null, planned: Estimate | None) -> tuple[object, ...]:
    def number(value: float | None) -> float:
        return np.nan if value is None else value

    interval = (number(estimate.value), number(estimate.low), number(estimate.high), estimate.n)
    plan = (number(planned.value), planned.n) if planned else (np.nan, 0)
    return (*interval, *null, *plan, dict(estimate.counts), estimate.method, estimate.note)
