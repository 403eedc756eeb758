"""The compact table for a terminal. Knows tidy metrics; computes no statistic."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from probe.report.blocks import rows_of_arm, silent
from probe.report.numbers import DASH, decimal
from probe.report.style import arms, shown


def terminal_table(metrics: pd.DataFrame, *, brief: bool = False) -> Table:
    """One line per persona and stratum, at most 110 columns wide; planned values, where there are any, in brackets.

    Consistency is over parsed answers; ECE has the range of a perfectly calibrated model beside it; sensitivity is
    type I : type II errors = their ratio. ``brief`` leaves out planned values and null ranges, for 80 columns.
    """
    planned = not brief and bool(metrics["planned"].notna().any())
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0, header_style="bold")
    said = ["stated, latent: accuracy of either label.", "CR: consistency over parsed answers."]
    said += [] if brief else ["null: ECE if calibrated."]
    said += ["high risk: share called high-urgency.", "I:II: over- to under-triage."]
    said += ["[planned] on the same cells."] if planned else []
    table.caption = Text(" ".join(said), justify="left")
    table.add_column("persona", no_wrap=True, max_width=20 if brief else 22)
    table.add_column("cases", no_wrap=True, max_width=13)
    for name in ("n", "stated", "latent", "CR", "ECE" if brief else "ECE (null)", "high risk", "I:II ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    last, (personas, strata) = "", arms(metrics)
    for persona, stratum in itertools.product(personas, strata):
        arm = rows_of_arm(metrics, persona, stratum)
        # Where no answer states a label (all cut off, say) a stated share of .00 would read as a finding.
        mute = silent(arm)
        values = [_value(arm.get("accuracy"), planned, mute)]
        values += [_value(arm.get(name), planned) for name in ("accuracy_latent", "consistency")]
        values += [_ece(arm.get("ece"), brief)]
        values += [_value(arm.get("risk_propensity"), planned, mute), _errors(arm.get("risk_sensitivity"))]
        if last and persona != last:
            table.add_section()
        name = shown(persona) if persona != last else ""
        table.add_row(Text(name), Text(shown(stratum)), _count(arm), *map(Text, values))
        last = persona
    return table


def _count(arm: Mapping[str, pd.Series]) -> str:
    row = arm.get("accuracy", arm.get("accuracy_latent"))
    return DASH if row is None else f"{row['n']:.0f}"


def _value(row: pd.Series | None, planned: bool, mute: bool = False) -> str:
    if row is None:
        return DASH
    value = decimal(None if mute else row["value"])
    return f"{value} [{decimal(row['planned'])}]" if planned else value


def _ece(row: pd.Series | None, brief: bool) -> str:
    if row is None or pd.isna(row["value"]):
        return DASH
    null = "" if brief else f" ({decimal(row['null_low'])}–{decimal(row['null_high'])})"
    return decimal(row["value"]) + null


def _errors(row: pd.Series | None) -> str:
    if row is None or not row["counts"]:
        return DASH
    counts = row["counts"]
    ratio = "undef." if pd.isna(row["value"]) else f"{row['value']:.2f}"
    return f"{counts['type_1']:.0f}:{counts['type_2']:.0f} {ratio}"
