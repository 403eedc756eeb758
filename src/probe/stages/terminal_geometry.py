"""What a terminal shows of persona directions. Computes nothing."""

from __future__ import annotations

import math

import pandas as pd
from rich.table import Table
from rich.text import Text

from probe.mechanism.geometry.tables import GeometryTables
from probe.report.numbers import decimal, interval
from probe.report.style import shown
from probe.stages.analysis import MAIN_POSITION
from probe.stages.terminal import console, say
from probe.values import ALL


def show_geometry(found: GeometryTables, directions: pd.DataFrame) -> None:
    """At the last residual point: size, stability and held-out cosine of every persona, and what styles do on roles."""
    if found.norms.empty or directions.empty:
        say("no direction: the base persona and another must share a case family and a position")
        return
    positions = list(dict.fromkeys(found.norms["position"]))
    at = MAIN_POSITION if MAIN_POSITION in positions else positions[0]
    base, last = str(found.norms["base"].iloc[0]), int(found.norms["layer"].max())
    table = Table(
        *("persona", "size [95 %]", "halves (floor)", "held-out cosine [95 %]"),
        title=Text(f"paired mean against {shown(base)} at {at}, residual point {last}; other points in the CSVs"),
    )
    norms = _at(found.norms[(found.norms["view"] == "raw") & (found.norms["stratum"] == ALL)], at, last, base)
    halves = _at(found.stability[found.stability["method"] == "split-half"], at, last, base)
    judged = _at(directions[directions["maker"] == "paired_mean"], at, last, base)
    for persona in norms.index:
        halved = halves.loc[persona]
        table.add_row(
            Text(str(persona)),
            _interval(norms.loc[persona]),
            f"{decimal(_number(halved['value']))} ({decimal(_number(halved['floor']))})",
            _interval(judged.loc[persona]) if persona in judged.index else decimal(None),
        )
    console().print(table)
    for measure, told in (("style_cosine", "cosine of the style shift"), ("interaction", "interaction share")):
        _tell_styles(found.role_style, measure, told, at, last)


def _tell_styles(role_style: pd.DataFrame, measure: str, told: str, position: str, layer: int) -> None:
    if role_style.empty:
        return
    rows = role_style[(role_style["view"] == "raw") & (role_style["stratum"] == ALL)]
    rows = rows[(rows["position"] == position) & (rows["layer"] == layer) & (rows["measure"] == measure)]
    for _, row in rows.iterrows():
        pair = f"{shown(row['role'])} and {shown(row['other_role'])}"
        say(f"{shown(row['style'])} on {pair}: {told} {_interval(row)}")


def _at(table: pd.DataFrame, position: str, layer: int, base: str) -> pd.DataFrame:
    rows = table[(table["position"] == position) & (table["layer"] == layer) & (table["base"] == base)]
    return rows.set_index("persona")


def _interval(row: pd.Series) -> str:
    value, low, high = (_number(row.get(name)) for name in ("value", "low", "high"))
    if value is None:
        return "undefined"
    return decimal(value) if low is None or high is None else f"{decimal(value)} {interval(low, high)}"


def _number(value: object) -> float | None:
    number = float("nan") if value is None else float(str(value))
    return None if math.isnan(number) else number
