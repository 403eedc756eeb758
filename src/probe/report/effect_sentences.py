"""What personas change, in sentences made from the tests. Knows comparisons, the noise floor and Cochran's Q."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from probe.behaviour import CONTROLS
from probe.behaviour.families import CONFIRMATORY
from probe.report.numbers import DASH, SIGNIFICANT, listed, p_value, plural, points, signed
from probe.report.style import metric_name, shown
from probe.values import ALL

IN_POINTS = frozenset(
    {"accuracy", "accuracy_latent", "consistency_strict", "consistency_both", "ece", "risk_propensity"}
)
"""Differences shown in percentage points; the others are in the metric's own unit."""


def in_words(metric: str) -> str:
    """A metric inside a sentence."""
    name = metric_name(metric)
    return name if name[:2].isupper() or metric in _PROPER else name[0].lower() + name[1:]


_PROPER = ("brier", "stated_brier")


def planned_contrasts(comparisons: pd.DataFrame, floor: pd.DataFrame) -> Iterator[str]:
    """One sentence for every contrast that was decided beforehand, resolved or not, and for those without cells."""
    for _, row in comparisons[comparisons["family"] == CONFIRMATORY].iterrows():
        what = f"{shown(str(row['persona']))} against {_base(row)}: {in_words(str(row['metric']))}"
        test = str(row["test"] or "")
        side = f" The test is one-sided ({test.split(_ONE_SIDED)[1]})." if _ONE_SIDED in test else ""
        why = f" {row['note']}." if pd.isna(row["p"]) and row["note"] else ""
        one = comparisons[comparisons.index == row.name]
        yield f"{what} {moves(row)}{_against_floor(row, floor)}.{side}{why}{_unparsed_could(one, str(row['metric']))}"
    for waiting in comparisons.attrs.get("waiting", ()):
        where = "over all cases" if waiting.get("stratum", ALL) == ALL else f"in {shown(waiting['stratum'])}"
        what = f"{shown(waiting['persona'])} against {shown(waiting['base'])}: {in_words(waiting['metric'])}"
        yield f"{what} {where} could not be tested: the run holds no cell of it."


_ONE_SIDED = "one-sided: "


def effects(rows: pd.DataFrame, floor: pd.DataFrame) -> Iterator[str]:
    """Sentences on one metric against one base, persona by persona; what is unresolved is told together.

    A contrast that was decided beforehand has its own sentence elsewhere and makes none here.
    """
    metric = str(rows["metric"].iloc[0])
    what = in_words(metric)
    unresolved: list[pd.DataFrame] = []
    quiet: list[str] = []
    untested: list[str] = []
    for persona, whole in rows.groupby("persona", sort=False):
        part = whole[_explored(whole)]
        resolved = part["p_holm"] < SIGNIFICANT
        name = shown(str(persona)) + (" (beside what was decided beforehand)" if len(part) < len(whole) else "")
        if not resolved.any():
            if part["p"].notna().any():
                unresolved.append(part)
                quiet.append(name)
            elif len(part) == len(whole):
                untested.append(name)
            continue
        hidden = bool(part["signs_differ"].any())
        told = part[(resolved | hidden) & (part["stratum"] != ALL)]
        strata = [moves(row) + _against_floor(row, floor) for _, row in told.iterrows()]
        pool = part[part["stratum"] == ALL]
        pooled = [moves(row) + ("" if strata else _against_floor(row, floor)) for _, row in pool.iterrows()]
        text = "; it ".join(filter(None, (listed(strata), *pooled)))
        warning = " Strata and pool differ in sign: read the strata." if hidden else ""
        yield f"{name}: {what} {text}.{warning}{_unparsed_could(part[resolved], metric)}"
    if unresolved:
        rest = pd.concat(unresolved)
        names = listed(quiet)
        why = f"Holm-adjusted p ≥ .05 everywhere{_could_show(rest, metric)}"
        yield f"No change of {what} is resolved for {names} ({why})."
    if untested:
        yield f"No change of {what} could be tested for {listed(untested)}: no pair of cases qualifies."


