"""Figures of probes: AUROC by layer, with the band of the null and the plain baselines. Computes no statistic."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from probe.report.drawn import Drawn, counted, explained, panel_title, said
from probe.report.style import BAND, INK, SOFT, TEXT_WIDTH, colours, laid_out, shown, styled

RIDGE, MEANS = "ridge", "difference in means"
PER_FIGURE = 9
"""Panels of a figure at most; further targets continue on the next."""

COLUMNS = 3
_BASELINES = {
    "baseline: margin": ":",
    "baseline: outputs": "--",
    "baseline: length": (0, (1, 3)),
    "baseline: persona": "-.",
    "control: random features": (0, (6, 3)),
}


def draw_probes(table: pd.DataFrame) -> dict[str, Drawn]:
    """One panel per target: AUROC of the ridge probe by layer, one line per position; figures by name.

    Grey: below what the largest over all targets, positions and layers reaches in 95 % of the permutations. Broken
    lines: the best position's plain baselines, which need no activation.
    """
    targets = list(dict.fromkeys(table["target"]))
    parts = [targets[i : i + PER_FIGURE] for i in range(0, len(targets), PER_FIGURE)]
    names = ["probes"] if len(parts) == 1 else [f"probes_{i + 1}" for i in range(len(parts))]
    return {name: _drawn(table[table["target"].isin(part)], part) for name, part in zip(names, parts, strict=True)}


def _drawn(table: pd.DataFrame, targets: list[str]) -> Drawn:
    positions = list(dict.fromkeys(table["position"]))
    hue = colours(positions, "")
    across = min(COLUMNS, len(targets))
    down = -(-len(targets) // across)
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 0.75 + 1.65 * down))
        axes = figure.subplots(down, across, sharey=True, sharex=True, squeeze=False).ravel()
        for ax, target in zip(axes, targets, strict=False):
            part = table[table["target"] == target]
            _panel(ax, part, positions, hue)
            panel_title(ax, f"{shown(target)} ({counted(part['n'].astype(float).tolist(), 'case')})", across)
        for ax in axes[len(targets) :]:
            ax.set_visible(False)
        for k, ax in enumerate(axes[: len(targets)]):
            if k + across >= len(targets):  # nothing stands below it
                ax.set_xlabel("residual point (0 = embeddings)")
                ax.tick_params(labelbottom=True)
            if k % across == 0:
                ax.set_ylabel("AUROC, other families")
        lowest = np.nanmin(table["value"].astype(float), initial=0.5)
        axes[0].set_ylim(min(0.35, lowest - 0.03), 1.02)
        keys: list[Line2D | Patch] = [
            Line2D([], [], color=hue[position], marker="o", ms=2.6, label=position) for position in positions
        ]
        keys.append(Patch(color=BAND, label="largest of all under the null, 95 %"))
        found = set(table["method"])
        keys += [
            Line2D([], [], color=SOFT, lw=0.9, ls=style, label=method.partition(": ")[2])
            for method, style in _BASELINES.items()
            if method in found
        ]
        explained(figure, [*keys, said("whiskers: 95 %")], ncols=4)
        return Drawn(laid_out(figure), table.reset_index(drop=True), "What a linear probe reads", _CAPTION)


def _panel(ax: Axes, part: pd.DataFrame, positions: list[str], hue: dict[str, str]) -> None:
    ridge = part[(part["method"] == RIDGE)].sort_values("layer")
    edge = ridge.groupby("layer")["null_high"].max().astype(float)
    if edge.notna().any():
        ax.fill_between(edge.index.astype(float), 0, edge, color=BAND, lw=0)
    ax.axhline(0.5, color=INK, lw=0.6)
    for method, style in _BASELINES.items():
        found = part.loc[part["method"] == method, "value"].astype(float)
        if found.notna().any():
            ax.axhline(found.max(), color=SOFT, lw=0.9, ls=style)
    for position in positions:
        line = ridge[ridge["position"] == position]
        x = line["layer"].astype(float)
        value, low, high = (line[name].astype(float) for name in ("value", "low", "high"))
        ax.vlines(x, low, high, color=hue[position], lw=0.6)
        ax.plot(x, value, color=hue[position], marker="o", ms=2.6)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


_CAPTION = (
    "AUROC of ridge probes by layer, mean over folds of the AUROC within the fold; every fold of case families is "
    "judged by fits on the others, whose strength was chosen by inner folds (several classes: mean of each against the "
    "rest). Whiskers: 95 % intervals for rows that cluster by family. Grey: what the largest over all targets, "
    "positions and layers reaches in 95 % of the permutations (labels of whole cases exchanged within strata; of "
    "personas within cases). Broken lines: the same probe on what needs no activation, at the position where it reads "
    "most, and on random features."
)
