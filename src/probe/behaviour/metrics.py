"""The metrics of a persona study, one tidy table. Knows outcomes and estimates; knows no model, store or figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd

from probe.behaviour import risk, scores
from probe.behaviour.calibration import calibration_error, null_band, usable
from probe.behaviour.intervals import mean, proportion
from probe.behaviour.outcomes import Outcomes, planned_outcomes, read_outcomes
from probe.behaviour.scores import Score
from probe.values import Estimate


@dataclass(frozen=True)
class Settings:
    """What the paper leaves open: bins of the ECE and the cut between over- and under-triage."""

    n_bins: int = 10
    cut: risk.Cut = risk.high_vs_rest


Measure: TypeAlias = Callable[[Outcomes, Settings], Estimate]


@dataclass(frozen=True)
class Metric:
    """A named measure of one arm; ``planned`` where the organism's plan says what it should be."""

    name: str
    measure: Measure
    planned: bool = True


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
    Metric("risk_propensity", _share(scores.high_risk)),
    Metric("risk_propensity_latent", _share(scores.high_risk_latent)),
    Metric("risk_sensitivity", _errors(risk.sensitivity)),
    Metric("risk_sensitivity_latent", _errors(risk.sensitivity, latent=True)),
    Metric("risk_log_ratio", _errors(risk.log_ratio)),
    Metric("over_triage_rate", _errors(risk.over_rate)),
    Metric("under_triage_rate", _errors(risk.under_rate)),
    Metric("expected_urgency_latent", _mean(scores.expected_urgency_latent)),
    Metric("expected_urgency_stated", _mean(scores.expected_urgency_stated)),
    Metric("parse_rate", _share(scores.parsed), planned=False),
    Metric("refusal_rate", _share(scores.refused), planned=False),
    Metric("label_mass", _mean(scores.label_mass), planned=False),
)
"""Every metric, in the order of the table. Accuracy and risk propensity of the stated label count an unparsed answer
as neither right nor high-risk; ``consistency`` is over parsed answers, as in the paper; ``consistency_strict`` counts
an unparsed answer as a mismatch."""

COLUMNS = (
    *("metric", "persona", "stratum", "value", "low", "high", "n"),
    *("null_low", "null_high", "planned", "n_planned", "counts", "method", "note"),
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
    ``null_low`` and ``null_high`` are the range of the ECE of a perfectly calibrated model with this arm's confidences.
    ``planned`` is the same metric of the planned distributions on the same cells (``n_planned`` of them), NaN without
    a plan. Cells of several conditions are pooled; their intervals are clustered by case. Options and the high-risk
    label are found as in :func:`read_outcomes`. ``rng`` draws the null bands; by default a generator seeded with 0.

    Raises:
        ProbeError: the table breaks a rule of :func:`read_outcomes`.
    """
    settings, rng = settings or Settings(), rng or np.random.default_rng(0)
    outcomes = read_outcomes(table, options=options, high_risk=high_risk)
    plan = planned_outcomes(table, outcomes)
    bands = {(p, s): _null(outcomes.arm(p, s), settings, rng) for p in outcomes.personas for s in outcomes.strata}
    rows = []
    for metric in METRICS:
        for persona in outcomes.personas:
            for stratum in outcomes.strata:
                estimate = metric.measure(outcomes.arm(persona, stratum), settings)
                should = metric.measure(plan.arm(persona, stratum), settings) if plan and metric.planned else None
                null = bands[persona, stratum] if metric.name == "ece" else (np.nan, np.nan)
                rows.append((metric.name, persona, stratum, *_row(estimate, null, should)))
    result = pd.DataFrame(rows, columns=list(COLUMNS))
    result.attrs = {"options": list(outcomes.options), "high_risk": outcomes.options[outcomes.high]}
    return result


def _null(arm: Outcomes, settings: Settings, rng: np.random.Generator) -> tuple[float, float]:
    confidence, _, case = usable(arm)
    if len(confidence) == 0:
        return np.nan, np.nan
    band = null_band(confidence, case, settings.n_bins, rng)
    return band.low, band.high


def _row(estimate: Estimate, null: tuple[float, float], planned: Estimate | None) -> tuple[object, ...]:
    def number(value: float | None) -> float:
        return np.nan if value is None else value

    interval = (number(estimate.value), number(estimate.low), number(estimate.high), estimate.n)
    plan = (number(planned.value), planned.n) if planned else (np.nan, 0)
    return (*interval, *null, *plan, dict(estimate.counts), estimate.method, estimate.note)