def against_controls(rows: pd.DataFrame) -> Iterator[str]:
    """One sentence on one metric against the mean of the control wordings, paired by case."""
    tested = rows[rows["p"].notna() & _explored(rows)]
    if tested.empty:
        return
    metric, found = str(rows["metric"].iloc[0]), tested[tested["p_holm"] < SIGNIFICANT]
    lead = f"From the mean of the control wordings, paired by case, {in_words(metric)}"
    if found.empty:
        why = f"Holm-adjusted p ≥ .05 everywhere{_could_show(tested, metric)}"
        yield f"{lead} has no change that is resolved ({why})."
        return
    told = [f"{shown(str(row['persona']))} {moves(row)}" for _, row in found.iterrows()]
    yield f"{lead} has changes that are resolved: {'; '.join(told[:_MANY])}{_and_more(told)}."


def beyond_floor(rows: pd.DataFrame, floor: pd.DataFrame) -> Iterator[str]:
    """One sentence on what lies beyond the noise floor of one metric though no test against this base resolves it."""
    if floor.empty:
        return
    metric = str(rows["metric"].iloc[0])
    resolved = rows[rows["p_holm"] < SIGNIFICANT]
    already = set(zip(resolved["persona"], resolved["stratum"], strict=True))
    beyond = floor[(floor["metric"] == metric) & (floor["p_holm"] < SIGNIFICANT)]
    beyond = beyond[[arm not in already for arm in zip(beyond["persona"], beyond["stratum"], strict=True)]]
    if beyond.empty:
        return
    told = []
    for persona, part in beyond.groupby("persona", sort=False):
        sizes = [
            f"{_number(row['effect'], metric)}{_unit(metric)} {_where(row)} ({_p(row['p_holm'])})"
            for _, row in part.iterrows()
        ]
        told.append(f"{shown(str(persona))} {listed(sizes)}")
    lead = f"Beyond the noise floor of {in_words(metric)} on these very cases"
    yield (
        f"{lead}, though unresolved against {_base(rows.iloc[0])}: {'; '.join(told[:_MANY])}{_and_more(told)}. The "
        "floor weighs wordings only; how far other cases would agree, the paired tests say."
    )


_MANY = 8
"""Personas that one sentence names at most."""


def _and_more(told: list[str]) -> str:
    return f"; and {len(told) - _MANY} more, in the tables" if len(told) > _MANY else ""


def _explored(rows: pd.DataFrame) -> pd.Series:
    """Rows that no one decided on beforehand."""
    return rows["family"] != CONFIRMATORY if "family" in rows else pd.Series(True, index=rows.index)


def _base(row: pd.Series) -> str:
    return base_name(str(row["base"]))


def base_name(base: str) -> str:
    """The base of a comparison in words."""
    return "the mean of the control wordings" if base == CONTROLS else shown(base)


def _where(row: pd.Series) -> str:
    return "over all cases" if row["stratum"] == ALL else f"in {shown(str(row['stratum']))}"


def moves(row: pd.Series) -> str:
    """``rises by 19.3 pp in emergency [+11.2, +27.3] (300 pairs, p < .001)``."""
    if pd.isna(row["difference"]):
        return f"is undefined {_where(row)}"
    metric = str(row["metric"])
    verb = "rises" if row["difference"] > 0 else "falls" if row["difference"] < 0 else "moves"
    test = _p(row["p_holm"]) or "untested"
    unresolved = "" if row["p_holm"] < SIGNIFICANT else ", unresolved"
    limits = f" [{_number(row['low'], metric)}, {_number(row['high'], metric)}]" if pd.notna(row["low"]) else ""
    size = f"{verb} by {_number(abs(row['difference']), metric).removeprefix('+')}{_unit(metric)}"
    return f"{size} {_where(row)}{limits} ({_pairs(row)}, {test}{unresolved})"


