"""Figures of what the residual says of the disagreement: the sides-with curve and the prediction. Computes no
statistic."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from probe.report.drawn import Drawn, counted, explained, numbers_of, panel_title, plain_tick, said
from probe.report.style import INK, SOFT, TEXT_WIDTH, laid_out, shown, styled
from probe.values import ALL

SIDE_HUES = {"stated": "#D55E00", "latent": "#0072B2", "third": SOFT}


def draw_sides_with(sides: pd.DataFrame) -> Drawn:
    """With which label a readout sides in the cells where the two labels part, by residual point; a panel per position,
    over all personas."""
    rows = sides[(sides["persona"] == ALL) & sides["value"].notna()]
    panels = {str(position): part for position, part in rows.groupby("position", sort=False)}
    return _sides(sides, panels, "With which label the residual sides", "all personas together")


def draw_sides_of_personas(sides: pd.DataFrame) -> Drawn:
    """:func:`draw_sides_with` at the end of the prompt (or the first position), a panel per persona, at most twelve."""
    known = sides[(sides["persona"] != ALL) & sides["value"].notna()]
    found = list(dict.fromkeys(known["position"]))
    position = "prompt_end" if "prompt_end" in found else found[0]
    rows = known[known["position"] == position]
    panels = {shown(str(persona)): part for persona, part in rows.groupby("persona", sort=False)}
    first = dict(list(panels.items())[: 3 * _ACROSS])
    return _sides(sides, first, "With which label the residual sides, by persona", f"at {position}")


_ACROSS = 4


def _sides(sides: pd.DataFrame, panels: dict[str, pd.DataFrame], title: str, where: str) -> Drawn:
    columns = min(len(panels), _ACROSS)
    lines = -(-len(panels) // columns)
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 0.9 + 1.8 * lines))
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for ax, (name, part) in zip(axes.flat, panels.items(), strict=False):
            _side_lines(ax, part)
            panel_title(ax, f"{name} ({counted(part['n'].astype(float).tolist(), 'cell')})", columns)
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        for ax in axes[:, 0]:
            ax.set_ylabel("share of cells where\nthe labels differ")
        axes[0, 0].set_ylim(0, 1)
        axes[0, 0].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        keys = [Line2D([], [], color=h, marker="o", ms=3.2, label=f"{side} label") for side, h in SIDE_HUES.items()]
        keys += [Line2D([], [], color=INK, lw=0.9, ls=":", label="chance")]
        keys += [Line2D([], [], color=INK, lw=0.9, ls="--", label="saturated outputs")]
        explained(figure, [*keys, said("bands: 95 % intervals")], ncols=3, axis=f"residual point; {where}")
        return Drawn(laid_out(figure), sides.reset_index(drop=True), title, _SIDES_CAPTION.format(where=where))


def _side_lines(ax: Axes, rows: pd.DataFrame) -> None:
    for side, hue in SIDE_HUES.items():
        part = rows[rows["side"] == side].sort_values("layer")
        value, low, high, chance, baseline = numbers_of(part, "value", "low", "high", "chance", "baseline")
        ax.fill_between(part["layer"], low, high, color=hue, alpha=0.18, lw=0)
        ax.plot(part["layer"], value, color=hue, marker="o", ms=3.2)
        ax.plot(part["layer"], chance, color=hue, lw=0.9, ls=":")
        if side != "third":
            ax.plot(part["layer"], baseline, color=hue, lw=0.9, ls="--")
    ax.yaxis.set_major_formatter(FuncFormatter(plain_tick))


_SIDES_CAPTION = (
    "Cells whose stated and latent label differ, {where}. A linear readout of the stated label, fitted "
    "on other case families, gives them the stated label, the latent one or a third. Dotted: the same if the readout's "
    "labels were dealt out at random; dashed: the same readout of everything the outputs say (label log-ratios, mass, "
    "lengths). The table has every persona at every position."
)


def draw_prediction(prediction: pd.DataFrame) -> Drawn:
    """Log loss of the disagreement that the residual saves beyond the saturated outputs, by residual point."""
    rows = prediction[prediction["layer"].notna() & prediction["value"].notna()]
    positions = list(dict.fromkeys(rows["position"]))
    looks = {"state": ("#0072B2", "o", "-"), "shift": ("#D55E00", "s", "-")}
    looks |= {"shift on a random axis": (SOFT, ".", "--"), "shift on the nonsense axis": (INK, ".", ":")}
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 2.7))
        axes = figure.subplots(1, len(positions), sharey=True, squeeze=False)[0]
        for ax, position in zip(axes, positions, strict=True):
            for features, (hue, mark, line) in looks.items():
                part = rows[(rows["position"] == position) & (rows["features"] == features)].sort_values("layer")
                value, low, high, null = numbers_of(part, "value", "low", "high", "null_high")
                ax.plot(part["layer"], value, color=hue, marker=mark, ms=3.2, ls=line)
                if features in ("state", "shift"):
                    ax.fill_between(part["layer"], low, high, color=hue, alpha=0.15, lw=0)
                    ax.plot(part["layer"], null, color=hue, lw=0.9, ls=":")
            ax.axhline(0, color=INK, lw=0.8)
            panel_title(ax, str(position), len(positions))
            ax.set_xlabel("residual point")
            ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes[0].set_ylabel("log loss saved\n(nats per cell)")
        axes[0].yaxis.set_major_formatter(FuncFormatter(plain_tick))
        kept = {name: look for name, look in looks.items() if (rows["features"] == name).any()}
        keys = [Line2D([], [], color=h, marker=m, ms=3.2, ls=line, label=name) for name, (h, m, line) in kept.items()]
        keys += [Line2D([], [], color=INK, lw=0.9, ls=":", label="95 % of other cases' features")]
        explained(figure, [*keys, said("bands: 95 % intervals")], ncols=3)
        return Drawn(laid_out(figure), prediction.reset_index(drop=True), "Prediction beyond the outputs", _PREDICTION)


_PREDICTION = (
    "Out-of-fold log loss of whether stated and latent label differ that features of the residual save over a baseline "
    "of everything the outputs say. State: a linear readout; shift: how far a cell was moved along its persona's mean "
    "shift, and off it. Dotted: 95 % quantile of the same with the part that the baseline does not explain taken from "
    "other cases. A prediction, not a mediation."
)
