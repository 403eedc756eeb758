"""What personas change, in sentences made from the tests. Knows comparisons, the noise floor and Cochran's Q."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

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
    return name if name[:2].isupper() else name[0].lower() + name[1:]


def planned_contrasts(comparisons: pd.DataFrame) -> Iterator[str]:
    """One sentence for every contrast that was decided beforehand, resolved or not."""
    for _, row in comparisons[comparisons["family"] == "confirmatory"].iterrows():
        base = shown(str(row["base"]))
        yield f"{shown(str(row['persona']))} against {base}: {in_words(str(row['metric']))} {moves(row)}."


def effects(rows: pd.DataFrame, floor: pd.DataFrame) -> Iterator[str]:
    """Sentences on one metric against one base, persona by persona; what is unresolved is told together."""
    metric = str(rows["metric"].iloc[0])
    what = in_words(metric)
    unresolved: list[pd.DataFrame] = []
    untested: list[str] = []
    for persona, part in rows.groupby("persona", sort=False):
        resolved = part["p_holm"] < SIGNIFICANT
        name = shown(str(persona))
        if not resolved.any():
            if part["p"].notna().any():
                unresolved.append(part)
            else:
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
        names = listed([shown(str(name)) for name in rest["persona"].drop_duplicates()])
        why = f"Holm-adjusted p ≥ .05 everywhere{_could_show(rest, metric)}"
        yield f"No change of {what} is resolved for {names} ({why})."
    if untested:
        yield f"No change of {what} could be tested for {listed(untested)}: no pair of cases qualifies."


def moves(row: pd.Series) -> str:
    """``rises by 19.3 pp in emergency [+11.2, +27.3] (300 pairs, p < .001)``."""
    where = "over all cases" if row["stratum"] == ALL else f"in {shown(row['stratum'])}"
    if pd.isna(row["difference"]):
        return f"is undefined {where}"
    metric = str(row["metric"])
    verb = "rises" if row["difference"] > 0 else "falls" if row["difference"] < 0 else "moves"
    test = _p(row["p_holm"]) or "untested"
    unresolved = "" if row["p_holm"] < SIGNIFICANT else ", unresolved"
    limits = f" [{_number(row['low'], metric)}, {_number(row['high'], metric)}]" if pd.notna(row["low"]) else ""
    size = f"{verb} by {_number(abs(row['difference']), metric).removeprefix('+')}{_unit(metric)}"
    return f"{size} {where}{limits} ({plural(row['n'], 'pair')}, {test}{unresolved})"


def omnibus(table: pd.DataFrame, metric: str) -> Iterator[str]:
    """Whether the personas differ at all, all of them at once (Cochran's Q)."""
    rows = table[table["metric"] == metric] if len(table) else table
    told = []
    for _, row in rows.iterrows():
        if pd.isna(row.get("p_holm", np.nan)):
            continue
        where = "over all cases" if row["stratum"] == ALL else f"in {shown(row['stratum'])}"
        told.append(f"{where} Q\u00a0=\u00a0{row['Q']:.1f} ({_p(row['p_holm'])})")
    if told:
        df, n = rows["df"].iloc[0], plural(rows["personas"].iloc[0], "persona")
        yield f"All {n} at once, {in_words(metric)}: {listed(told)}; Cochran's Q, df {df:.0f}, Holm-adjusted."


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
    where = "over all cases" if row["stratum"] == ALL else f"in {shown(row['stratum'])}"
    limits = f"{_number(ends[0], metric)} and {_number(ends[1], metric)}{_unit(metric)}"
    return f" Unparsed answers could undo this: {where} the difference lies between {limits}, however they are counted."


def _p(p: float) -> str:
    text = p_value(p)
    return "" if text == DASH else f"p\u00a0{text}" if text.startswith("<") else f"p\u00a0=\u00a0{text}"


def _number(value: float, metric: str) -> str:
    return points(value) if metric in IN_POINTS else signed(value)


def _unit(metric: str) -> str:
    return "\u00a0pp" if metric in IN_POINTS else ""
