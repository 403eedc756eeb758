"""Tables of the page, as text in rows. Knows tidy metrics and differences; knows no HTML and computes no statistic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from probe.report.numbers import DASH, decimal, interval, p_value, plural, points, signed
from probe.report.style import METRIC_NAMES, arms, shown
from probe.values import ALL

SIGNIFICANT = 0.05

BLOCKS: dict[str, tuple[str, ...]] = {
    "Accuracy, consistency and calibration": (
        *("accuracy", "accuracy_latent", "consistency", "consistency_strict", "ece", "overconfidence"),
        *("brier", "log_loss"),
    ),
    "Risk": (
        *("risk_propensity", "risk_propensity_latent", "risk_sensitivity", "risk_sensitivity_latent"),
        *("risk_log_ratio", "over_triage_rate", "under_triage_rate"),
        *("expected_urgency_latent", "expected_urgency_stated"),
    ),
    "What was parsed, and how much the labels weigh": ("parse_rate", "refusal_rate", "label_mass"),
}
"""Metrics of each table of the page."""

STATED_SHARES = ("accuracy", "consistency_strict", "risk_propensity")
"""Shares of all answers that say nothing where no answer was parsed."""

IN_POINTS = {"accuracy", "accuracy_latent", "consistency_strict", "consistency_both", "ece", "risk_propensity"}
"""Differences shown in percentage points; the others are in the metric's own unit."""


def metric_blocks(metrics: pd.DataFrame) -> list[dict[str, Any]]:
    """Per block a table: personas as rows, grouped by stratum, metrics as columns."""
    blocks = []
    for title, names in BLOCKS.items():
        groups = []
        personas, strata = arms(metrics)
        for stratum in strata:
            rows = []
            for persona in personas:
                arm = rows_of_arm(metrics, persona, stratum)
                # Where no answer states a label (all cut off, say) a stated share of .00 would read as a finding.
                hidden = STATED_SHARES if arm["parse_rate"]["value"] == 0 else ()
                cells = [_cell(arm[name]) if name not in hidden else _nothing(arm[name]) for name in names]
                rows.append({"persona": shown(persona), "cells": cells})
            groups.append({"title": shown(stratum), "rows": rows})
        blocks.append({"title": title, "columns": [METRIC_NAMES[name] for name in names], "groups": groups})
    return blocks


def comparison_blocks(comparisons: pd.DataFrame) -> list[dict[str, Any]]:
    """Per metric a table of differences, with a line that says how many are resolved."""
    blocks, order = [], arms(comparisons)[0]
    for metric, part in comparisons.groupby("metric", sort=False):
        rows = part.sort_values("stratum", key=lambda stratum: stratum == ALL, kind="stable")
        rows = rows.sort_values("persona", key=lambda persona: persona.map(order.index), kind="stable")
        in_points = metric in IN_POINTS
        tested, starred = int(rows["p"].notna().sum()), int((rows["p_holm"] < SIGNIFICANT).sum())
        told = f"{starred} of {plural(tested, 'test')} with Holm p < .05" if tested else "described, not tested"
        blocks.append(
            {
                "title": METRIC_NAMES[str(metric)] + (" (percentage points)" if in_points else ""),
                "told": told,
                "rows": [_difference(row, in_points) for _, row in rows.iterrows()],
            }
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
    return {"value": decimal(row["value"]), "small": [line for line in small if line], "plan": plan}


def _nothing(row: pd.Series) -> dict[str, Any]:
    return {"value": DASH, "small": [f"0 of {row['n']:.0f} parsed"], "plan": ""}


def _difference(row: pd.Series, in_points: bool) -> dict[str, str]:
    def number(value: float) -> str:
        if np.isnan(value):
            return DASH
        return points(value) if in_points else signed(value)

    limits = "" if pd.isna(row["low"]) else f"[{number(row['low'])}, {number(row['high'])}]"
    star = " *" if row["p_holm"] < SIGNIFICANT else ""
    return {
        "persona": shown(row["persona"]),
        "stratum": shown(row["stratum"]),
        "difference": number(row["difference"]),
        "mark": star + (" ⇄" if row["signs_differ"] else ""),
        "interval": limits,
        "plan": number(row["planned"]),
        "n": f"{row['n']:.0f}",
        "discordant": "" if pd.isna(row["b"]) else f"{row['b']:.0f} : {row['c']:.0f}",
        "p": p_value(row["p"]),
        "p_holm": p_value(row["p_holm"]),
        "method": "; ".join(filter(None, (row["test"] or row["method"], row["note"]))),
    }
