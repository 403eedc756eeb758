"""Every persona against a base persona, paired by case. Knows outcomes, intervals and tests; knows no figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probe.behaviour import scores
from probe.behaviour.calibration import ece_difference
from probe.behaviour.intervals import NOTHING, agresti_min, mean
from probe.behaviour.metrics import Settings
from probe.behaviour.outcomes import ALL, Outcomes, planned_outcomes, read_outcomes
from probe.behaviour.scores import Score
from probe.behaviour.significance import holm, mcnemar, mcnemar_clustered, paired_t
from probe.values import Estimate, ProbeError


@dataclass(frozen=True)
class Contrast:
    """A score whose paired difference is estimated; ``binary`` scores are 0 or 1. ``note`` says what to beware of."""

    name: str
    score: Score
    binary: bool
    note: str = ""


CONTRASTS: tuple[Contrast, ...] = (
    Contrast("accuracy", scores.accuracy, True),
    Contrast("accuracy_latent", scores.accuracy_latent, True),
    Contrast("consistency_strict", scores.consistency_strict, True),
    Contrast("consistency_both", scores.consistency, True, "only cases with a parsed answer in both arms; descriptive"),
    Contrast("overconfidence", scores.overconfidence, False),
    Contrast("brier", scores.brier, False),
    Contrast("log_loss", scores.log_loss, False),
    Contrast("risk_propensity", scores.high_risk, True),
    Contrast("expected_urgency_latent", scores.expected_urgency_latent, False),
    Contrast(
        "expected_urgency_stated",
        scores.expected_urgency_stated,
        False,
        "only cases with an answer site in both arms; descriptive",
    ),
)
"""Differences that are estimated; that of the ECE stands beside them."""

FAMILY: tuple[str, ...] = (
    *("accuracy", "accuracy_latent", "consistency_strict", "overconfidence", "brier"),
    *("risk_propensity", "expected_urgency_latent"),
)
"""The metrics that are tested. ECE and scores over cells that a persona can select are described, never tested."""

COLUMNS = (
    *("metric", "persona", "base", "stratum", "difference", "low", "high", "n", "b", "c"),
    *("p", "p_holm", "test", "method", "planned", "signs_differ", "note"),
)


def compare(
    table: pd.DataFrame,
    base: str = "none",
    *,
    family: Sequence[str] = FAMILY,
    options: Sequence[str] | None = None,
    high_risk: str | None = None,
    settings: Settings | None = None,
    rng: np.random.Generator | None = None,
) -> pd.DataFrame:
    """Difference of every persona from the base persona, paired, pooled and per stratum, in the metric's own units.

    Rows pair by case where the base has one row per case, else by case and condition. ``n`` counts pairs, ``b`` those
    that are 1 under the persona only, ``c`` under the base only. Intervals (95 %): Agresti-Min for proportions with
    one pair per case, else t over per-case differences; ECE: a descriptive bootstrap band. ``p`` is given for the
    metrics of ``family`` and ``p_holm`` adjusts all of them at once. ``planned`` is the planned difference on the same
    pairs. ``signs_differ`` marks a persona and metric whose strata, or pool and strata, point in different directions.
    ``rng`` drives the bootstrap; by default a generator seeded with 0.

    Raises:
        ProbeError: no row has the base persona, ``family`` names an unknown metric, or the table breaks a rule of
            :func:`read_outcomes`.
    """
    settings, rng = settings or Settings(), rng or np.random.default_rng(0)
    unknown = set(family) - {contrast.name for contrast in CONTRASTS}
    if unknown:
        raise ProbeError(
            f"the family may hold only contrasts with a test, found {sorted(unknown)}; choose from {FAMILY}"
        )
    outcomes = read_outcomes(table, options=options, high_risk=high_risk)
    if base not in outcomes.personas:
        raise ProbeError(f"the base persona must be in the table, found no {base!r} among {list(outcomes.personas)}")
    plan = planned_outcomes(table, outcomes)
    rows: list[dict[str, object]] = []
    for persona in outcomes.personas:
        if persona == base:
            continue
        for stratum in outcomes.strata:
            ours, theirs, unpaired = pair_rows(outcomes, persona, base, stratum)
            for row in _contrasts(outcomes, plan, (ours, theirs), family):
                rows.append(_labelled(row, persona, base, stratum, unpaired))
            measured = ece_difference(outcomes.take(ours), outcomes.take(theirs), settings.n_bins, rng)
            planned = ece_difference(plan.take(ours), plan.take(theirs), settings.n_bins, rng, 2) if plan else None
            row = _columns("ece", measured, planned.value if planned else None)
            rows.append(_labelled(row, persona, base, stratum, unpaired))
    result = pd.DataFrame(rows, columns=list(COLUMNS))
    order = [*(contrast.name for contrast in CONTRASTS), "ece"]
    result = result.sort_values("metric", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)
    return _mark_signs(_adjust(result))


def pair_rows(outcomes: Outcomes, persona: str, base: str, stratum: str = ALL) -> tuple[np.ndarray, np.ndarray, int]:
    """Row numbers of the persona and of the base that belong together, and how many rows found no partner."""
    inside = np.full(len(outcomes), True) if stratum == ALL else outcomes.stratum == stratum
    ours = np.flatnonzero(inside & (outcomes.persona == persona))
    theirs = np.flatnonzero(inside & (outcomes.persona == base))
    by_case = len(np.unique(outcomes.case[theirs])) == len(theirs)

    condition = np.full(len(outcomes), "", dtype=object) if by_case else outcomes.condition
    keys = list(zip(outcomes.case, condition, strict=True))
    partner = {keys[row]: row for row in theirs}
    pairs = [(row, partner[keys[row]]) for row in ours if keys[row] in partner]
    left, right = (np.array([pair[side] for pair in pairs], dtype=int) for side in (0, 1))
    return left, right, len(ours) - len(left) + len(theirs) - len(np.unique(right))


def _contrasts(
    outcomes: Outcomes, plan: Outcomes | None, pairs: tuple[np.ndarray, np.ndarray], family: Sequence[str]
) -> list[dict[str, object]]:
    ours, theirs = pairs
    rows = []
    for contrast in CONTRASTS:
        score = contrast.score(outcomes)
        estimate, test = paired_difference(score[ours], score[theirs], outcomes.case[ours], contrast.binary)
        planned = None
        if plan is not None:
            should = contrast.score(plan)
            planned = mean(should[ours] - should[theirs], outcomes.case[ours]).value
        tested = contrast.name in family
        row = _columns(contrast.name, estimate, planned)
        row |= {"p": estimate.p if tested else None, "test": test if tested else ""}
        rows.append(row | {"note": "; ".join(filter(None, (estimate.note, contrast.note)))})
    return rows


def paired_difference(ours: np.ndarray, theirs: np.ndarray, case: np.ndarray, binary: bool) -> tuple[Estimate, str]:
    """Mean of ours - theirs over pairs where neither is NaN, with its interval, p-value and the name of the test."""
    kept = ~np.isnan(ours) & ~np.isnan(theirs)
    difference, case = (ours - theirs)[kept], case[kept]
    if len(difference) == 0:
        return Estimate(None, note=NOTHING), ""
    estimate = mean(difference, case)
    if estimate.value is None:
        return estimate, ""
    _, member = np.unique(case, return_inverse=True)
    per_case = np.bincount(member, weights=difference)
    one_each = len(per_case) == len(difference)
    n, value, counts = len(difference), estimate.value, dict(estimate.counts)
    if not binary:
        p, test = paired_t(per_case / np.bincount(member))
        return Estimate(value, estimate.low, estimate.high, n, counts, estimate.method, estimate.note, p), test
    b, c = int((difference > 0).sum()), int((difference < 0).sum())
    counts |= {"b": float(b), "c": float(c)}
    if not one_each:
        p, test = mcnemar_clustered(per_case)
        return Estimate(value, estimate.low, estimate.high, n, counts, estimate.method, estimate.note, p), test
    low, high = agresti_min(b, c, n)
    p, test = mcnemar(b, c)
    return Estimate(value, low, high, n, counts, "Agresti-Min", p=p), test


def _columns(metric: str, estimate: Estimate, planned: float | None) -> dict[str, object]:
    row: dict[str, object] = {"metric": metric, "difference": estimate.value, "low": estimate.low}
    row |= {"high": estimate.high, "n": estimate.n, "b": estimate.counts.get("b"), "c": estimate.counts.get("c")}
    return row | {"p": None, "test": "", "method": estimate.method, "planned": planned, "note": estimate.note}


def _labelled(row: dict[str, object], persona: str, base: str, stratum: str, unpaired: int) -> dict[str, object]:
    note = "; ".join(filter(None, (str(row["note"]), f"{unpaired} rows without a partner" if unpaired else "")))
    return row | {"persona": persona, "base": base, "stratum": stratum, "note": note}


def _adjust(result: pd.DataFrame) -> pd.DataFrame:
    numbers = ["difference", "low", "high", "b", "c", "p", "planned"]
    result[numbers] = result[numbers].astype(float)
    result["p_holm"] = np.nan
    tested = result["p"].notna()
    result.loc[tested, "p_holm"] = holm(result.loc[tested, "p"].tolist())
    return result


def _mark_signs(result: pd.DataFrame) -> pd.DataFrame:
    signs = np.sign(result["difference"]).fillna(0)
    groups = [result["metric"], result["persona"]]
    result["signs_differ"] = (signs.groupby(groups).transform("max") > 0) & (signs.groupby(groups).transform("min") < 0)
    return result
