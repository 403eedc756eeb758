"""Figures of prompting against steering: what is recovered, and which cases move. Knows tidy tables alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from probe.mechanism.steering.controls import KINDS, RANDOM
from probe.report.drawn import Drawn, explained, named_rows, panel_title, plain_tick, said, stratum_keys
from probe.report.numbers import decimal
from probe.report.steering_costs import draw_costs
from probe.report.steering_curves import draw_distances, draw_dose
from probe.report.style import INK, TEXT_WIDTH, laid_out, metric_name, shown, stratum_looks, styled
from probe.values import ALL

MOST = 6
"""Personas of one figure; further ones are in the tables."""

STEERED = "#D55E00"
LOOKS: Mapping[str, tuple[str, str]] = {
    "steered": (STEERED, "o"),
    "reworded": (INK, "D"),
    "ablated": ("#0072B2", "v"),
    "isotropic": ("#b8b8b4", "|"),
    "covariance": ("#d9b38c", "|"),
    "base_split": ("#8c8c88", "x"),
    "other_persona": ("#CC79A7", "^"),
    "nonsense": ("#E69F00", "P"),
    "label_contrast": ("#009E73", "s"),
}
"""Colour and mark of each kind of arm, the same in every figure."""

_QUANTITIES = {"recovered": "recovered fraction", "fit": "fit F, case by case", "fit_centred": "fit, means removed"}
_ENDS = {"recovered": (-1.25, 2.25), "fit": (-1.75, 1.25), "fit_centred": (-1.75, 1.25)}
_PLACE = {"isotropic": -0.36, "covariance": -0.24, "base_split": -0.12, "other_persona": 0.0, "nonsense": 0.0}
_PLACE |= {"label_contrast": 0.1, "ablated": 0.22, "reworded": 0.3, "steered": 0.38}


def steering_figures(tables: Mapping[str, pd.DataFrame], prefix: str = "steer") -> dict[str, Drawn]:
    """Every figure that these tables allow, by file name."""
    recovery, pattern, shifts, response, distances, costs = (
        tables[f"{prefix}_{name}"] for name in ("recovery", "pattern", "shifts", "response", "distances", "costs")
    )
    figures = {}
    for position in dict.fromkeys(recovery["position"]):
        name = f"{prefix}_recovered" + ("_stated" if position == "stated" else "")
        own, shapes = (one[one["position"] == position] for one in (recovery, pattern))
        if len(shapes):
            figures[name] = draw_recovered(own, shapes)
    if len(shifts):
        figures[f"{prefix}_pattern"] = draw_pattern(shifts, pattern)
    if len(response):
        figures[f"{prefix}_dose"] = draw_dose(response, recovery, LOOKS)
    if len(distances):
        figures[f"{prefix}_distance"] = draw_distances(distances, LOOKS)
    if len(costs):
        figures[f"{prefix}_costs"] = draw_costs(costs)
    return figures


def draw_recovered(recovery: pd.DataFrame, pattern: pd.DataFrame) -> Drawn:
    """Recovered fraction and fit of every arm of every persona, over all cases; controls as a cloud.

    A column per quantity, a row per persona. What lies beyond an axis stands at its end as an arrow.
    """
    outcome, base = recovery["outcome"].iloc[0], recovery["base"].iloc[0]
    first = recovery[(recovery["outcome"] == outcome) & (recovery["stratum"] == ALL)]
    shaped = pattern[(pattern["stratum"] == ALL) & pattern["quantity"].isin(_QUANTITIES)]
    parts = [
        first.assign(quantity="recovered", value=first["recovered"])
        .drop(columns=["low", "high"])
        .rename(columns={"recovered_low": "low", "recovered_high": "high"}),
        shaped,
    ]
    columns = ["persona", "kind", "arm", "quantity", "value", "low", "high", "reached", "n"]
    rows = pd.concat([part[columns] for part in parts], ignore_index=True)
    rows = rows[rows["kind"].isin(LOOKS)]
    fell = {(one["persona"], one["arm"]): one["broken"] for _, one in first.iterrows()}
    rows = rows.assign(broken=[fell.get(key, "") for key in zip(rows["persona"], rows["arm"], strict=True)])
    personas = list(dict.fromkeys(rows["persona"]))
    told = {str(row["persona"]): str(row["verdict"]) for _, row in first[first["kind"] == "steered"].iterrows()}
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 1.25 + 0.62 * len(personas)))
        axes = figure.subplots(1, len(_QUANTITIES), sharey=True, squeeze=False)[0]
        for ax, quantity in zip(axes, _QUANTITIES, strict=True):
            ax.axvline(0, color=INK, lw=0.8)
            ax.axvline(1, color=INK, lw=0.8, ls=":")
            for kind in _PLACE:
                _marks(ax, rows[(rows["quantity"] == quantity) & (rows["kind"] == kind)], personas, kind, quantity)
            ax.set_xlim(*_ENDS[quantity])
            ax.xaxis.set_major_formatter(plain_tick)
            panel_title(ax, _QUANTITIES[quantity], len(_QUANTITIES))
            named_rows(ax, [f"{shown(name)}\n{told.get(name, '')}" for name in personas])
        keys = [_key(kind) for kind in _PLACE if (rows["kind"] == kind).any()]
        keys.append(said("hollow or faint: broken"))
        where = "of the stated label" if recovery["position"].iloc[0] == "stated" else "of the latent label"
        explained(
            figure, keys, ncols=3, axis=f"{metric_name(str(outcome)).lower()} {where}, against {shown(str(base))}"
        )
        title = f"Prompted against steered: {'stated' if 'stated' in where else 'latent'} label"
        return Drawn(laid_out(figure), rows.reset_index(drop=True), title, _RECOVERED)


_RECOVERED = (
    "Every direction is added at the strength at which it moves the label distribution as far as the persona's prompt"
    " does (equal dose), settled on validation cases; shown are held-out cases. Recovered fraction: mean change of "
    "the steered run over that of the prompted run, with Fieller sets; nothing is drawn where the prompt's own "
    "interval holds 0. Fit F: 1 where the steered run shifts the label log-ratios of every case as the prompt does, 0"
    " where it shifts none, below 0 where it leads away; right, after each arm's mean shift was removed: does it move"
    " the right cases? Below each name: the verdict of the steered run. Hollow or faint: the model is broken; arrows:"
    " beyond the axis. Reworded: another wording of the same prompt, the ceiling. Controls that never reach the dose "
    "are left out."
)


def _marks(ax: Axes, rows: pd.DataFrame, personas: Sequence[str], kind: str, quantity: str) -> None:
    hue, mark = LOOKS[kind]
    rows = rows[rows["reached"].astype(bool) & rows["value"].notna()]
    if rows.empty:
        return
    low_end, high_end = _ENDS[quantity]
    value = rows["value"].to_numpy(float)
    y = np.array([personas.index(name) for name in rows["persona"]]) + _PLACE[kind]
    drawn = value.clip(low_end + 0.04, high_end - 0.04)
    beyond, down = drawn != value, (rows["broken"] != "").to_numpy()
    size = {"|": 5.0, "x": 3.0}.get(mark, 4.0)
    if kind not in (*RANDOM, "base_split"):
        low, high = (rows[end].to_numpy(float).clip(low_end, high_end) for end in ("low", "high"))
        ax.hlines(y[~beyond], low[~beyond], high[~beyond], color=hue, lw=1.1)
    for which, filled in ((~beyond & ~down, True), (~beyond & down, False)):
        if not which.any():  # an unclipped line without points has no extent, and no layout is found around it
            continue
        marks = ax.plot(
            drawn[which], y[which], ls="", marker=mark, ms=size, color=hue, mew=0.8, zorder=4, clip_on=False
        )
        if not filled:
            marks[0].set(markerfacecolor="white", alpha=0.45 if mark in "|x" else 1.0)
    for end, side in (("<", value < low_end), (">", value > high_end)):
        ax.plot(drawn[side], y[side], ls="", marker=end, ms=2.4, color=hue, mew=0, zorder=4)


def _key(kind: str) -> Line2D:
    hue, mark = LOOKS[kind]
    return Line2D([], [], ls="", color=hue, marker=mark, ms=4.5, label=KINDS[kind])


def draw_pattern(shifts: pd.DataFrame, pattern: pd.DataFrame) -> Drawn:
    """Case by case: the shift of the log-ratio of the most to the least urgent label, steered against prompted.

    A panel per persona; on the line a case moves as the prompt moves it. Grey: the label contrast at equal dose.
    """
    personas = list(dict.fromkeys(shifts["persona"]))[:MOST]
    rows = shifts[shifts["persona"].isin(personas) & shifts["kind"].isin(["steered", "label_contrast"])]
    without = pattern[~pattern["reached"].astype(bool)]
    lacking = set(zip(without["persona"], without["arm"], strict=True))
    rows = rows[[key not in lacking for key in zip(rows["persona"], rows["arm"], strict=True)]]
    strata = list(dict.fromkeys(rows["stratum"]))
    looks = stratum_looks([*strata, ALL] if len(strata) < 2 else strata)
    columns = 3 if len(personas) > 2 else 2
    lines = -(-len(personas) // columns)
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 0.8 + 2.1 * lines))
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax, persona in zip(axes, personas, strict=False):
            own = rows[rows["persona"] == persona]
            ends = np.nanquantile(own[["prompted", "steered"]].to_numpy(float), (0.002, 0.998))
            room = 0.08 * float(np.ptp(ends))
            span = (float(ends[0]) - room, float(ends[1]) + room)
            ax.plot(span, span, color=INK, lw=0.8, zorder=1)
            ax.axhline(0, color="#d0d0d0", lw=0.6, zorder=0)
            ax.axvline(0, color="#d0d0d0", lw=0.6, zorder=0)
            other = own[own["kind"] == "label_contrast"]
            ax.plot(other["prompted"], other["steered"], ls="", marker=".", ms=2.6, color="#b8b8b4", zorder=2)
            for stratum in strata:
                part = own[(own["kind"] == "steered") & (own["stratum"] == stratum)]
                hue, mark = looks[stratum if len(strata) > 1 else ALL]
                ax.plot(part["prompted"], part["steered"], ls="", marker=mark, ms=2.6, mew=0, color=hue, zorder=3)
            ax.set_xlim(*span)
            ax.set_ylim(*span)
            ax.set_title(f"{shown(persona)}\n{_fitted(pattern, persona)}", fontweight="normal")
            ax.xaxis.set_major_formatter(plain_tick)
            ax.yaxis.set_major_formatter(plain_tick)
        for ax in axes[len(personas) :]:
            ax.set_visible(False)
        for ax in axes[: len(personas) : columns]:
            ax.set_ylabel("steered (nats)")
        keys: list[Line2D | Patch] = []
        if len(strata) > 1:
            keys += stratum_keys(looks, {name: f"steered: {shown(name)}" for name in strata})
        keys.append(Line2D([], [], ls="", marker=".", ms=4, color="#b8b8b4", label="label contrast, equal dose"))
        keys.append(Line2D([], [], color=INK, lw=0.8, label="as prompted"))
        axis = "prompted (nats): shift of the log-ratio of the most to the least urgent label"
        explained(figure, keys, ncols=4, axis=axis)
        return Drawn(laid_out(figure), rows.reset_index(drop=True), "Which cases move", _PATTERN)


_PATTERN = (
    "Each mark is a held-out case: how far the prompt (across) and steering at equal dose (up) shift the log-ratio of"
    " the most to the least urgent label against no persona. b: slope of the steered shifts on the prompt's, over all"
    " label log-ratios; F: fit, of which 1 is the prompt's own shift in every case; in brackets after the means were "
    "removed. A uniform push has the right mean and a flat cloud."
)


def _fitted(pattern: pd.DataFrame, persona: str) -> str:
    own = pattern[(pattern["persona"] == persona) & (pattern["kind"] == "steered") & (pattern["stratum"] == ALL)]
    value = own.drop_duplicates("quantity").set_index("quantity")["value"]
    slope, fit, centred = (decimal(value.get(name)) for name in ("slope", "fit", "fit_centred"))
    return f"b {slope}, F {fit} (means removed {centred})"
