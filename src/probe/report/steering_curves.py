"""Figures of steering over strengths and layers: dose-response with its collapse, distances. Knows tidy tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from probe.mechanism.steering.controls import KINDS
from probe.report.drawn import Drawn, explained, panel_title, plain_tick, said, signed_tick
from probe.report.style import INK, TEXT_WIDTH, laid_out, metric_name, shown, styled
from probe.values import ALL

Looks = Mapping[str, tuple[str, str]]

COLUMNS = 5
"""Personas of one figure; further ones are in the tables."""

_BROKEN = "#f3e3e3"
_CURVES = ("isotropic", "covariance", "label_contrast", "steered")


def draw_dose(response: pd.DataFrame, recovery: pd.DataFrame, looks: Looks) -> Drawn:
    """What each strength moves, and what it leaves of the labels; a column per persona.

    Above: change of the first outcome against no persona; dashed, the prompt's own. Below: probability of all labels
    together. Crosses: the model is broken; shaded, from the strength on at which the persona's own direction breaks it.
    """
    personas = list(dict.fromkeys(response["persona"]))[:COLUMNS]
    rows = response[response["persona"].isin(personas)]
    outcome = str(rows["outcome"].iloc[0])
    own = recovery[(recovery["stratum"] == ALL) & (recovery["outcome"] == outcome) & (recovery["position"] != "stated")]
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 3.9))
        axes = figure.subplots(
            2, len(personas), sharex="col", sharey="row", squeeze=False, gridspec_kw={"height_ratios": (2, 1)}
        )
        for column, persona in enumerate(personas):
            part = rows[rows["persona"] == persona]
            equal = own[(own["persona"] == persona) & (own["kind"] == "steered")]["strength"]
            prompted = own[(own["persona"] == persona) & (own["kind"] == "prompted")]
            for ax, name in zip(axes[:, column], ("difference", "label_mass"), strict=True):
                for kind in _CURVES:
                    for _, curve in part[part["kind"] == kind].groupby("arm", sort=False):
                        _curve(ax, curve.sort_values("strength"), name, kind, looks)
                _frame(ax, part, float(equal.iloc[0]) if len(equal) else np.nan, columns=len(personas))
            axes[0, column].axhline(0, color=INK, lw=0.6)
            if len(prompted):
                axes[0, column].axhline(float(prompted["difference"].iloc[0]), color=INK, lw=1.0, ls="--")
            panel_title(axes[0, column], shown(persona), len(personas) + 1)
            axes[0, column].yaxis.set_major_formatter(signed_tick)
            axes[1, column].yaxis.set_major_formatter(plain_tick)
            axes[1, column].set_ylim(bottom=0)
        axes[0, 0].set_ylabel(f"{metric_name(outcome).lower()},\nchange")
        axes[1, 0].set_ylabel("label mass")
        figure.align_ylabels(axes[:, 0])
        keys = [
            Line2D([], [], color=looks[kind][0], lw=1.3, label=KINDS[kind])
            for kind in reversed(_CURVES)
            if (rows["kind"] == kind).any()
        ]
        keys.append(Line2D([], [], color=INK, lw=1, ls="--", label="the prompt's own change"))
        keys.append(Line2D([], [], color=INK, lw=0.8, ls=":", label="equal dose"))
        keys.append(Line2D([], [], ls="", marker="x", color=INK, ms=4, label="broken"))
        explained(figure, keys, ncols=3, axis=_AXIS)
        return Drawn(laid_out(figure), rows.reset_index(drop=True), "Dose and response", _DOSE)


_AXIS = "strength, in mean residual norms at the site (linear up to the equal dose, logarithmic beyond it)"

_DOSE = (
    "The persona's direction, the label contrast and some random directions at rising strengths, on held-out cases; "
    "negative strengths push away from the persona. Above: change of the mean outcome against no persona, with the "
    "prompt's own (dashed) and the strength of equal dose (dotted). The axis is linear between plus and minus the "
    "equal dose and logarithmic beyond; each small tick is a strength that was tried. Below: probability on all "
    "labels together. "
    "Crosses mark strengths at which the model is broken (label mass below half, entropy below a quarter or a nat "
    "above that of the worse of the unsteered runs): what its labels say there is not persuasion. Shaded: from the "
    "collapse point of the persona's own direction on."
)


def _curve(ax: Axes, curve: pd.DataFrame, name: str, kind: str, looks: Looks) -> None:
    hue, mark = looks[kind]
    mine = kind == "steered"
    x, y = curve["strength"].to_numpy(float), curve[name].to_numpy(float)
    down = (curve["broken"].fillna("") != "").to_numpy()
    ax.plot(x, y, color=hue, lw=1.4 if mine else 0.8, zorder=4 if mine else 2)
    if name == "difference" and mine:
        ax.fill_between(x, curve["low"].astype(float), curve["high"].astype(float), color=hue, alpha=0.2, lw=0)
    if mine or kind == "label_contrast":
        ax.plot(x[~down], y[~down], ls="", marker=mark, ms=3.0, color=hue, zorder=5)
    ax.plot(x[down], y[down], ls="", marker="x", ms=3.2 if mine else 2.2, color=hue, mew=0.9, zorder=5)


def _frame(ax: Axes, part: pd.DataFrame, equal: float, *, columns: int) -> None:
    """The range of strengths of the persona's own direction, its equal dose, and where it collapses."""
    mine = part[part["kind"] == "steered"]
    low, high = float(mine["strength"].min()), float(mine["strength"].max())
    ax.set_xscale("symlog", linthresh=max(abs(equal), 1e-6) if np.isfinite(equal) else 0.1, linscale=0.8)
    ax.set_xlim(low * 1.15, high * 1.08)
    if np.isfinite(equal):
        ax.axvline(equal, color=INK, lw=0.8, ls=":")
    collapse = float(mine["collapse"].iloc[0])
    if np.isfinite(collapse):
        ax.axvspan(collapse, high * 1.08, color=_BROKEN, lw=0, zorder=0)
    tried = sorted(set(mine["strength"].astype(float)))
    wanted = [0.0, equal, low, collapse, high, *tried[::-1]]
    ticks = _apart(ax, [one for one in wanted if np.isfinite(one)], room=0.1 if columns > 3 else 0.05 * columns)
    ax.set_xticks(ticks, [plain_tick(round(tick, 2)) for tick in ticks])
    ax.set_xticks(tried, minor=True)
    ax.tick_params(axis="x", which="minor", length=2, bottom=True)
    ax.tick_params(axis="x", which="major", length=4, bottom=True, labelrotation=60 if columns > 3 else 0)


