"""The metrics of a persona study, one tidy table. Knows outcomes and estimates; knows no model, store or figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd

from probe.behaviour.calibration import band_of, joint_limits
from probe.behaviour.columns import REMEDY
from probe.behaviour.measures import SELECTED, Metric, Settings, metrics_of, split_by_columns
from probe.behaviour.outcomes import Outcomes, planned_outcomes, read_outcomes
from probe.behaviour.reliability import nulls_of_arm
from probe.values import ALL, Estimate

COLUMNS = (
    *("metric", "persona", "stratum", "value", "low", "high", "n"),
    *("null_low", "null_high", "null_max", "planned", "n_planned", "counts", "method", "note", "descriptive"),
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

    ``value`` is NaN where a metric is undefined; ``note`` then says why and ``counts`` holds what was counted. Metrics
    whose columns the table lacks are absent; ``attrs["absent"]`` has a sentence for each such lack, and one where
    the order of the options was not told but taken from that of the columns.
    ``null_low`` and ``null_high`` are the range of an ECE of a perfectly calibrated model with this arm's confidences;
    ``null_max`` is what none of the arms exceeds in 95 % of such studies (strata only, or the pool where it is alone).
    ``planned`` is the same metric of the planned distributions on the same cells (``n_planned`` of them), NaN without
    a plan. ``descriptive`` marks metrics over cells that a persona can select: no comparison rests on them. Cells of
    several conditions are pooled; their intervals are clustered by case. Options and the high-risk label are found as
    in :func:`read_outcomes`. ``rng`` draws the null bands; by default a generator seeded with 0.

    Raises:
        ProbeError: the table breaks a rule of :func:`read_outcomes`.
    """
    settings, rng = settings or Settings(), rng or np.random.default_rng(0)
    outcomes = read_outcomes(table, options=options, high_risk=high_risk)
    plan = planned_outcomes(table, outcomes)
    present, absent = split_by_columns(metrics_of(outcomes), outcomes)
    arms = [(persona, stratum) for persona in outcomes.personas for stratum in outcomes.strata]
    cells = {arm: outcomes.arm(*arm) for arm in arms}
    plans = {arm: plan.arm(*arm) for arm in arms} if plan else {}
    nulls = _nulls(cells, settings, rng, alone=outcomes.strata == (ALL,))
    rows = []
    for metric in present:
        lacking = outcomes.lacks(metric.needs(settings))
        for arm in arms:
            null = nulls.get((metric.name, *arm), _NO_NULL)
            estimate, should = Estimate(None, note=lacking), None
            if not lacking:
                estimate = metric.measure(cells[arm], settings)
                should = metric.measure(plans[arm], settings) if plan and metric.planned else None
            rows.append((metric.name, *arm, *_row(metric, estimate, null, should)))
    result = pd.DataFrame(rows, columns=list(COLUMNS))
    high = None if outcomes.high is None else outcomes.options[outcomes.high]
    told = [*absent, *_order_taken(table, options, outcomes)]
    result.attrs = {"options": list(outcomes.options), "high_risk": high, "absent": told}
    return result


def _order_taken(table: pd.DataFrame, options: Sequence[str] | None, outcomes: Outcomes) -> list[str]:
    """A sentence where the order of the options is that of the columns: sorted by name it would turn risk around."""
    if options is not None or table.attrs.get("options") is not None or outcomes.high is None or not outcomes.ranked:
        return []
    rising = " < ".join(outcomes.options)
    return [
        f"the urgency of the options was taken from the order of the columns logp_<label>, {rising}, "
        f"high-risk: {outcomes.options[outcomes.high]}; where that is not so, {REMEDY}"
    ]


_Null: TypeAlias = tuple[float, float, float]
_NO_NULL: _Null = (np.nan, np.nan, np.nan)


def _nulls(
    cells: dict[tuple[str, str], Outcomes], settings: Settings, rng: np.random.Generator, *, alone: bool
) -> dict[tuple[str, str, str], _Null]:
    """Ends of the null band and the joint limit of every kind of ECE, by metric, persona and stratum."""
    draws = {
        (name, *arm): drawn
        for arm, outcomes in cells.items()
        for name, drawn in nulls_of_arm(outcomes, settings.n_bins, rng).items()
    }
    limits: dict[tuple[str, str, str], float] = {}
    for metric in dict.fromkeys(name for name, _, _ in draws):
        judged = [key for key in draws if key[0] == metric and (alone or key[2] != ALL)]
        limits |= zip(judged, joint_limits([draws[key] for key in judged]), strict=True) if judged else ()
    bands = {key: band_of(drawn) for key, drawn in draws.items()}
    return {key: (band.low, band.high, limits.get(key, np.nan)) for key, band in bands.items()}


def _row(metric: Metric, estimate: Estimate, null: _Null, planned: Estimate | None) -> tuple[object, ...]:
    def number(value: float | None) -> float:
        return np.nan if value is None else value

    interval = (number(estimate.value), number(estimate.low), number(estimate.high), estimate.n)
    plan = (number(planned.value), planned.n) if planned else (np.nan, 0)
    note = estimate.note or (SELECTED if metric.descriptive else "")
    told = (dict(estimate.counts), estimate.method, note, metric.descriptive)
    return (*interval, *null, *plan, *told)
