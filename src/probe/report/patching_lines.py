"""Figures of a patching run: its controls by layer, and the roles through which an effect comes. Knows tidy tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from probe.mechanism.patching.grid import DENOISING, NONSENSE, OTHER_CASE, RESID
from probe.mechanism.patching.groups import ANSWER, CASE, GROUPS, PERSONA, PROMPT_END
from probe.mechanism.patching.paths import DIRECT, THROUGH_CASE, THROUGH_REST, THROUGH_TEXT
from probe.report.drawn import (
    Drawn,
    explained,
    named_rows,
    numbers_of,
    panel_title,
    plain_tick,
    said,
    side_label,
    signed_tick,
)
from probe.report.style import (
    BAND,
    BASE_COLOUR,
    INK,
    PAGE_HEIGHT,
    SOFT,
    TEXT_WIDTH,
    laid_out,
    metric_name,
    shown,
    styled,
)

GROUP_NAMES = {name: name.replace("_", " ") for name in GROUPS} | {"persona": "persona tokens", "case": "case tokens"}
"""What a reader sees for each group of tokens."""

LINES = {"": ("#0072B2", "-", "o"), OTHER_CASE: ("#009E73", "--", "s"), NONSENSE: (BASE_COLOUR, ":", "^")}
LINE_NAMES = {"": "the persona, this case", OTHER_CASE: "the persona, another case", NONSENSE: "a nonsense persona"}

ROLES = {
    DIRECT: ("#0072B2", "o", "directly from the persona's tokens"),
    THROUGH_CASE: ("#D55E00", "s", "through the case"),
    THROUGH_REST: ("#009E73", "^", "through the rest of the prompt"),
    THROUGH_TEXT: ("#CC79A7", "D", "through prompt end and text"),
}


def draw_controls(rows: pd.DataFrame) -> Drawn:
    """What each donor brings into the base run by residual point, at the tokens where it matters; a row per persona."""
    rows = rows[(rows["stream"] == RESID) & (rows["direction"] == DENOISING)]
    personas = [
        p for p in rows["persona"].drop_duplicates() if rows.loc[rows["persona"] == p, "fraction"].notna().any()
    ]
    groups = [group for group in (PERSONA, CASE, PROMPT_END, ANSWER) if (rows["group"] == group).any()]
    drawn = rows[rows["persona"].isin(personas) & rows["group"].isin(groups)]
    with styled():
        height = min(0.9 + 1.15 * max(len(personas), 1), PAGE_HEIGHT)
        figure = Figure(figsize=(TEXT_WIDTH, height))
        axes = figure.subplots(max(len(personas), 1), len(groups), squeeze=False, sharex=True, sharey=True)
        for i, persona in enumerate(personas):
            for j, group in enumerate(groups):
                own = drawn[(drawn["persona"] == persona) & (drawn["group"] == group)]
                _lines(axes[i, j], own)
                panel_title(axes[i, j], GROUP_NAMES.get(group, group.replace("_", " ")) if i == 0 else "", len(groups))
            side_label(axes[i, 0], shown(persona))
        for ax in axes[-1]:
            ax.set_xlabel("residual point")
        highest = drawn["fraction"].max() if len(drawn) else 1.0
        axes[0, 0].set_ylim(-0.4, float(np.clip(1.1 * highest, 1.35, 2.5)))
        keys = [
            Line2D([], [], color=hue, ls=style, marker=mark, ms=3, label=LINE_NAMES[name])
            for name, (hue, style, mark) in LINES.items()
            if (drawn["control"] == name).any() or not personas
        ]
        explained(figure, [*keys, said("bands: Fieller sets, 95 %")], ncols=4, axis="share of the persona's effect")
        return Drawn(laid_out(figure), drawn.reset_index(drop=True), "Patching and its controls", _CONTROLS_CAPTION)


def _lines(ax: Axes, own: pd.DataFrame) -> None:
    ax.axhline(0, color=INK, lw=0.6)
    ax.axhline(1, color=SOFT, lw=0.6, ls=":")
    for name, (hue, style, mark) in LINES.items():
        part = own[own["control"] == name].sort_values("layer")
        value, low, high = numbers_of(part, "fraction", "fraction_low", "fraction_high")
        x = part["layer"].to_numpy(float)
        if not name:  # where the cell is known beforehand nothing was found: as in the grid
            for known in x[part["by_construction"].notna()] if "by_construction" in part else ():
                ax.axvspan(known - 0.5, known + 0.5, facecolor="none", edgecolor=BAND, hatch="////", lw=0, zorder=0)
        ax.fill_between(x, low, high, color=hue, alpha=0.18, lw=0)
        ax.plot(x, value, color=hue, ls=style, marker=mark, ms=2.8, lw=1.2)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.yaxis.set_major_formatter(FuncFormatter(plain_tick))


_CONTROLS_CAPTION = (
    "Share of the persona's mean effect that a donor's residual stream brings into the base run, by residual point, at "
    "four groups of tokens. Another case: the same persona on a case of another family (of as many tokens, where the "
    "case itself is patched), beyond what the base run of that case brings; the persona's own tokens stand before the "
    "case and are the same on every one. Nonsense: a text of as many tokens in the form of a persona. Personas whose "
    "effect is not resolved are not drawn. Hatched: known beforehand, by construction."
)


def draw_roles(paths: pd.DataFrame) -> Drawn:
    """What comes to the token that is read from each role of tokens: mean over all orders, and both ends of them."""
    reads, personas = (list(paths[name].drop_duplicates()) for name in ("read", "persona"))
    with styled():
        height = 1.25 + min(0.62 * len(personas), PAGE_HEIGHT - 1.25)
        figure = Figure(figsize=(TEXT_WIDTH, height))
        axes = figure.subplots(1, len(reads), sharey=True, squeeze=False)[0]
        for ax, read in zip(axes, reads, strict=True):
            own = paths[paths["read"] == read]
            ax.axvline(0, color=INK, lw=0.8)
            for i, persona in enumerate(personas):
                _roles_of(ax, own[own["persona"] == persona], i)
            panel_title(ax, f"{read} label (n {int(own['n'].max())})", len(reads))
            ax.xaxis.set_major_formatter(FuncFormatter(signed_tick))
            named_rows(ax, [shown(persona) for persona in personas])
        keys = [
            Line2D([], [], ls="", color=hue, marker=mark, ms=4, label=words)
            for name, (hue, mark, words) in ROLES.items()
            if (paths["role"] == name).any()
        ]
        keys += [
            Line2D([], [], ls="", color=INK, marker="|", ms=7, label="total"),
            said("bars: 95 %, by case family; ticks: changed first, last"),
        ]
        axis = f"{metric_name(str(paths['outcome'].iloc[0])).lower()}: contribution to persona − base"
        explained(figure, keys, ncols=3, axis=axis)
        return Drawn(laid_out(figure), paths.reset_index(drop=True), "By which tokens it comes", _ROLES_CAPTION)


def _roles_of(ax: Axes, own: pd.DataFrame, row: int) -> None:
    roles = [name for name in ROLES if (own["role"] == name).any()]
    told = {(row["role"], row["quantity"]): row for row in own.to_dict("records")}
    for k, name in enumerate(roles):
        hue, mark, _ = ROLES[name]
        y = row + (k - (len(roles) - 1) / 2) * 0.2
        mean = told[name, "shapley"]
        ax.hlines(y, mean["low"], mean["high"], color=hue, lw=1.2)
        ax.plot(mean["value"], y, ls="", marker=mark, color=hue, ms=3.6)
        ends = [told[name, end]["value"] for end in ("first", "last")]
        ax.plot(ends, [y, y], ls="", marker="|", color=hue, ms=4.5, mew=0.8)
    ax.vlines(told["total", "shapley"]["value"], row - 0.42, row + 0.42, color=INK, lw=1.1)


_ROLES_CAPTION = (
    "The last token sees each role of tokens as in the base run or as in the persona's, at every layer, whatever the "
    "others are. Marks: a role's contribution, the mean over all orders in which roles are changed (Shapley value); "
    "they sum to the total (long tick). Small ticks: the role changed first, from the base run alone, and last, when "
    "all others are the persona's; where they differ, roles act together."
)
