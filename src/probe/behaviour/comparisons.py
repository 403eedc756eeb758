"""Every persona against a base, paired by case. Knows tables, pairs and contrasts; knows no figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probe.behaviour.contrasts import CONTRASTS, FAMILY, Contrast, Difference, bounds, paired_difference
from probe.behaviour.controls import CONTROLS, control_personas
from probe.behaviour.families import CONFIRMATORY, EXPLORATORY, Confirm, adjusted, one_sided, read_confirm, with_signs
from probe.behaviour.intervals import mean
from probe.behaviour.measures import Settings, split_by_columns
from probe.behaviour.outcomes import Outcomes, planned_outcomes, read_outcomes
from probe.behaviour.paired_cells import Pairs, pair_rows_of, paired_cells, pairs_by_stratum
from probe.behaviour.reliability import debiased_difference, ece_difference
from probe.values import Estimate, ProbeError
from probe.values.nearest import nearest

COLUMNS = (
    *("metric", "persona", "base", "stratum", "difference", "low", "high", "n", "cases", "b", "c"),
    *("p", "p_holm", "p_bh", "family", "test", "method", "planned", "signs_differ"),
    *("detectable", "worst", "best", "note"),
)


def compare(
    table: pd.DataFrame,
    base: str | Sequence[str] = "none",
    *,
    family: Sequence[str] = FAMILY,
    confirm: Iterable[Confirm | Mapping[str, str]] = (),
    controls: Sequence[str] | None = None,
    options: Sequence[str] | None = None,
    high_risk: str | None = None,
    settings: Settings | None = None,
    rng: np.random.Generator | None = None,
) -> pd.DataFrame:
    """Difference of every persona from the base, paired, pooled and per stratum, in the metric's own units.

    ``base`` is a persona, or ``controls``, the mean of the neutral control wordings (see
    :func:`probe.behaviour.controls.control_personas`), or several of both: every persona then has a row per base. Rows
    pair by case and by the parts of the condition that both arms share (see :mod:`probe.behaviour.pairing`); a base
    with several rows of one key, wordings say, is averaged over them, and every row of a persona pairs with that mean.
    ``n`` counts pairs (of ``cases`` cases), ``b`` those that are 1 under the persona only, ``c`` under the base only
    (blank where the base is a mean). Intervals (95 %): Agresti-Min for proportions with one pair per case, else t over
    per-case differences; ECE: a descriptive bootstrap band; debiased ECE^2: jackknife over cases.

    ``p`` is given for the metrics of ``family`` and for the contrasts of ``confirm``, those decided beforehand, which
    are a family of their own (in it also where they could not be tested: p is blank then and ``note`` says why);
    ``p_holm`` and ``p_bh`` are adjusted within each family. ``planned`` is the planned difference on the same pairs,
    blank where some of them have no plan. ``signs_differ`` marks a persona, base and metric whose strata and pool
    disagree. ``detectable`` is the difference that this n had a power of .8 to show. ``worst`` and ``best`` are the
    ends of the difference if unparsed answers could be anything, in either arm. ``rng`` drives the bootstrap; by
    default a generator seeded with 0.

    Raises:
        ProbeError: a base is not in the table, ``family`` or ``confirm`` names something unknown, or the table breaks a
            rule of :func:`read_outcomes`.
    """
    settings, rng = settings or Settings(), rng or np.random.default_rng(0)
    outcomes = read_outcomes(table, options=options, high_risk=high_risk)
    neutral = control_personas(table, controls)
    bases = bases_of(table, base, outcomes, controls)
    present, absent = split_by_columns(CONTRASTS, outcomes)
    planned_tests = _tests(outcomes, family, confirm, bases)
    study = _Study(outcomes, planned_outcomes(table, outcomes), paired_cells(table, outcomes), present, settings, rng)
    rows: list[dict[str, object]] = []
    for name, members in bases.items():
        for persona in outcomes.personas:
            if persona not in members:
                found = _rows_of_arm(study, persona, members)
                rows += [row | {"persona": persona, "base": name} for row in found]
    result = _tested(pd.DataFrame(rows, columns=list(COLUMNS)), *planned_tests)
    order = [*(contrast.name for contrast in CONTRASTS), "ece", "ece_debiased_sq"]
    result = result.sort_values("metric", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)
    result = with_signs(adjusted(result))[list(COLUMNS)]
    result.attrs = {"absent": list(absent), "controls": list(neutral)}
    return result


@dataclass(frozen=True, eq=False)
class _Study:
    """What every arm is compared with: outcomes and plan by row, what pairing reads, contrasts and settings."""

    outcomes: Outcomes
    plan: Outcomes | None
    cells: pd.DataFrame
    contrasts: tuple[Contrast, ...]
    settings: Settings
    rng: np.random.Generator


def bases_of(
    table: pd.DataFrame, base: str | Sequence[str], outcomes: Outcomes, controls: Sequence[str] | None = None
) -> dict[str, tuple[str, ...]]:
    """The personas behind each base, by its name.

    Raises:
        ProbeError: a base is not in the table.
    """
    neutral = control_personas(table, controls)
    found: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys([base] if isinstance(base, str) else base):
        if name in outcomes.personas:
            found[name] = (name,)
        elif name == CONTROLS and neutral:
            found[name] = neutral
        elif name == CONTROLS:
            raise ProbeError(
                "the base controls is the mean of the neutral control wordings, and the table has none; "
                "give their persona the role control, or pass controls="
            )
        else:
            raise ProbeError(
                f"the base persona must be in the table, found no {name!r}. "
                f"{nearest(name, outcomes.personas, 'persona')}"
            )
    return found


def _tests(
    outcomes: Outcomes,
    family: Sequence[str],
    confirm: Iterable[Confirm | Mapping[str, str]],
    bases: Mapping[str, tuple[str, ...]],
) -> tuple[frozenset[str], list[Confirm]]:
    metrics = [contrast.name for contrast in CONTRASTS]
    if unknown := sorted(set(family) - set(metrics)):
        raise ProbeError(f"the family may hold only contrasts with a test, found {unknown}; choose from {FAMILY}")
    known = {"persona": outcomes.personas, "metric": metrics, "base": tuple(bases), "stratum": outcomes.strata}
    return frozenset(family), read_confirm(confirm, known, next(iter(bases)))


def _rows_of_arm(study: _Study, persona: str, base: tuple[str, ...]) -> list[dict[str, object]]:
    """Every contrast of one persona with one base, pooled and per stratum."""
    rows = []
    for stratum, pairs in pairs_by_stratum(study.outcomes, study.cells, persona, base):
        told = f"{pairs.unpaired} rows without a partner" if pairs.unpaired else ""
        for row in [*(_contrast_row(study, contrast, pairs) for contrast in study.contrasts), *_ece_rows(study, pairs)]:
            rows.append(row | {"stratum": stratum, "note": "; ".join(filter(None, (str(row["note"]), told)))})
    return rows


def _contrast_row(study: _Study, contrast: Contrast, pairs: Pairs) -> dict[str, object]:
    if lacking := study.outcomes.lacks(contrast.need):
        return _columns(contrast, Difference(Estimate(None, note=lacking)))
    case, score = study.outcomes.case[pairs.ours], contrast.score(study.outcomes)
    found = paired_difference(*pairs.differences(score), case, contrast.binary and pairs.single)
    row = _columns(contrast, found)
    if study.plan is not None and contrast.planned:
        ours, theirs = pairs.differences(contrast.score(study.plan))
        row["planned"] = _covering(mean(ours - theirs, case), found.estimate)
    if contrast.strict:
        low, high = bounds(study.outcomes, contrast)
        for end, mine, other in (("worst", low, high), ("best", high, low)):
            ours, theirs = pairs.differences(mine, other)
            row[end] = mean(ours - theirs, case).value
    return row


def _ece_rows(study: _Study, pairs: Pairs) -> list[dict[str, object]]:
    """The differences of the ECE and of the debiased ECE^2; of several base rows per key all are pooled."""
    if "logp_<label>" not in study.outcomes.told:
        return []
    arms = pair_rows_of(pairs)
    ours, base = (study.outcomes.take(rows) for rows in arms)
    n_bins = study.settings.n_bins
    found = {
        "ece": ece_difference(ours, base, n_bins, study.rng),
        "ece_debiased_sq": debiased_difference(ours, base, n_bins),
    }
    planned: dict[str, float | None] = {}
    if study.plan is not None:
        ours, base = (study.plan.take(rows) for rows in arms)
        planned["ece"] = _covering(ece_difference(ours, base, n_bins, study.rng, 2), found["ece"])
        planned["ece_debiased_sq"] = _covering(debiased_difference(ours, base, n_bins), found["ece_debiased_sq"])
    rows: list[dict[str, object]] = []
    for metric, estimate in found.items():
        row: dict[str, object] = {"metric": metric, "difference": estimate.value, "low": estimate.low}
        row |= {"high": estimate.high, "n": len(pairs.ours), "method": estimate.method, "note": estimate.note}
        row["cases"] = len(np.unique(study.outcomes.case[pairs.ours]))
        rows.append(row | {"planned": planned.get(metric)})
    return rows


def _covering(planned: Estimate, measured: Estimate) -> float | None:
    """The planned difference, where there is a plan of every pair: one of some of them tells of other cases."""
    return planned.value if planned.n >= measured.n else None


def _columns(contrast: Contrast, found: Difference) -> dict[str, object]:
    estimate = found.estimate
    low, high = estimate.low, estimate.high
    if contrast.binary and low is not None and high is not None:
        low, high = (
            max(low, -1.0),
            min(high, 1.0),
        )  # no difference of proportions is larger; t over few cases may say so
    row: dict[str, object] = {"metric": contrast.name, "difference": estimate.value, "low": low, "high": high}
    row |= {"n": estimate.n, "cases": estimate.counts.get("cases")}
    row |= {"b": estimate.counts.get("b"), "c": estimate.counts.get("c")}
    row |= {"p": estimate.p, "test": found.test, "method": estimate.method, "detectable": found.detectable}
    return row | {"note": "; ".join(filter(None, (estimate.note, contrast.note)))}


def _tested(result: pd.DataFrame, family: frozenset[str], confirm: Sequence[Confirm]) -> pd.DataFrame:
    """Which rows are tests, of which family; the others lose their p."""
    numbers = ["difference", "low", "high", "cases", "b", "c", "p", "planned", "detectable", "worst", "best"]
    result[numbers] = result[numbers].astype(float)
    wanted = {contrast.key: contrast for contrast in confirm}
    keys = list(zip(*(result[name] for name in ("metric", "persona", "base", "stratum")), strict=True))
    decided = np.array([key in wanted for key in keys], dtype=bool)
    explored = result["metric"].isin(family).to_numpy() & ~decided
    tested = (decided | explored) & result["p"].notna().to_numpy()
    p, tests = result["p"].to_numpy(copy=True), result["test"].fillna("").tolist()
    for row in np.flatnonzero(decided & tested):
        direction = wanted[keys[row]].direction
        if direction != "either":
            p[row] = one_sided(p[row], result["difference"].to_numpy()[row], direction)
            tests[row] += f", one-sided: {direction}"
    # A contrast that was decided beforehand is told also where it could not be tested: it would vanish unseen.
    result["family"] = np.where(decided, CONFIRMATORY, np.where(tested, EXPLORATORY, ""))
    result["p"], result["test"] = np.where(tested, p, np.nan), np.where(tested | decided, tests, "")
    result["method"] = result["method"].fillna("")
    return result
