"""What a terminal shows of a patching run. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from probe.mechanism.patching.estimates import TOLERANCE
from probe.mechanism.patching.grid import DENOISING, HEAD_OUT, RESID
from probe.mechanism.patching.groups import ALL_TOKENS, GROUPS
from probe.mechanism.relation.verdicts import LEAST_MASS
from probe.report.numbers import decimal, interval, listed, plural, signed
from probe.report.patching import READ_NAMES, outcome_words
from probe.report.patching_lines import GROUP_NAMES
from probe.report.style import shown
from probe.stages.terminal import console, say
from probe.values import ALL

if TYPE_CHECKING:
    from probe.stages.patch import PatchTables

COLUMNS = 9
"""Layers of a table; of more, evenly spread ones are shown."""

NEAR = 0.05
"""A share so near to the largest is as large."""

HEADS = 3
"""Heads that are named."""


def show_plan(
    personas: Mapping[str, Mapping[str, str | None]], reads: Sequence[str], *, n_units: int, per_unit: int
) -> None:
    """What a run would do, before a weight is loaded."""
    _tell_sentences(pd.DataFrame([{"persona": name, **texts} for name, texts in personas.items()]))
    say(
        f"{plural(n_units, 'pair')} of runs for each label ({listed(list(reads))}); {per_unit:,} patched reads or more "
        "of each, and those of controls and paths"
    )


def show_patch(tables: PatchTables, outcome: str) -> None:
    """The sentences and the checks, the share of each persona's effect by layer and tokens, heads, and roles."""
    _tell_sentences(tables.sentences)
    _tell_checks(tables, outcome)
    _tell_mass(tables.labels)
    pooled = tables.effects[(tables.effects["stratum"] == ALL) & (tables.effects["outcome"] == outcome)]
    plain = pooled[(pooled["control"] == "") & (pooled["direction"] == DENOISING)]
    for read, own in plain.groupby("read", sort=False):
        say(
            f"\n{READ_NAMES.get(str(read), str(read))}: share of the persona's effect on {outcome_words(outcome)} that "
            "its residual stream brings into the base run, by residual point"
        )
        console().print(_grid(own[own["stream"] == RESID], tables.totals))
        _tell_labels(own[own["stream"] == RESID], tables.labels)
        _tell_heads(own[own["stream"] == HEAD_OUT])
    if len(tables.paths):
        _show_roles(tables.paths[(tables.paths["stratum"] == ALL) & (tables.paths["outcome"] == outcome)])


def _tell_sentences(sentences: pd.DataFrame) -> None:
    without = []
    for row in sentences.fillna("").to_dict("records"):
        if row["neutral"]:
            nonsense = f"; nonsense: {row['nonsense']!r}" if row["nonsense"] else ""
            say(f"{shown(row['persona'])}: its place is held by {row['neutral']!r}{nonsense}")
        elif row["text"]:
            without.append(shown(row["persona"]))
    if without:
        say(
            f"{listed(without)}: no neutral sentence of as many tokens, so the base run is the study's base; the "
            "persona's tokens, and by which tokens an effect comes, are not told"
        )


def _tell_checks(tables: PatchTables, outcome: str) -> None:
    if tables.pending:
        say(f"{plural(tables.pending, 'part')} still to be run: what follows is of the others")
    checked = tables.check[tables.check["largest"].notna()]
    if checked.empty:
        say("check: no cell of this grid must show all of the donor's run or nothing of it, so nothing was checked")
    else:
        right = bool(checked["same"].astype(bool).all())
        words = "as they must" if right else "and should not: low precision, or read with care"
        say(
            f"check: {int(checked['cells'].sum()):,} cells that must show all of the donor's run or nothing of it "
            f"differ from that by {checked['largest'].max():.1e} nats at most (tolerance {TOLERANCE:.0e}), {words}"
        )
    own = tables.totals[(tables.totals["outcome"] == outcome) & (tables.totals["stratum"] == ALL)]
    for _, row in own[own["quantity"] == "neutral - base"].iterrows():
        if row["low"] > 0 or row["high"] < 0:
            say(
                f"{shown(row['persona'])}, {row['read']} label: the neutral sentence alone lies "
                f"{signed(row['value'], 3)} {interval(row['low'], row['high'], 3)} from {shown(row['base'])}"
            )
    for stream, why in tables.missing.items():
        say(f"{stream} is not patched: {why}")
    for (read, reason), n in _counts(tables.left_out, ["read", "reason"]):
        say(f"{n:,} pairs left out ({read} label): {reason}")
    for (read, control, group, reason), n in _counts(tables.absent, ["read", "control", "group", "reason"]):
        say(
            f"{GROUP_NAMES.get(group, group)}{f' ({control})' if control else ''} not patched in {n:,} pairs "
            f"({read} label): {reason}"
        )


def _tell_mass(labels: pd.DataFrame) -> None:
    """A caution for each label that a model hardly ever gives: what is patched then is no preference of it."""
    pooled = labels[(labels["stratum"] == ALL) & (labels["stream"] == RESID)]
    for read, own in pooled.groupby("read", sort=False):
        mass = own.groupby("persona", sort=False)["mass"].median()
        rare = mass[mass < LEAST_MASS]
        if len(rare):
            say(
                f"{listed([shown(persona) for persona in rare.index])}: where the {read} label is read the labels have "
                f"{decimal(rare.max(), 3)} of the probability or less (median over patched reads), so shares are of an "
                "effect on what this model hardly ever says"
            )


