"""Figures of the relation: the plane of L and D, and the flip table. Computes no statistic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from probe.report.drawn import (
    Drawn,
    counted,
    dodged,
    explained,
    in_arm_order,
    named_rows,
    numbers_of,
    panel_title,
    row_height,
    said,
    signed_tick,
    stratum_keys,
)
from probe.report.relation_sentences import outcome_words
from probe.report.sides import draw_prediction, draw_sides_of_personas, draw_sides_with
from probe.report.style import (
    BAND,
    INK,
    PAGE_HEIGHT,
    SOFT,
    TEXT_WIDTH,
    arms,
    colours,
    laid_out,
    markers,
    shown,
    stratum_looks,
    styled,
)
from probe.values import ALL

MANY = 18
"""Personas of one figure; more make further figures."""

FLIP_NAMES = {
    "carried": "carried",
    "divergent": "divergent",
    "stated_only": "stated only",
    "latent_only": "latent only",
    "unstated": "no label",
}


def relation_figures(
    relation: pd.DataFrame, flips: pd.DataFrame, sides: pd.DataFrame, prediction: pd.DataFrame
) -> dict[str, Drawn]:
    """Every figure that these tables allow, by name: against the first base, at most 18 personas in each."""
    figures: dict[str, Drawn] = {}
    for name, table, draw in (("locus_plane", relation, draw_plane), ("flips", flips, draw_flips)):
        own = table[table["base"] == table["base"].iloc[0]]
        personas = arms(own)[0]
        parts = [personas[start : start + MANY] for start in range(0, len(personas), MANY)]
        for i, part in enumerate(parts):
            figures[name if len(parts) == 1 else f"{name}_{i + 1}"] = draw(own[own["persona"].isin(part)])
    if len(sides) and sides["value"].notna().any():
        figures["sides_with"] = draw_sides_with(sides)
        if (sides.loc[sides["persona"] != ALL, "value"].notna()).any():
            figures["sides_with_personas"] = draw_sides_of_personas(sides)
    if len(prediction) and prediction["p"].notna().any():
        figures["prediction"] = draw_prediction(prediction)
    return figures


def draw_plane(relation: pd.DataFrame) -> Drawn:
    """L across and D up for every persona, with 95 % intervals and the square of +-delta; one panel per stratum."""
    personas, strata = arms(relation)
    base, first = str(relation["base"].iloc[0]), relation.iloc[0]
    hue, mark = colours(personas, base), markers([base, *personas])
    ends = np.stack(numbers_of(relation, "L_low", "L_high", "D_low", "D_high", "L", "D"))
    reach = 1.08 * max(float(np.nanmax(np.abs(ends), initial=0)), 2 * float(first["delta"]))
    with styled():
        columns = min(len(strata), 3)
        lines = -(-len(strata) // columns)
        size = TEXT_WIDTH / max(columns, 2) + 0.35  # a square panel, its title and its ticks
        figure = Figure(figsize=(TEXT_WIDTH, min(lines * size + 0.7 + 0.06 * len(personas), PAGE_HEIGHT)))
        axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for ax, stratum in zip(axes.flat, strata, strict=False):
            part = in_arm_order(relation[relation["stratum"] == stratum], personas)
            _plane(ax, part, [(hue[p], mark[p]) for p in personas], float(first["delta"]), reach)
            panel_title(ax, f"{shown(stratum)} ({counted(part['n'].astype(float).tolist(), 'case')})", columns)
        for ax in axes.flat[len(strata) :]:
            ax.set_axis_off()
        for ax in axes[-1]:
            ax.set_xlabel("L: change of the latent label")
        for ax in axes[:, 0]:
            ax.set_ylabel("D: what the stated label adds")
        keys: list[Line2D | Patch] = [
            Line2D([], [], ls="", color=hue[p], marker=mark[p], ms=4, label=f"{shown(p)}{_verdict(relation, p)}")
            for p in personas
        ]
        keys += [Patch(color=BAND, label="within the margin"), Line2D([], [], color=SOFT, ls=":", label="T = 0")]
        words = outcome_words(first["outcome"], first["read"])
        explained(figure, keys, ncols=3, axis=f"change of {words} against {_named(base)}; bars: 95 % intervals")
        return Drawn(laid_out(figure), relation.reset_index(drop=True), "Where each effect is visible", _PLANE)


_PLANE = (
    "Change of the latent label (L, across) and what the stated label adds to it (D = T - L, up), paired by case, with "
    "95 % intervals. Grey square: the margin of equivalence. On the horizontal axis an effect is visible in the latent "
    "label and carried into the stated one, on the vertical axis it is visible in the stated label only; on the dotted "
    "line the stated label does not change. Verdicts in the legend are those over all cases. Where an effect is "
    "visible is not where it is caused."
)


def _plane(ax: Axes, part: pd.DataFrame, looks: Sequence[tuple[str, str]], delta: float, reach: float) -> None:
    ax.add_patch(Rectangle((-delta, -delta), 2 * delta, 2 * delta, color=BAND, lw=0, zorder=0))
    ax.axhline(0, color=INK, lw=0.6)
    ax.axvline(0, color=INK, lw=0.6)
    ax.plot([-reach, reach], [reach, -reach], color=SOFT, lw=0.8, ls=":")
    for (_, row), (hue, mark) in zip(part.iterrows(), looks, strict=True):
        ax.plot([row["L_low"], row["L_high"]], [row["D"]] * 2, color=hue, lw=1)
        ax.plot([row["L"]] * 2, [row["D_low"], row["D_high"]], color=hue, lw=1)
        ax.plot(row["L"], row["D"], color=hue, marker=mark, ms=4.5)
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)
    ax.set_aspect("equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(signed_tick))


def _verdict(relation: pd.DataFrame, persona: str) -> str:
    pooled = relation[(relation["persona"] == persona) & (relation["stratum"] == ALL)]
    return f": {pooled['verdict'].iloc[0]}" if len(pooled) else ""


def _named(base: str) -> str:
    return "the control wordings" if base == "controls" else shown(base)


def draw_flips(flips: pd.DataFrame) -> Drawn:
    """How much oftener each label moves than under the control wordings (or how often, without any), by persona."""
    beyond = bool(flips["excess"].notna().any())
    names = ("excess", "excess_low", "excess_high") if beyond else ("value", "low", "high")
    personas, strata = arms(flips)
    looks = stratum_looks(strata)
    kinds = [kind for kind in FLIP_NAMES if kind != "unstated" or (flips.loc[flips["flip"] == kind, "value"] > 0).any()]
    with styled():
        height = 1.3 + max(row_height(len(personas)), 0.1 * len(strata) + 0.06) * max(len(personas), 2)
        figure = Figure(figsize=(TEXT_WIDTH, min(height, PAGE_HEIGHT)))
        axes = figure.subplots(1, len(kinds), sharey=True, sharex=True, squeeze=False)[0]
        for ax, kind in zip(axes, kinds, strict=True):
            for stratum, shift in zip(strata, dodged(len(strata), 0.3), strict=True):
                part = flips[(flips["flip"] == kind) & (flips["stratum"] == stratum)]
                value, low, high = numbers_of(in_arm_order(part, personas), *names)
                y, (hue, mark) = np.arange(len(personas)) + shift, looks[stratum]
                ax.hlines(y, low, high, color=hue, lw=1)
                ax.plot(value, y, ls="", marker=mark, color=hue, ms=3.6)
            ax.axvline(0, color=INK, lw=0.8)
            panel_title(ax, FLIP_NAMES[kind], len(kinds), fontsize=7.5)
            ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            ax.xaxis.set_major_formatter(FuncFormatter(signed_tick))
            named_rows(ax, [shown(persona) for persona in personas])
        base = _named(str(flips["base"].iloc[0]))
        what = "excess over the control wordings" if beyond else "share of cases (no control wordings to compare with)"
        keys = stratum_keys(looks, {stratum: shown(stratum) for stratum in strata})
        explained(figure, [*keys, said("bars: 95 % intervals")], axis=f"labels that move against {base}: {what}")
        return Drawn(laid_out(figure), flips.reset_index(drop=True), "Which labels move", _FLIPS)


_FLIPS = (
    "Share of cases whose latent and stated label both move to the same option (carried), both to different ones "
    "(divergent), or of which only one moves, minus the same share for the control wordings: labels near a cut flip "
    "under any change of wording. Means can cancel, these shares cannot."
)
