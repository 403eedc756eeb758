"""What a terminal shows of prompting against steering. Computes nothing."""

from __future__ import annotations

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from probe.report.numbers import decimal, interval, listed, p_value, plural, signed
from probe.report.style import metric_name, shown
from probe.stages.steer import SteerTables
from probe.stages.steer_plan import SteerPlan
from probe.stages.terminal import console, say
from probe.values import ALL

FEW = {
    "reworded": "reworded",
    "steered": "steered",
    "ablated": "ablated",
    "label_contrast": "label contrast",
    "nonsense": "nonsense",
}
"""Kinds of arm with a line of their own, as a terminal names them; all arms are in the tables."""


def show_plan(plan: SteerPlan) -> None:
    """What a comparison would do."""
    parts = listed([f"{n:,} {name}" for name, n in plan.cases.items()])
    layers = listed([str(layer) for layer in plan.layers])
    say(f"personas: {listed([shown(one) for one in plan.personas])}; residual points to choose from: {layers}")
    say(f"cases: {parts}; directions are fitted on train, strengths settled on validation, results told of test")
    say(f"about {plan.reads:,} label reads of edited prompts; at most {plan.answers:,} written answers, and")
    say(f"{plan.read_again:,} reads of these texts by the unprompted and the prompted model")


def show_steering(tables: SteerTables) -> None:
    """The layer and strength of each persona, what each arm recovers, where it stands, and what broke."""
    for note in tables.notes:
        say(f"left out: {note}")
    _tell_layers(tables.layers)
    for position in dict.fromkeys(tables.recovery["position"]):
        _show_recovered(tables, position)
    _tell_standing(tables)
    _tell_collapse(tables.response)


def _tell_layers(layers: pd.DataFrame) -> None:
    for _, row in layers[layers["chosen"]].iterrows():
        say(
            f"{shown(row['persona'])}: residual point {row['layer']:.0f}, {decimal(row['strength'], 3)} residual norms "
            f"({decimal(row['own_strength'])} of the direction's own), dose {row['dose']:.2g} of "
            f"{row['wanted']:.2g} nats on {plural(row['n'], 'validation case')}"
        )


def _show_recovered(tables: SteerTables, position: str) -> None:
    recovery, pattern = tables.recovery, tables.pattern
    outcome = recovery["outcome"].iloc[0]
    rows = recovery[(recovery["position"] == position) & (recovery["outcome"] == outcome)]
    rows = rows[(rows["stratum"] == ALL) & rows["kind"].isin(list(FEW))]
    if rows.empty:
        return
    fits = pattern[(pattern["position"] == position) & (pattern["stratum"] == ALL)]
    fit = {(r["persona"], r["arm"], r["quantity"]): r["value"] for _, r in fits.iterrows()}
    where = "stated label, held-out cases that state one" if position == "stated" else f"labels at {position}"
    base = shown(str(rows["base"].iloc[0]))
    fits_told = "F: fit of the shifts, case by case, and without their means"
    say(f"\n{metric_name(str(outcome))} against {base}, {where} [95 %]; {fits_told}")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("persona", "arm", "change", "of", "recovered", "F", "no means", "verdict"):
        table.add_column(name, justify="left" if name in ("persona", "arm", "verdict") else "right", no_wrap=True)
    seen = ""
    for _, row in rows.iterrows():
        first = row["persona"] != seen
        seen = row["persona"]
        share = decimal(row["recovered"])
        if pd.notna(row["recovered"]):
            share = f"{share} {interval(row['recovered_low'], row['recovered_high'])}"
        shape = [decimal(fit.get((row["persona"], row["arm"], name))) for name in ("fit", "fit_centred")]
        cells = [shown(row["persona"]) if first else "", FEW[row["kind"]], signed(row["difference"], 2)]
        table.add_row(*map(Text, [*cells, signed(row["prompted"], 2), share, *shape, str(row["verdict"])]))
    console().print(table)
    for _, row in rows[rows["broken"].fillna("") != ""].iterrows():
        say(f"{shown(row['persona'])}, {FEW[row['kind']]}: broken: {row['broken']}")
    for _, row in rows[~rows["reached"].astype(bool)].iterrows():
        why = f": {row['note']}" if row["note"] else ""
        say(f"{shown(row['persona'])}, {FEW[row['kind']]}: without the prompt's dose, so not to be compared{why}")


def _tell_standing(tables: SteerTables) -> None:
    rows = tables.standing
    if rows.empty:
        return
    say("\namong directions at their own equal dose (fit F): steered, the middle 95 % of random ones, rank p")
    rows = rows[(rows["stratum"] == ALL) & (rows["quantity"] == "fit") & rows["p"].notna()]
    for _, row in rows.iterrows():
        counts = ((row["n_unreached"], "never reach the dose"), (row["n_broken"], "break the model"))
        told = "".join(f"; {n:.0f} {words}" for n, words in counts if n)
        drawn = f"{plural(row['n'], 'draw')} of kind {row['kind']} {interval(row['low'], row['high'])}"
        own = f"{shown(row['persona'])} ({row['position']}): {decimal(row['steered'])}"
        say(f"{own} against {drawn}, p {p_value(row['p'])}{told}")


def _tell_collapse(response: pd.DataFrame) -> None:
    if response.empty:
        return
    own = response[response["kind"] == "steered"].drop_duplicates("persona")
    told = [
        f"{shown(row['persona'])} from {decimal(row['collapse'])}"
        for _, row in own.iterrows()
        if pd.notna(row["collapse"])
    ]
    if told:
        say(f"broken by its own direction (residual norms): {listed(told)}")