def _apart(ax: Axes, wanted: Sequence[float], room: float) -> list[float]:
    """Those of some places, in order of their weight, that stand at least so much of the axis's width apart."""
    across = ax.xaxis.get_transform().transform
    width = float(np.ptp(across(np.array(ax.get_xlim()))))
    kept: list[float] = []
    for one in wanted:
        if all(abs(float(np.diff(across(np.array([one, other])))[0])) >= room * width for other in kept):
            kept.append(one)
    return sorted(kept)


def draw_distances(distances: pd.DataFrame, looks: Looks) -> Drawn:
    """How far a steered run lies from the prompted one at every residual point; a panel per persona."""
    personas = list(dict.fromkeys(distances["persona"]))[:COLUMNS]
    rows = distances[distances["persona"].isin(personas)]
    kinds = [kind for kind in ("isotropic", "covariance", "label_contrast", "reworded", "steered") if kind in looks]
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 2.6))
        axes = figure.subplots(1, len(personas), sharey=True, squeeze=False)[0]
        for ax, persona in zip(axes, personas, strict=True):
            part = rows[rows["persona"] == persona]
            ax.axhline(1, color=INK, lw=0.8)
            for kind in kinds:
                for _, curve in part[part["kind"] == kind].groupby("arm", sort=False):
                    hue, mark = looks[kind]
                    drawn = kind in ("steered", "reworded", "label_contrast")
                    ax.plot(
                        curve["at"],
                        curve["share"].astype(float),
                        color=hue,
                        lw=1.4 if kind == "steered" else 0.9,
                        marker=mark if drawn else "",
                        ms=3,
                        zorder=4 if drawn else 2,
                    )
            ax.axvline(float(part["layer"].iloc[0]), color=INK, lw=0.8, ls=":")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.yaxis.set_major_formatter(plain_tick)
            ax.set_ylim(bottom=0)
            panel_title(ax, shown(persona), len(personas) + 1)
        axes[0].set_ylabel("distance from the prompted run\n(share of the unsteered run's)")
        keys = [
            Line2D([], [], color=looks[kind][0], lw=1.3, marker=looks[kind][1], ms=3, label=KINDS[kind])
            for kind in reversed(kinds)
            if (rows["kind"] == kind).any()
        ]
        keys += [Line2D([], [], color=INK, lw=0.8, ls=":", label="where it is added"), said("line at 1: unsteered")]
        explained(figure, keys, ncols=3, axis="residual point (0 = embeddings)")
        return Drawn(laid_out(figure), rows.reset_index(drop=True), "How near the prompted run", _DISTANCE)


_DISTANCE = (
    "Mean distance of the residual at the read position from that of the prompted run on the same case, as a share of"
    " the distance of the run without a persona (1: no nearer; 0: the same state). Below the layer where a direction "
    "is added a steered run is the unsteered one. A run can give the prompted run's labels and still be in another "
    "state."
)
