"""One picture per persona: where its labels and their disagreement can be read. Knows tidy tables; computes nothing."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from probe.report.drawn import Drawn, counted, explained, panel_title, plain_tick, said
from probe.report.lens import READOUT, draw_span
from probe.report.style import BAND, INK, SOFT, TEXT_WIDTH, laid_out, shown, styled
from probe.values import ALL

_LOOKS = {"latent": ("#0072B2", "o", "-"), "stated": ("#D55E00", "s", "--"), "disagreement": ("#009E73", "^", "-")}
_NAMES = {"latent": "latent label", "stated": "stated label", "disagreement": "disagreement"}


def draw_persona_picture(
    persona: str, readable: pd.DataFrame, agreement: pd.DataFrame, reliability: pd.DataFrame, depths: pd.DataFrame
) -> Drawn:
    """Of one persona, by layer and site: AUROC of latent label, stated label and disagreement, and the lens' own share.

    Above: probes fitted on other cases of other personas, with 95 % intervals; .5 is chance. Below: how often the label
    that the lens shows is the latent, and the stated, one; hatched where the lens is marked unreliable; the bar spans
    the layers over which the persona's shift of the label contrasts arises. ``readable`` is the table of
    :func:`probe.mechanism.probes.readable.readable_table`, the others those of the lens.
    """
    own, agreed = readable[readable["persona"] == persona], agreement[agreement["persona"] == persona]
    positions = list(dict.fromkeys([*own["position"], *agreed["position"]]))
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 4.3))
        axes = figure.subplots(2, len(positions), sharex=True, sharey="row", squeeze=False)
        for column, position in enumerate(positions):
            top, bottom = axes[:, column]
            part = own[own["position"] == position]
            _probes(top, part)
            n = counted(part["rows"].astype(float).tolist(), "cell") if len(part) else ""
            panel_title(top, f"{position} ({n})" if n else position, len(positions))
            doubted = reliability[(reliability["persona"] == persona) & (reliability["position"] == position)]
            shared = agreed[agreed["position"] == position]
            _lens(bottom, shared, doubted)
            if shared.empty:
                bottom.text(0.5, 0.5, "no label is read here", transform=bottom.transAxes, ha="center", color=SOFT)
            if len(depths):
                _arises(bottom, depths[(depths["persona"] == persona) & (depths["position"] == position)])
            bottom.set_xlabel("residual point (0 = embeddings)")
            bottom.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes[0, 0].set_ylim(min(0.25, own["low"].min() - 0.03), 1.03)  # what transfers badly is worse than chance
        axes[0, 0].set_ylabel("AUROC of a linear probe\n(other cases, other personas)")
        axes[1, 0].set_ylabel("lens shows this label\n(share of cells)")
        for ax in axes.ravel():
            ax.yaxis.set_major_formatter(FuncFormatter(plain_tick))
        explained(figure, _keys(), ncols=4)
        numbers = pd.concat([own.assign(reader="probe"), _pooled(agreed)], ignore_index=True)
        return Drawn(laid_out(figure), numbers, f"What can be read of {shown(persona)}", _CAPTION)


_CAPTION = (
    "Above: AUROC of linear probes for the latent label, the stated label and their disagreement in this persona's "
    "cells, fitted on other case families of all other personas (of three labels: mean over labels, each against the "
    "rest); bands: 95 % intervals; dotted: chance. Stated and latent label mostly agree, so that their curves do too: "
    "it is the disagreement that tells them apart. Below: the share of cells in which the label that the lens shows at "
    "this point is the latent, and the stated, one (95 % bootstrap over cases). Hatched: the lens is marked unreliable "
    "there. Bar: the layers over which the persona's shift of the label contrasts arises, by the held-out readout."
)


def _probes(ax: Axes, part: pd.DataFrame) -> None:
    for target, look in _LOOKS.items():
        _line(ax, part[part["target"] == target], look)
    ax.axhline(0.5, color=INK, lw=0.8, ls=":")


def _lens(ax: Axes, agreed: pd.DataFrame, reliability: pd.DataFrame) -> None:
    for layer in reliability.loc[~reliability["reliable"].astype(bool), "layer"]:
        ax.axvspan(layer - 0.5, layer + 0.5, facecolor="none", edgecolor=BAND, hatch="////", lw=0, zorder=0)
    pooled = _pooled(agreed)
    for target in ("latent", "stated"):
        _line(ax, pooled[pooled["target"] == target], _LOOKS[target])
    ax.set_ylim(0, 1.03)


def _line(ax: Axes, part: pd.DataFrame, look: tuple[str, str, str]) -> None:
    part, (hue, mark, line) = part.sort_values("layer"), look
    x, value, low, high = (part[name].to_numpy(float) for name in ("layer", "value", "low", "high"))
    ax.fill_between(x, low, high, color=hue, alpha=0.16, lw=0)
    ax.plot(x, value, color=hue, marker=mark, ls=line, ms=3)


def _arises(ax: Axes, depths: pd.DataFrame) -> None:
    rows = depths[(depths["stratum"] == ALL) & (depths["reader"] == READOUT)]
    if len(rows):
        draw_span(ax, rows[rows["base"] == rows["base"].iloc[0]], SOFT)


def _pooled(agreed: pd.DataFrame) -> pd.DataFrame:
    return agreed[(agreed["stratum"] == ALL) & (agreed["reader"] == "lens")]


def _keys() -> list[Line2D | Patch]:
    lines = [
        Line2D([], [], color=hue, marker=mark, ls=line, ms=3, label=_NAMES[name])
        for name, (hue, mark, line) in _LOOKS.items()
    ]
    return [
        *lines,
        Line2D([], [], color=INK, lw=0.8, ls=":", label="chance"),
        Patch(facecolor="white", edgecolor=BAND, hatch="////", label="lens unreliable"),
        Line2D([], [], color=SOFT, lw=3.2, label="the shift arises"),
        said("bands: 95 % intervals"),
    ]
