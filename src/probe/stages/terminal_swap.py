"""What a terminal shows of a text swap. Computes nothing."""

from __future__ import annotations

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from probe.mechanism.swap.listener import EVERYONE, PAIR
from probe.report.numbers import decimal, interval, listed, p_value, plural, signed
from probe.report.style import arms, metric_name, shown
from probe.stages.swap import SwapTables
from probe.stages.swap_reads import TOLERANCE
from probe.stages.swap_texts import SWAPPED
from probe.stages.terminal import console, say
from probe.values import ALL

PARTS = {"latent": "before any text", "total": "total", "text": "through the text", "direct": "directly"}


def show_swap(tables: SwapTables) -> None:
    """The control, what was left out, the paths and verdict of each persona, and who can be told by its text."""
    _tell_control(tables.control)
    _tell_left_out(tables.left_out)
    if tables.elsewhere:
        reads = plural(tables.elsewhere, "masked read")
        say(f"{reads} left out: with the words masked, the letter was found at another token")
    _show_paths(tables)
    _show_identifiability(tables.identifiability, tables.parroting)


def _tell_control(control: pd.DataFrame) -> None:
    if control.empty:
        say("control: the store of the generated answers is not beside the reads, so Y(p,p) is not checked against it")
        return
    largest, largest_p = control["largest"].max(), control["largest_p"].max()
    what = (
        f"control: each persona's own text read again, {plural(control['rows'].sum(), 'text')}: label log-probabilities"
    )
    if control["same"].all():
        say(f"{what} as while it was generated (largest difference {largest:.1e} nats; at most {TOLERANCE:.0e})")
        return
    off = listed([shown(name) for name in control.loc[~control["same"], "persona"]])
    say(
        f"{what} differ by up to {largest:.1e} nats (probability {largest_p:.1e}) from those while it was generated "
        f"({off}): low precision or another batch size does that, and no effect of this size means anything"
    )


def _tell_left_out(left_out: pd.DataFrame) -> None:
    if left_out.empty:
        return
    for persona, part in left_out.groupby("persona", sort=False):
        counts = part.groupby("reason", sort=False)["n"].sum()
        n, swapped = int(counts.sum()), int(counts.get(SWAPPED, 0))
        if swapped < n:
            why = listed([f"{k:,} {reason}" for reason, k in counts.items() if reason != SWAPPED])
            say(f"{shown(str(persona))}: {swapped:,} of {n:,} texts swapped; left out: {why}")


def _show_paths(tables: SwapTables) -> None:
    verdicts = tables.verdicts
    if verdicts.empty:
        say("nothing is told apart: no persona beside the base has a letter behind a text in the same case")
        return
    outcome, base, margin = (verdicts[name].iloc[0] for name in ("outcome", "base", "margin"))
    say(f"\n{metric_name(outcome)} of the stated label, against {shown(base)} [95 %]; moved: beyond {decimal(margin)}")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("persona", "cases", *PARTS.values(), "verdict"):
        table.add_column(name, justify="right" if name in PARTS.values() else "left", no_wrap=True)
    effects = tables.effects[tables.effects["outcome"] == outcome]
    by_arm = {(r["persona"], r["stratum"], r["quantity"]): r for _, r in effects[~effects["masked"]].iterrows()}
    verdict = {(r["persona"], r["stratum"], r["masked"]): r for _, r in verdicts.iterrows()}
    personas, strata = arms(verdicts)
    for persona in personas:
        for i, stratum in enumerate(strata):
            parts = [_part(by_arm.get((persona, stratum, name))) for name in PARTS]
            told = verdict[persona, stratum, False]["verdict"]
            table.add_row(*map(Text, (shown(persona) if i == 0 else "", shown(stratum), *parts, told)))
    console().print(table)
    for (persona, stratum, masked), row in verdict.items():
        where, plain = f"{shown(persona)}, {shown(stratum)}", verdict.get((persona, stratum, False))
        if masked and plain is not None and row["verdict"] != plain["verdict"]:
            say(f"{where}: {plain['verdict']}; with persona words masked: {row['verdict']}")
        elif not masked and row["interaction"] == "moved":
            say(f"{where}: {row['note']}")


def _part(row: pd.Series | None) -> str:
    if row is None or pd.isna(row["value"]):
        return decimal(None)
    return f"{signed(row['value'], 2)} {interval(row['low'], row['high'])}"


def _show_identifiability(told: pd.DataFrame, parroted: pd.DataFrame) -> None:
    rows = told[(told["stratum"] == ALL) & ~told["masked"] & told["among"].isin([PAIR, EVERYONE])]
    if rows.empty:
        return
    say("\nwho wrote the text? bits that it tells [95 %] of those it could; floor: authors permuted within a case")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("persona", "among", "bits", "of", "floor", "Holm p", "right", "masked"):
        table.add_column(name, justify="left" if name in ("persona", "among") else "right", no_wrap=True)
    fallen = {(r["among"], r["persona"]): r for _, r in parroted.iterrows() if r["stratum"] == ALL}
    for _, row in rows.iterrows():
        fall = fallen.get((row["among"], row["persona"]))
        bits = f"{decimal(row['value'])} {interval(row['low'], row['high'])}"
        table.add_row(
            Text("all" if row["persona"] == ALL else shown(row["persona"])),
            row["among"],
            bits,
            decimal(row["most"]),
            decimal(row["floor"]),
            p_value(row["p_adjusted"]),
            decimal(row["right"]),
            decimal(None if fall is None else fall["masked"]),
        )
    console().print(table)
