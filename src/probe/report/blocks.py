"""Tables of the page, as text in rows. Knows tidy metrics and differences; knows no HTML and computes no statistic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from probe.report.effect_sentences import IN_POINTS
from probe.report.numbers import DASH, SIGNIFICANT, decimal, interval, p_value, plural, points, signed
from probe.report.style import arms, metric_name, shown
from probe.values import ALL

BLOCKS: dict[str, tuple[str, ...]] = {
    "Accuracy and consistency": (
        *("accuracy", "accuracy_latent", "consistency", "consistency_strict", "kappa"),
        *("consistency_letter_first", "consistency_later_letter"),
    ),
    "Calibration of the latent label, and of the stated answer": (
        *("ece", "ece_equal_mass", "ece_debiased_sq", "ece_classwise", "smooth_ece", "overconfidence", "brier"),
        *("log_loss", "stated_ece", "stated_overconfidence", "stated_brier"),
    ),
    "Risk": (
        *("risk_propensity", "risk_propensity_latent", "risk_sensitivity", "risk_sensitivity_latent"),
        *("risk_log_ratio", "over_triage_rate", "under_triage_rate"),
        *("expected_urgency_latent", "expected_urgency_stated"),
    ),
    "What was parsed, and how much the labels weigh": (
        *("parse_rate", "refusal_rate", "unparsable_rate", "truncated_rate", "conflicting_rate"),
        *("label_mass", "low_mass_rate", "entropy", "margin"),
    ),
}
"""Metrics of each table of the page; what else the metrics hold stands in a last one."""

STATED_SHARES = ("accuracy", "consistency_strict", "risk_propensity")
"""Shares of all answers that say nothing where no answer was parsed."""


def metric_blocks(metrics: pd.DataFrame) -> list[dict[str, Any]]:
    """Per block a table: personas as rows, grouped by stratum, metrics as columns; absent metrics have no column."""
    found = list(dict.fromkeys(metrics["metric"]))
    named = {name for names in BLOCKS.values() for name in names}
    wanted = {**BLOCKS, "Label distributions and the rest": tuple(name for name in found if name not in named)}
    personas, strata = arms(metrics)
    rows = {(persona, stratum): rows_of_arm(metrics, persona, stratum) for persona in personas for stratum in strata}
    blocks = []
    for title, listed in wanted.items():
        names = [name for name in listed if name in found]
        groups = [
            {
                "title": shown(stratum),
                "rows": [{"persona": shown(name), "cells": _cells(rows[name, stratum], names)} for name in personas],
            }
            for stratum in strata
        ]
        if names:
            blocks.append({"title": title, "columns": [metric_name(name) for name in names], "groups": groups})
    return blocks


def _cells(arm: Mapping[str, pd.Series], names: Sequence[str]) -> list[dict[str, Any]]:
    # Where no answer states a label (all cut off, say) a stated share of .00 would read as a finding.
    hidden = STATED_SHARES if silent(arm) else ()
    cells = []
    for name in names:
        if name not in arm:
            cells.append({"value": DASH, "small": [], "plan": ""})
        else:
            cells.append(_nothing(arm[name]) if name in hidden else _cell(arm[name]))
    return cells


def silent(arm: Mapping[str, pd.Series]) -> bool:
    """Does no answer of this arm state a label?"""
    return "parse_rate" in arm and bool(arm["parse_rate"]["value"] == 0)


def comparison_blocks(comparisons: pd.DataFrame) -> list[dict[str, Any]]:
    """Per base and metric a table of differences, with a line that says how many are resolved."""
    blocks, order = [], arms(comparisons)[0]
    bases = list(dict.fromkeys(comparisons["base"]))
    for (base, metric), part in comparisons.groupby(["base", "metric"], sort=False):
        rows = part.sort_values("stratum", key=lambda stratum: stratum == ALL, kind="stable")
        rows = rows.sort_values("persona", key=lambda persona: persona.map(order.index), kind="stable")
        in_points = metric in IN_POINTS
        tested, starred = int(rows["p"].notna().sum()), int((rows["p_holm"] < SIGNIFICANT).sum())
        told = f"{starred} of {plural(tested, 'test')} with Holm p < .05" if tested else "described, not tested"
        against = f" against {shown(str(base))}" if len(bases) > 1 else ""
        title = metric_name(str(metric)) + against + (" (percentage points)" if in_points else "")
        blocks.append(
            {"title": title, "told": told, "rows": [_difference(row, in_points) for _, row in rows.iterrows()]}
        )
    return blocks


def rows_of_arm(metrics: pd.DataFrame, persona: str, stratum: str) -> dict[str, pd.Series]:
    """The row of each metric for one persona in one stratum."""
    arm = metrics[(metrics["persona"] == persona) & (metrics["stratum"] == stratum)]
    return {str(row["metric"]): row for _, row in arm.iterrows()}


def _cell(row: pd.Series) -> dict[str, Any]:
    small = [interval(row["low"], row["high"])]
    if not pd.isna(row["null_low"]):
        small = [f"null {decimal(row['null_low'])}–{decimal(row['null_high'])}"]
    counts = row["counts"]
    if "type_1" in counts:
        small.append(f"{counts['type_1']:.0f} I : {counts['type_2']:.0f} II")
    elif "k" in counts:
        small.append(f"{counts['k']:.0f} of {row['n']:.0f}")
    else:
        small.append(f"n = {row['n']:.0f}")
    plan = "" if pd.isna(row["planned"]) else decimal(row["planned"])
    plan += f" ({row['n_planned']:.0f} of {row['n']:.0f})" if plan and row["n_planned"] < row["n"] else ""
    return {"value": decimal(row["value"]), "small": [line for line in small if line], "plan": plan}


def _nothing(row: pd.Series) -> dict[str, Any]:
    return {"value": DASH, "small": [f"0 of {row['n']:.0f} parsed"], "plan": ""}


def _difference(row: pd.Series, in_points: bool) -> dict[str, str]:
    def number(value: float) -> str:
        if np.isnan(value):
            return DASH
        return points(value) if in_points else signed(value)

    limits = "" if pd.isna(row["low"]) else f"[{number(row['low'])}, {number(row['high'])}]"
    star = (" ◆" if row.get("family", "") == "confirmatory" else "") + (" *" if row["p_holm"] < SIGNIFICANT else "")
    return {
        "persona": shown(row["persona"]),
        "stratum": shown(row["stratum"]),
        "difference": number(row["difference"]),
        "mark": star + (" ⇄" if row["signs_differ"] else ""),
        "interval": limits,
        "plan": number(row["planned"]) if "planned" in row else DASH,
        "n": f"{row['n']:.0f}",
        "discordant": "" if pd.isna(row["b"]) else f"{row['b']:.0f} : {row['c']:.0f}",
        "p": p_value(row["p"]),
        "p_holm": p_value(row["p_holm"]),
        "p_bh": p_value(row["p_bh"]) if "p_bh" in row else DASH,
        "detectable": number(row["detectable"]).removeprefix("+") if "detectable" in row else DASH,
        "method": "; ".join(filter(None, (str(row["test"] or row["method"]), str(row["note"] or "")))),
    }
