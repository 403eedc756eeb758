"""Figures of the text swap: the two paths of each persona, and what a listener hears. Knows tidy tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from probe.report.drawn import (
    Drawn,
    explained,
    in_arm_order,
    named_rows,
    numbers_of,
    panel_title,
    said,
    signed_tick,
    squeezed,
)
from probe.report.numbers import decimal
from probe.report.style import INK, PAGE_HEIGHT, SOFT, TEXT_WIDTH, arms, laid_out, metric_name, shown, styled
from probe.values import ALL

PATHS = {"total": "total", "text": "through the text", "direct": "directly"}
LOOKS = {"total": (INK, "o"), "text": ("#0072B2", "s"), "direct": ("#D55E00", "^")}
_PLACE = {"total": -0.27, "text": 0.0, "direct": 0.27}
_MASKED = 0.1
_NAME = 18

MOST_GUESSES = 20
"""Personas of a drawn confusion matrix; more make a table alone."""


def swap_figures(effects: pd.DataFrame, verdicts: pd.DataFrame, listener: pd.DataFrame) -> dict[str, Drawn]:
    """Every figure that the tables allow, by file name."""
    figures = {}
    if len(verdicts) and effects["value"].notna().any():
        figures["swap_paths"] = draw_paths(effects, verdicts)
    if len(listener) and listener["author"].nunique() <= MOST_GUESSES:
        figures["swap_listener"] = draw_listener(listener)
    return figures


def draw_paths(effects: pd.DataFrame, verdicts: pd.DataFrame) -> Drawn:
    """What each persona moves in all, through its text and directly; one panel per stratum.

    Hollow: the same with persona words masked. Ends of a thin line: the two orders in which text and prompt can be
    changed, whose mean is the mark. The grey band is the margin within which an effect counts as none.
    """
    outcome, base, margin = (verdicts[name].iloc[0] for name in ("outcome", "base", "margin"))
    rows = effects[effects["outcome"] == outcome]
    personas, strata = arms(rows)
    named = {
        (persona, stratum): verdict
        for persona, stratum, masked, verdict in zip(
            *(verdicts[name] for name in ("persona", "stratum", "masked", "verdict")), strict=True
        )
        if not masked
    }
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 1.25 + min(0.5 * len(personas), PAGE_HEIGHT - 1.25)))
        axes = figure.subplots(1, len(strata), sharey=True, sharex=True, squeeze=False)[0]
        for ax, stratum in zip(axes, strata, strict=True):
            ax.axvspan(-margin, margin, color="#eeeeee", lw=0, zorder=0)
            ax.axvline(0, color=INK, lw=0.8)
            within = rows[rows["stratum"] == stratum]
            for path in PATHS:
                _path_marks(ax, within, personas, path)
            panel_title(ax, f"{shown(stratum)} (n {_counts(within)})", len(strata))
            ax.xaxis.set_major_formatter(signed_tick)
            named_rows(ax, [shown(persona) for persona in personas])
            for i, persona in enumerate(personas):
                ax.annotate(
                    named.get((persona, stratum), ""),
                    (1, i - 0.4),
                    xycoords=("axes fraction", "data"),
                    ha="right",
                    va="center",
                    fontsize=6,
                    color=SOFT,
                )
        keys = [Line2D([], [], ls="", color=LOOKS[p][0], marker=LOOKS[p][1], ms=4, label=PATHS[p]) for p in PATHS]
        if rows["masked"].any():
            keys.append(Line2D([], [], ls="", mec=INK, mfc="white", marker="o", ms=4, label="persona words masked"))
        keys.append(said("bars: 95 %, by case family; ticks: the two orders; band: margin"))
        axis = f"{metric_name(str(outcome)).lower()} at the letter, change against {shown(str(base))}"
        explained(figure, keys, ncols=4, axis=axis)
        caption = _PATHS_CAPTION.format(base=shown(str(base)), margin=decimal(float(margin)))
        return Drawn(laid_out(figure), rows.reset_index(drop=True), "Through the text, or directly", caption)


_PATHS_CAPTION = (
    "The text that one persona wrote, up to its letter, is fed under the prompt of another, and the label distribution "
    "is read there. Total: the persona's own prompt and text against those of {base}. Through the text: what changes "
    "when only the text is exchanged; directly: when only the prompt is; both are means over the two orders in which "
    "that can be done (small ticks) and sum to the total. Hollow marks: persona words masked from every text. Grey "
    "words: the verdict at a margin of {margin} (band). Only cases where both wrote a letter behind a text: a persona "
    "can influence which these are."
)


def _path_marks(ax: Axes, within: pd.DataFrame, personas: Sequence[str], path: str) -> None:
    hue, mark = LOOKS[path]
    for masked in (False, True):
        part = within[within["masked"] == masked]
        if part.empty:
            continue
        own = {name: in_arm_order(part[part["quantity"] == name], personas) for name in (path, *_orders(path))}
        value, low, high = numbers_of(own[path], "value", "low", "high")
        y = np.arange(len(personas)) + _PLACE[path] + (_MASKED if masked else 0)
        ax.hlines(y, low, high, color=hue, lw=0.6 if masked else 1.2)
        ax.plot(
            value, y, ls="", marker=mark, mec=hue, mfc="white" if masked else hue, ms=2.6 if masked else 3.8, mew=0.7
        )
        for name in () if masked else _orders(path):
            ax.plot(numbers_of(own[name], "value")[0], y, ls="", marker="|", color=hue, ms=4.5, mew=0.8)


def _orders(path: str) -> tuple[str, ...]:
    return () if path == "total" else (f"{path}_first", f"{path}_last")


def _counts(rows: pd.DataFrame) -> str:
    found = rows.loc[(rows["quantity"] == "total") & ~rows["masked"], "n"]
    low, high = int(found.min()), int(found.max())
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def draw_listener(listener: pd.DataFrame) -> Drawn:
    """Mean posterior of each persona, given the texts of each author: plain, and with persona words masked."""
    rows = listener[listener["stratum"] == ALL]
    kinds = [masked for masked in (False, True) if (rows["masked"] == masked).any()]
    authors = list(rows["author"].drop_duplicates())
    with styled():
        height = 1.5 + 0.26 * len(authors)
        figure = Figure(figsize=(TEXT_WIDTH if len(kinds) > 1 else 0.6 * TEXT_WIDTH, height))
        axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for ax, masked in zip(axes, kinds, strict=True):
            part = rows[rows["masked"] == masked]
            matrix = (
                part.pivot(index="author", columns="persona", values="value").reindex(authors)[authors].to_numpy(float)
            )
            ax.imshow(matrix, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            for i, j in np.ndindex(matrix.shape):
                ink = "white" if matrix[i, j] > 0.55 else INK
                ax.text(j, i, decimal(float(matrix[i, j])), ha="center", va="center", fontsize=6, color=ink)
            named_rows(ax, [shown(author) for author in authors], lines=False)
            names = [squeezed(shown(author), _NAME) for author in authors]
            ax.set_xticks(range(len(authors)), names, rotation=45, ha="right")
            ax.grid(visible=False)
            panel_title(ax, "persona words masked" if masked else "plain texts", len(kinds))
        axes[0].set_ylabel("who wrote the text")
        figure.supxlabel(f"whom the listener hears (chance {decimal(1 / len(authors))})", fontsize=7.5)
        return Drawn(laid_out(figure), rows.reset_index(drop=True), "The imaginary listener", _LISTENER_CAPTION)


_LISTENER_CAPTION = (
    "Each row: the mean posterior over the personas, given a text of one of them up to its letter, if each was as "
    "likely beforehand and the listener knows the model: the probability of the text under each persona's prompt, "
    "divided by their sum. A strong diagonal: the texts tell who speaks. Right: persona words are neither shown to the "
    "listener nor scored; what falls is parroting."
)
