"""What a terminal shows of the label lens. Computes nothing."""

from __future__ import annotations

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from probe.mechanism.lens.depth import SEPARATES, SETTLES
from probe.mechanism.lens.tables import READOUT
from probe.report.numbers import DASH, listed, plural
from probe.report.style import shown
from probe.stages.lens import LensTables
from probe.stages.terminal import console, say
from probe.values import ALL


def show_lens(tables: LensTables) -> None:
    """The check, the depth at which each persona's shift arises, what carries it, and where the lens is unreliable."""
    for _, row in tables.checks.iterrows():
        _tell_check(row)
    for position in dict.fromkeys(tables.contrasts["position"]):
        reliable = tables.reliability[tables.reliability["position"] == position]
        _tell_reliable(position, reliable[reliable["persona"] == ALL])
        if len(tables.depths):
            _show_personas(tables, position)


def _tell_check(row: pd.Series) -> None:
    if pd.isna(row["error"]):
        say(f"{row['position']}: {row['note']}")
        return
    told = f"; {row['note']}" if row["note"] else ""
    say(
        f"{row['position']}: at the last point the lens gives the pass's own label contrasts to {row['error']:.1e} "
        f"nats (allowed {row['tolerance']:.1e}) in {plural(row['rows'], 'cell')}; baseline: {row['baseline']}{told}"
    )


def _tell_reliable(position: str, reliable: pd.DataFrame) -> None:
    doubted = [str(layer) for layer in reliable.loc[~reliable["reliable"].astype(bool), "layer"]]
    if doubted:
        say(f"{position}: over all cells the lens is unreliable at residual points {listed(doubted, 40)}")


def _show_personas(tables: LensTables, position: str) -> None:
    """A line per persona: depths by the held-out readout, and the largest component of each contrast's shift."""
    title = Text(f"shift of the label contrasts at {position}: depth by the held-out readout, largest components")
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", show_edge=False, pad_edge=False)
    for name in ("persona", "against", "separates", "settles", "carried by (nats)"):
        table.add_column(name)
    depths = tables.depths
    depths = depths[(depths["position"] == position) & (depths["stratum"] == ALL) & (depths["reader"] == READOUT)]
    for (persona, base), rows in depths.groupby(["persona", "base"], sort=False):
        ends = [_depth(rows[rows["quantity"] == name].iloc[0]) for name in (SEPARATES, SETTLES)]
        carried = Text(_carried(tables.attribution, position, str(persona), str(base)))
        table.add_row(Text(shown(str(persona))), Text(shown(str(base))), *ends, carried)
    console().print(table)


def _depth(row: pd.Series) -> str:
    if pd.isna(row["value"]):
        return DASH
    return f"{row['value']:.0f} [{row['low']:.0f}, {row['high']:.0f}]"


def _carried(attribution: pd.DataFrame, position: str, persona: str, base: str) -> str:
    if attribution.empty:
        return DASH
    rows = attribution[
        (attribution["position"] == position)
        & (attribution["persona"] == persona)
        & (attribution["base"] == base)
        & (attribution["stratum"] == ALL)
    ]
    told = []
    for contrast, part in rows.groupby("contrast", sort=False):
        total = part.loc[part["component"] == "total", "value"].iloc[0]
        own = part[part["component"] != "total"]
        largest = own.loc[own["value"].abs().nlargest(2).index]
        parts = listed([f"{row.component} {row.value:+.2f}" for row in largest.itertuples()])
        told.append(f"{contrast} {total:+.2f}: {parts}")
    return "; ".join(told).replace("-0.00", "0.00")
