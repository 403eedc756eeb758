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
from probe.behaviour.outcomes import Need, Outcomes, planned_outcomes, read_outcomes
from probe.behaviour.pairing import SHARED, pair_rows
from probe.behaviour.scores import Score
from probe.behaviour.significance import holm, mcnemar, mcnemar_clustered, paired_t
from probe.values import ALL, Estimate, ProbeError


@dataclass(frozen=True)
class Contrast:
    """A score whose paired difference is estimated; ``binary`` scores are 0 or 1. ``note`` says what to beware of."""

    name: str
    score: Score
    binary: bool
    note: str = ""
    need: Need = "nothing"


CONTRASTS: tuple[Contrast, ...] = (
    Contrast("accuracy", scores.accuracy, True),
    Contrast("accuracy_latent", scores.accuracy_latent, True),
    Contrast("consistency_strict", scores.consistency_strict, True),
    Contrast("consistency_both", scores.consistency, True, "only cases with a parsed answer in both arms; descriptive"),
    Contrast("overconfidence", scores.overconfidence, False),
    Contrast("brier", scores.brier, False),
    Contrast("log_loss", scores.log_loss, False),
    Contrast("risk_propensity", scores.high_risk, True, need="high-risk option"),
    Contrast("expected_urgency_latent", scores.expected_urgency_latent, False, need="rank of the options"),
    Contrast(
        "expected_urgency_stated",
        scores.expected_urgency_stated,
        False,
        "only cases with an answer site in both arms; descriptive",
        need="rank of the options",
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

    Rows pair by case and by the parts of the condition that both arms share (see :mod:`probe.behaviour.pairing`);
    several wordings of a persona all pair with the base row of their key. ``n`` counts pairs, ``b`` those
    that are 1 under the persona only, ``c`` under the base only. Intervals (95 %): Agresti-Min for proportions with
    one pair per case, else t over per-case differences; ECE: a descriptive bootstrap band. ``p`` is given for the
    metrics of ``family`` and ``p_holm`` adjusts all of them at once. ``planned`` is the planned difference on the same
    pairs. ``signs_differ`` marks a persona and metric whose strata and pool disagree (:func:`signs_differ`). ``rng``
    drives the bootstrap; by default a generator seeded with 0.

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
    plan, cells = planned_outcomes(table, outcomes), _cells(table, outcomes)
    rows: list[dict[str, object]] = []
    for persona in outcomes.personas:
        if persona == base:
            continue
        pairs = _paired_arms(cells, persona, base)
        for stratum in outcomes.strata:
            ours, theirs, unpaired = _within(pairs, cells, stratum)
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


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Row numbers of the pairs of two arms, and of the rows of either that found no partner."""

    ours: np.ndarray
    theirs: np.ndarray
    unpaired: np.ndarray


def _cells(table: pd.DataFrame, outcomes: Outcomes) -> pd.DataFrame:
    """What pairing reads: names as checked text, the parts of the condition as the table has them."""
    names = ["persona", "case", "stratum", *(["condition"] if "condition" in table else [])]
    cells = pd.DataFrame({name: getattr(outcomes, name) for name in names})
    return cells.assign(**{part: table[part].to_numpy() for part in (*SHARED, "wording") if part in table})


def _paired_arms(cells: pd.DataFrame, persona: str, base: str) -> _Pairs:
    arms = [np.flatnonzero(cells["persona"] == name) for name in (persona, base)]
    left, right = pair_rows(*(cells.iloc[arm] for arm in arms))
    ours, theirs = arms[0][left], arms[1][right]
    return _Pairs(ours, theirs, np.setdiff1d(np.concatenate(arms), np.concatenate([ours, theirs])))


def _within(pairs: _Pairs, cells: pd.DataFrame, stratum: str) -> tuple[np.ndarray, np.ndarray, int]:
    """The pairs of one stratum, or all, and how many of its rows found no partner."""
    inside = np.full(len(cells), True) if stratum == ALL else (cells["stratum"] == stratum).to_numpy()
    kept = inside[pairs.ours]  # a case has one stratum, so both sides of a pair lie inside or neither
    return pairs.ours[kept], pairs.theirs[kept], int(inside[pairs.unpaired].sum())


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
        if lacking := outcomes.lacks(contrast.need):
            estimate, test, planned = Estimate(None, note=lacking), "", None
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


def signs_differ(part: pd.DataFrame) -> bool:
    """Does the pool hide what the strata show, in the rows of one persona and metric?

    Yes where a stratum's interval excludes 0 and another one lies wholly on the other side of 0, or the pooled
    difference does. Two estimates that merely straddle 0 are no disagreement.
    """
    up, down = bool((part["low"] > 0).any()), bool((part["high"] < 0).any())
    pool = part.loc[part["stratum"] == ALL, "difference"]
    return (up and (down or bool((pool < 0).any()))) or (down and bool((pool > 0).any()))


def _mark_signs(result: pd.DataFrame) -> pd.DataFrame:
    marks = {key: signs_differ(part) for key, part in result.groupby(["metric", "persona"], sort=False)}
    keys = zip(result["metric"], result["persona"], strict=True)
    return result.assign(signs_differ=np.array([marks[key] for key in keys], dtype=bool))