def _pairs(row: pd.Series) -> str:
    """``300 pairs``, or ``150 pairs of 30 cases`` where wordings or seeds repeat a case."""
    cases = row.get("cases", np.nan)
    return plural(row["n"], "pair") + (f" of {plural(cases, 'case')}" if cases < row["n"] else "")


def omnibus(table: pd.DataFrame, metric: str) -> Iterator[str]:
    """Whether the personas differ at all, all of them at once, by the test that the table names."""
    rows = table[table["metric"] == metric] if len(table) else table
    if rows.empty:
        return
    tested = rows[rows["p_holm"].notna()]
    every = f"All {plural(rows['personas'].iloc[0], 'persona')} at once, {in_words(metric)}"
    for test, part in tested.groupby("test", sort=False):
        sign = "T²" if str(test).startswith("Hotelling") else "Q"
        told = []
        for _, row in part.iterrows():
            size = f"{sign}\u00a0=\u00a0{row['Q']:.1f} " if pd.notna(row["Q"]) else ""
            told.append(f"{_where(row)} {size}({_p(row['p_holm'])})")
        name = str(test).replace("^2", "²")
        yield f"{every}: {listed(told)}; {name}, df {part['df'].iloc[0]:.0f}, Holm-adjusted."
    lost = rows[rows["p_holm"].isna()]
    if len(lost):
        why = str(lost["note"].iloc[0] or "undefined").removeprefix("undefined: ")
        yield f"{every}, could not be tested {listed([_where(row) for _, row in lost.iterrows()])}: {why}."


def _against_floor(row: pd.Series, floor: pd.DataFrame) -> str:
    """The noise floor's verdict on this effect, empty where there is no floor for it."""
    if floor.empty:
        return ""
    same = (floor["metric"] == row["metric"]) & (floor["persona"] == row["persona"])
    found = floor[same & (floor["stratum"] == row["stratum"])]
    if found.empty or pd.isna(found["p_holm"].iloc[0]):
        return ", noise floor unknown"
    against = found.iloc[0]
    verdict = "beyond" if against["p_holm"] < SIGNIFICANT else "within"
    size = _number(against["effect"], str(row["metric"])) + _unit(str(row["metric"]))
    controls = plural(against["k"], "control wording")
    return f", {verdict} the noise floor ({size} from the mean of {controls}, {_p(against['p_holm'])})"


def _could_show(rest: pd.DataFrame, metric: str) -> str:
    if "detectable" not in rest or not rest["detectable"].notna().any():
        return ""
    low, high = (_number(value, metric).removeprefix("+") for value in rest["detectable"].agg(["min", "max"]))
    size = low if low == high else f"{low} to {high}"
    return f"; at this n a difference of {size}{_unit(metric)} had 80\u00a0% power, before adjustment"


def _unparsed_could(resolved: pd.DataFrame, metric: str) -> str:
    """A warning where unparsed answers could undo a resolved difference."""
    if "worst" not in resolved or "best" not in resolved:
        return ""
    low, high = resolved[["worst", "best"]].min(axis=1), resolved[["worst", "best"]].max(axis=1)
    undone = resolved[(low <= 0) & (high >= 0) & (low < high)]
    if undone.empty:
        return ""
    row = undone.iloc[0]
    ends = sorted((float(row["worst"]), float(row["best"])))
    where = _where(row)
    limits = f"{_number(ends[0], metric)} and {_number(ends[1], metric)}{_unit(metric)}"
    return f" Unparsed answers could undo this: {where} the difference lies between {limits}, however they are counted."


def _p(p: float) -> str:
    text = p_value(p)
    return "" if text == DASH else f"p\u00a0{text}" if text.startswith("<") else f"p\u00a0=\u00a0{text}"


def _number(value: float, metric: str) -> str:
    return points(value) if metric in IN_POINTS else signed(value)


def _unit(metric: str) -> str:
    return "\u00a0pp" if metric in IN_POINTS else ""
