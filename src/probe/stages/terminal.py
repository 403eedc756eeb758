"""What a terminal shows of a run. Knows outcomes and tables; computes and writes nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from probe.stages.absent_sites import absent_sentences
from probe.values.visible import visible

if TYPE_CHECKING:
    from probe.stages.analysis import BehaviourTables
    from probe.stages.policy import CaptureOutcome

WIDE = 110
"""Columns of the widest table: the width where output goes to a file or a pipe."""


def console() -> Console:
    """Standard output."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=WIDE)


def say(text: str) -> None:
    """One line, never wrapped, so that a path can be copied; names in it are shown as they are, never as markup."""
    console().print(visible(text), markup=False, soft_wrap=True)


def show_metrics(tables: BehaviourTables, cells: pd.DataFrame, *, equal_mass: bool = False) -> None:
    """The compact table of metrics, what could not be computed, and how many answers stated no label, by reason.

    ``equal_mass`` shows the ECE over bins of equal mass in place of that over bins of equal width.
    """
    from probe import report

    out = console()
    metrics = tables.metrics
    if equal_mass:
        metrics = metrics[metrics["metric"] != "ece"].replace({"metric": {"ece_equal_mass": "ece"}})
    out.print(report.terminal_table(metrics, brief=out.width < WIDE))
    if equal_mass:
        say("ECE here is over bins of equal mass; metrics.csv has both")
    lacking = tables.metrics["note"][tables.metrics["note"].str.contains("is not known; ", regex=False)]
    for note in lacking.unique():
        n = tables.metrics["metric"][tables.metrics["note"] == note].nunique()
        say(f"{n} of the metrics are {note}")
    for sentence in tables.metrics.attrs.get("absent", ()):
        say(sentence)
    if not cells.get("stratum", pd.Series(dtype=str)).fillna("").astype(bool).any():
        say("no case has a stratum: all figures are pooled, which can hide effects of opposite signs")
    if "status" not in cells:
        return
    unparsed = cells["status"][cells["status"] != "parsed"].value_counts()
    if len(unparsed):
        reasons = ", ".join(f"{n:,} {status}" for status, n in unparsed.items())
        remedy = "; raise generation.max_new_tokens" if "truncated" in unparsed else ""
        say(f"{unparsed.sum():,} of {len(cells):,} answers state no label: {reasons}{remedy}")


def show_shift(pooled: pd.DataFrame) -> None:
    """The size of each persona's shift, one column per residual point; below the noise floor in brackets.

    The floor is that of the largest over all points, because a reader looks at all of them.
    """
    layers = sorted(pooled["layer"].unique())
    at = str(pooled["position"].iloc[0])
    title = f"common shift / residual norm at {at}, by residual point; (in the noise)"
    table = Table("persona", *(str(layer) for layer in layers), title=Text(title))
    for persona, rows in pooled.groupby("persona", sort=False):
        by_layer = rows.set_index("layer")
        table.add_row(Text(str(persona)), *(_size(by_layer.loc[layer]) for layer in layers))
    console().print(table)


def _size(row: pd.Series) -> str:
    if pd.isna(row["value"]):
        return "undefined"
    shown = f"{row['value']:.3f}"
    return shown if row["value"] > row["floor_max"] else f"({shown})"


def announce_capture(outcome: CaptureOutcome) -> None:
    """How a capture ended, in one line, and what failed in another."""
    new = outcome.committed - outcome.resumed
    done = f"{new:,} captured in {outcome.seconds:.1f} s" if new else "nothing to compute"
    say(
        f"{outcome.committed:,} of {outcome.planned:,} cells in {outcome.store} "
        f"({outcome.resumed:,} were there before; {done})"
    )
    for sentence in absent_sentences(outcome.absent, new):
        say(sentence)
    if outcome.share:
        missing = outcome.planned - outcome.committed - outcome.failed - outcome.left
        others = f"; the other writers have {missing:,} to do" if missing else "; no writer has anything left to do"
        say(f"writer {outcome.share} has {outcome.left:,} cells left{others}")
    if outcome.failed:
        say(f"{outcome.failed:,} cells failed for good; `probe store ls {outcome.store}` says why")


def announce_files(folder: Path, written: Sequence[Path]) -> None:
    """Which files a command wrote."""
    kinds = {suffix: sum(path.suffix == suffix for path in written) for suffix in (".png", ".svg", ".pdf", ".csv")}
    told = ", ".join(f"{n} {suffix[1:].upper()}" for suffix, n in kinds.items() if n)
    if told:
        say(f"wrote {told} to {folder}{os.sep}")
    for page in written:
        if page.name == "report.html":
            say(f"report: {page}")
