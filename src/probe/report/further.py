"""Tables beside the metrics and differences of the page: noise floor, variance, risk, rates, letters, sites, causes.

Knows tidy tables; knows no HTML and computes no statistic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from probe.report.effect_sentences import IN_POINTS
from probe.report.figures import Tables
from probe.report.numbers import DASH, SIGNIFICANT, decimal, interval, p_value, points, signed
from probe.report.sites import cause_name, site_name
from probe.report.style import metric_name, shown


def further_blocks(tables: Tables) -> list[dict[str, Any]]:
    """Every further table as columns and rows of text; one without rows is left out."""
    made = [
        *(_floor(tables.floor), _omnibus(tables.omnibus), _variance(tables.variance), _risk(tables.risk)),
        *(_rates(tables.rates), _positions(tables.positions), _sites(tables.sites), _causes(tables.causes)),
    ]
    return [block for block in made if block["rows"]]


def _block(title: str, note: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> dict[str, Any]:
    return {"title": title, "note": note, "columns": list(columns), "rows": [list(row) for row in rows]}


def _arm(row: pd.Series) -> list[str]:
    return [shown(str(row["persona"])), shown(str(row["stratum"]))]


def _floor(table: pd.DataFrame) -> dict[str, Any]:
    rows = []
    for _, row in table.iterrows():
        unit = points if row["metric"] in IN_POINTS else signed
        beyond = "beyond" if row["p_holm"] < SIGNIFICANT else DASH if pd.isna(row["p_holm"]) else "within"
        half = unit(row["floor_half"]).removeprefix("+") if pd.notna(row.get("floor_half", np.nan)) else DASH
        numbers = [unit(row["effect"]), f"±{half}", f"{unit(row['floor_low'])} to {unit(row['floor_high'])}"]
        rank = f"{p_value(row['p_rank'])} (least {p_value(row['p_rank_min'])})"
        counts = f"{row['k']:.0f}, {row['m']:.0f}"
        tests = [p_value(row["p"]), p_value(row["p_holm"]), rank, counts, beyond]
        rows.append([*_arm(row), metric_name(str(row["metric"])), *numbers, *tests])
    note = (
        "Effect: the persona (mean of its wordings) minus the mean of the neutral control wordings, in percentage "
        "points for shares. Floor: what 95 % of controls with as many wordings would stay within."
    )
    columns = ("persona", "cases", "metric", "effect", "floor", "range of controls", "p", "Holm p", "rank p")
    return _block("The noise floor", note, (*columns, "controls, wordings", "floor"), rows)


def _omnibus(table: pd.DataFrame) -> dict[str, Any]:
    rows = []
    for _, row in table.iterrows():
        df = DASH if pd.isna(row["df"]) else f"{row['df']:.0f}"
        found = [decimal(row["Q"]), df, p_value(row["p"]), p_value(row["p_holm"]), f"{row['n']:.0f}"]
        test = "; ".join(filter(None, (str(row.get("test", "")), str(row["note"] or ""))))
        rows.append([shown(str(row["stratum"])), metric_name(str(row["metric"])), *found, test])
    note = "Do the personas differ at all? On cases that every persona has; the statistic is that of the test named."
    columns = ("cases", "metric", "statistic", "df", "p", "Holm p", "n", "test")
    return _block("All personas at once", note, columns, rows)


def _sites(table: pd.DataFrame) -> dict[str, Any]:
    rows = []
    for _, row in table.iterrows():
        rate = [decimal(row["value"]), interval(row["low"], row["high"]), f"{row['n']:.0f}", decimal(row["label_mass"])]
        strict = [decimal(row.get("strict", np.nan)), f"{row.get('n_strict', np.nan):.0f}".replace("nan", DASH)]
        rows.append([*_arm(row), site_name(str(row["site"])), *rate, *strict])
    columns = ("persona", "cases", "labels read", "CR", "95 % interval", "n", "label mass", "strict", "n strict")
    note = "CR over parsed cells; strict: an unparsed answer is a mismatch."
    return _block("Consistency by answer site", note, columns, rows)


def _causes(table: pd.DataFrame) -> dict[str, Any]:
    rows = []
    for _, row in table.iterrows():
        parted = f"{decimal(row['rate_disagree'])} ({row['k_disagree']:.0f} of {row['n_disagree']:.0f})"
        agreed = f"{decimal(row['rate_agree'])} ({row['k_agree']:.0f} of {row['n_agree']:.0f})"
        ratio = f"{decimal(row['ratio'], 1)} {interval(row['ratio_low'], row['ratio_high'], 1)}".strip()
        rows.append([*_arm(row), cause_name(str(row["cause"])), parted, agreed, ratio, decimal(row["share"])])
    columns = ("persona", "cases", "cause", "disagreeing cells", "agreeing cells", "ratio", "exclusive share")
    return _block("Causes of disagreement", "Causes overlap; the share counts each cell once.", columns, rows)


def _variance(table: pd.DataFrame) -> dict[str, Any]:
    rows = []
    for _, row in table.iterrows():
        size = [decimal(row["variance"], 4), interval(row["low"], row["high"], 4), decimal(row["share"])]
        levels = DASH if pd.isna(row["levels"]) else f"{row['levels']:.0f}"
        named = [metric_name(str(row["metric"])), shown(str(row["stratum"])), str(row["component"])]
        rows.append([*named, *size, levels, str(row["note"] or "")])
    columns = ("metric", "cases", "component", "variance", "95 % interval", "share", "levels", "note")
    note = "Wording lies within its persona; run is what all cells of one seed share; seed, asking the same cell again."
    return _block("What makes answers vary", note, columns, rows)


_RISKS = {"sensitivity": "I / II", "log_ratio": "log ratio", "over_rate": "type I rate", "under_rate": "type II rate"}


def _risk(table: pd.DataFrame) -> dict[str, Any]:
    rows: dict[tuple[str, ...], list[str]] = {}
    for _, row in table.iterrows():
        key = (*_arm(row), str(row["cut"]), str(row["labels"]))
        counts = DASH if pd.isna(row["type_1"]) else f"{row['type_1']:.0f} : {row['type_2']:.0f}"
        found = rows.setdefault(key, [*key, counts, *[DASH] * len(_RISKS)])
        if row["metric"] in _RISKS:
            value = f"{decimal(row['value'])} {interval(row['low'], row['high'])}".strip()
            found[len(key) + 1 + list(_RISKS).index(row["metric"])] = value
    note = (
        "Over- (I) and under-triage (II) under three cuts. high-vs-rest: I, high urgency given where the reference is "
        "lower; II, high urgency missed. strict: only the two extremes confused. ordinal: any label above, or below."
    )
    columns = ("persona", "cases", "cut", "label", "I : II", *_RISKS.values())
    return _block("Errors by cut", note, columns, rows.values())


def _rates(table: pd.DataFrame) -> dict[str, Any]:
    groups = table[table["by"] != "persona"] if len(table) else table
    rows = []
    for _, row in groups.iterrows():
        counts = f"{row['k']:.0f} of {row['n']:.0f}"
        rate = [decimal(row["value"]), interval(row["low"], row["high"]), counts]
        rows.append([f"{row['by']}: {shown(str(row['group']))}", shown(str(row["stratum"])), str(row["status"]), *rate])
    columns = ("group", "cases", "answers", "rate", "95 % interval", "counts")
    return _block("How answers were read, by role and category", "By persona: see the metrics.", columns, rows)


def _positions(table: pd.DataFrame) -> dict[str, Any]:
    rows = []
    for _, row in table.iterrows():
        rows.append([*_arm(row), str(row["labels"]), str(row["letter"]), decimal(row["share"]), p_value(row["p"])])
    note = "Share of each letter over all rotations of the options; equal where no place is preferred. p: not adjusted."
    return _block("Letters by place", note, ("persona", "cases", "label", "letter", "share", "p"), rows)