def _counts(table: pd.DataFrame, names: list[str]) -> list[tuple[tuple[str, ...], int]]:
    if table.empty:
        return []
    kept = table[table["group"] != ALL_TOKENS] if "group" in table else table
    counts = kept.groupby(names, sort=False)["n"].sum().reset_index()
    return [(tuple(str(row[name]) for name in names), int(row["n"])) for row in counts.to_dict("records")]


def _grid(rows: pd.DataFrame, totals: pd.DataFrame) -> Table:
    """One line for each persona and group of tokens; differences where there is no share."""
    layers = sorted(rows["layer"].unique())
    chosen = [layers[i] for i in np.unique(np.linspace(0, len(layers) - 1, COLUMNS).round().astype(int))]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("persona", no_wrap=True)
    table.add_column("tokens", no_wrap=True)
    for layer in chosen:
        table.add_column(str(layer), justify="right", no_wrap=True)
    for persona, own in rows.groupby("persona", sort=False):
        defined = bool(own["fraction"].notna().any())
        first = own.iloc[0]
        effect = totals[(totals["persona"] == persona) & (totals["read"] == first["read"])]
        effect = effect[(effect["outcome"] == first["outcome"]) & (effect["stratum"] == ALL)].iloc[0]
        told = f"{signed(effect['value'], 2)} {interval(effect['low'], effect['high'])}"
        heading = iter((shown(str(persona)), told, "" if defined else "(not resolved: differences)"))
        for group in (name for name in GROUPS if name != ALL_TOKENS and (own["group"] == name).any()):
            line = own[own["group"] == group].set_index("layer")
            cells = [_cell(line.loc[layer], defined) for layer in chosen]
            table.add_row(Text(next(heading, "")), GROUP_NAMES[group], *map(Text, cells))
        for words in heading:
            table.add_row(Text(words))
    return table


def _cell(row: pd.Series, defined: bool) -> str:
    value = decimal(float(row["fraction"] if defined else row["shift"]))
    return f"({value})" if not np.isnan(row["by_construction"]) else value


def _tell_labels(rows: pd.DataFrame, labels: pd.DataFrame) -> None:
    """Of the cell that brings most, at the first point that does: whether it moves the right cases."""
    own = labels[(labels["stratum"] == ALL) & (labels["control"] == "") & (labels["direction"] == DENOISING)]
    names = ("persona", "read", "layer", "group")
    cells = {tuple(row[name] for name in names): row for row in own[own["stream"] == RESID].to_dict("records")}
    findings = rows[rows["by_construction"].isna() & rows["fraction"].notna()]
    for persona, part in findings.groupby("persona", sort=False):
        first = part[part["fraction"] >= part["fraction"].max() - NEAR].sort_values("layer").iloc[0]
        told = cells[tuple(first[name] for name in names)]
        changed, kept = int(told["n_changed"]), int(told["n_kept"])
        flips = f"{round(told['reached'] * changed)} of {changed} labels that differ reached" if changed else ""
        stay = f"{round(told['kept'] * kept)} of {kept} others kept" if kept else ""
        say(
            f"{shown(str(persona))}: most at {GROUP_NAMES[first['group']]}, point {first['layer']}: "
            f"{listed([each for each in (flips, stay) if each])}; fit over cases {decimal(told['fit'])}"
        )


def _tell_heads(rows: pd.DataFrame) -> None:
    for persona, own in rows.dropna(subset="fraction").groupby("persona", sort=False):
        top = own.reindex(own["fraction"].abs().sort_values(ascending=False).index).head(HEADS)
        named = [
            f"{row['layer']}.{row['head']} {decimal(row['fraction'])} "
            f"{interval(row['fraction_low'], row['fraction_high'])}"
            for _, row in top.iterrows()
        ]
        say(f"{shown(str(persona))}: heads (block.head) at {GROUP_NAMES[str(top['group'].iloc[0])]}: {listed(named)}")


def _show_roles(paths: pd.DataFrame) -> None:
    if paths.empty:
        return
    say("\nby which tokens the effect comes to the one that is read: mean over all orders [95 %] (changed first, last)")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    roles = list(dict.fromkeys(paths["role"]))
    for name in ("persona", "label", *roles):
        table.add_column(name, justify="left" if name in ("persona", "label") else "right")
    for (persona, read), own in paths.groupby(["persona", "read"], sort=False):
        told = {(row["role"], row["quantity"]): row for row in own.to_dict("records")}
        cells = []
        for role in roles:
            if (role, "shapley") not in told:
                cells.append("")
                continue
            mean = told[role, "shapley"]
            words = f"{signed(mean['value'], 2)} {interval(mean['low'], mean['high'])}"
            if role != "total":
                ends = [signed(told[role, end]["value"], 2) for end in ("first", "last")]
                words += f" ({', '.join(ends)})"
            cells.append(words)
        table.add_row(Text(shown(str(persona))), str(read), *map(Text, cells))
    console().print(table)
