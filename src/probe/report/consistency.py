"""Figures of consistency: by answer site, and why labels disagree. Computes no statistic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
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
    plain_tick,
    row_height,
    said,
    wrapped,
)
from probe.report.sites import CAUSES, LOW_MASS, cause_name, site_name
from probe.report.style import INK, TEXT_WIDTH, arms, laid_out, shown, styled
from probe.values import ALL

_SITE_LOOKS = (("#0072B2", "o"), ("#E69F00", "s"), ("#CC79A7", "^"), ("#56B4E9", "v"), ("#D55E00", "P"))
_ANSWER_LOOK = ("#009E73", "D")
_CAUSE_HUES = {
    "unparsed": "#222222",
    "near_tie": "#E69F00",
    "token_variant": "#CC79A7",
    "draw": "#56B4E9",
    "late_letter": "#0072B2",
    "none": "#d9d9d9",
}
_OTHER_HUES = ("#009E73", "#D55E00")


def sites_height(n_personas: int, n_sites: int) -> float:
    """Inches of the figure of consistency by answer site."""
    return 0.95 + max(row_height(n_personas), 0.1 * n_sites) * max(n_personas, 2)


def draw_sites(sites: pd.DataFrame, *, strata: Sequence[str] = ()) -> Drawn:
    """Consistency rate by answer site: does the letter that was written lead at each place where labels were read?

    One panel per stratum, one row per persona, one mark per site: ``prompt_end``, forced prefixes, ``answer``. A hollow
    mark stands where the labels hold less than half of the probability, so that the label there means little.
    """
    personas, found = arms(sites)
    drawn = [stratum for stratum in found if not strata or stratum in strata]
    rows = sites[sites["stratum"].isin(drawn)]
    looks = _site_looks(list(dict.fromkeys(rows["site"])))
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, sites_height(len(personas), len(looks))))
        axes = figure.subplots(1, len(drawn), sharey=True, sharex=True, squeeze=False)[0]
        for ax, stratum in zip(axes, drawn, strict=True):
            at = rows[rows["stratum"] == stratum]
            for (site, look), shift in zip(looks.items(), dodged(len(looks), 0.24), strict=True):
                _site_marks(ax, in_arm_order(at[at["site"] == site], personas), look, shift)
            n = counted(at["n"].astype(float).tolist(), "cell") or "no cell"
            panel_title(ax, f"{shown(stratum)} ({n})", len(drawn))
            named_rows(ax, [shown(persona) for persona in personas])
        least = np.nanmin(np.stack(numbers_of(rows, "value", "low")), initial=0.5)
        axes[0].set_xlim(max(np.floor(10 * least - 0.5) / 10, -0.03), 1.03)
        axes[0].xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes[0].xaxis.set_major_formatter(FuncFormatter(plain_tick))
        keys = [
            Line2D([], [], color=hue, marker=mark, ms=4, label=site_name(site)) for site, (hue, mark) in looks.items()
        ]
        words = "95 % intervals; hollow: labels hold < .5 there"
        explained(figure, [*keys, said(words)], ncols=4, axis=_SITES_AXIS)
        wanted = ("site", "stratum", "persona", "value", "low", "high", "n", "label_mass", "note")
        numbers = rows[[name for name in wanted if name in rows]].reset_index(drop=True)
        return Drawn(laid_out(figure), numbers, "Consistency by answer site", _SITES_CAPTION)


_SITES_AXIS = "consistency rate: written label = label preferred at the site (parsed cells)"
_SITES_CAPTION = (
    "Share of parsed cells whose written label is the one that the model preferred at each place where its labels "
    "were read, with 95 % intervals. At the answer's own place a greedy model must agree, but for ties and token "
    "variants; the distance from the end of the prompt says how much was decided while writing. Hollow: the labels "
    "together hold less than half of the probability there. Parsed cells are a subset that a persona can influence: "
    "descriptive."
)


def _site_looks(found: Sequence[str]) -> dict[str, tuple[str, str]]:
    others = [site for site in found if site != "answer"]
    looks = {site: _SITE_LOOKS[i % len(_SITE_LOOKS)] for i, site in enumerate(others)}
    return looks | ({"answer": _ANSWER_LOOK} if "answer" in found else {})


def _site_marks(ax: Axes, part: pd.DataFrame, look: tuple[str, str], shift: float) -> None:
    hue, mark = look
    value, low, high, mass = numbers_of(part, "value", "low", "high", "label_mass")
    y = np.arange(len(part)) + shift
    ax.hlines(y, low, high, color=hue, lw=0.9)
    weak = mass < LOW_MASS
    ax.plot(value[~weak], y[~weak], ls="", marker=mark, color=hue, ms=3.6)
    ax.plot(value[weak], y[weak], ls="", marker=mark, mec=hue, mfc="white", ms=3.6, mew=0.8)


def causes_height(n_personas: int) -> float:
    """Inches of the figure of causes of disagreement."""
    return 1.0 + row_height(n_personas) * max(n_personas, 2)


def draw_causes(causes: pd.DataFrame, *, stratum: str = ALL) -> Drawn:
    """Why the two labels disagree: every cause's rate among disagreeing and among agreeing cells, and its share.

    Left, one row per cause and one line per persona: from the rate among agreeing cells (hollow) to that among
    disagreeing ones (filled). Right: one bar per persona, every disagreeing cell given to the first cause that it has.
    """
    rows = causes[causes["stratum"] == stratum]
    personas = arms(rows)[0]
    found = [cause for cause in dict.fromkeys([*CAUSES, *rows["cause"]]) if (rows["cause"] == cause).any()]
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, causes_height(len(personas))))
        rated = [cause for cause in found if cause != "none"]
        grid = figure.subplots(1, len(rated) + 1, sharey=True, squeeze=False, width_ratios=[1] * len(rated) + [1.7])[0]
        for ax, cause in zip(grid, rated, strict=False):
            _cause_rates(ax, in_arm_order(rows[rows["cause"] == cause], personas), _hue(cause, found))
            ax.set_title(wrapped(cause_name(cause), 13), fontsize=7)
        _cause_shares(grid[-1], rows, personas, found)
        for ax in grid:
            named_rows(ax, [shown(persona) for persona in personas])
        hollow = Line2D([], [], ls="", marker="o", mec=INK, mfc="white", ms=5.2, label="among agreeing cells")
        filled = Line2D([], [], color=INK, marker="o", ms=3, label="among disagreeing cells (95 % interval)")
        patches = [Patch(color=_hue(cause, found), label=cause_name(cause)) for cause in found]
        explained(figure, [hollow, filled, *patches], ncols=3)
        where = "" if stratum == ALL else f" in {shown(stratum)}"
        numbers = rows[[name for name in _CAUSE_NUMBERS if name in rows]].reset_index(drop=True)
        return Drawn(laid_out(figure), numbers, f"Causes of disagreement{where}", _CAUSES_CAPTION)


_CAUSE_NUMBERS = (
    *("cause", "stratum", "persona", "rate_disagree", "disagree_low", "disagree_high", "k_disagree", "n_disagree"),
    *("rate_agree", "k_agree", "n_agree", "ratio", "share", "k_share", "note"),
)
_CAUSES_CAPTION = (
    "Left: how often each possible cause occurs among cells whose labels disagree (filled, 95 % interval) and among "
    "those that agree (hollow): causes overlap, and a cause that is as frequent where the labels agree explains "
    "nothing. Right: each disagreeing cell counted once, under the first cause that it has, in the order of the "
    "legend; the number is that of disagreeing cells."
)


def _cause_rates(ax: Axes, part: pd.DataFrame, hue: str) -> None:
    wrong, low, high, right = numbers_of(part, "rate_disagree", "disagree_low", "disagree_high", "rate_agree")
    y, colour = np.arange(len(part)), INK if hue == _CAUSE_HUES["none"] else hue
    ax.hlines(y, low, high, color=colour, lw=1)
    ax.plot(right, y, ls="", marker="o", mec=colour, mfc="white", ms=5.2, mew=0.8)  # seen around an equal rate too
    ax.plot(wrong, y, ls="", marker="o", color=colour, ms=3)
    ax.set_xlim(-0.06, 1.06)
    ax.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    ax.set_xlabel("rate")


def _cause_shares(ax: Axes, rows: pd.DataFrame, personas: Sequence[str], found: Sequence[str]) -> None:
    start = np.zeros(len(personas))
    for cause in found:
        (share,) = numbers_of(in_arm_order(rows[rows["cause"] == cause], personas), "share")
        ax.barh(np.arange(len(personas)), share, left=start, height=0.62, color=_hue(cause, found), lw=0)
        start = start + np.nan_to_num(share)
    counts = in_arm_order(rows[rows["cause"] == found[0]], personas)
    (n,) = numbers_of(counts, "n_disagree")
    for i, count in enumerate(n):
        text = "–" if np.isnan(count) else f"{count:.0f}"
        ax.text(1.03, i, text, va="center", fontsize=7, transform=ax.get_yaxis_transform())
    ax.set_xlim(0, 1)
    ax.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    ax.set_xlabel("share of disagreeing cells")
    ax.set_title("exclusive shares", fontsize=7)
    ax.text(1.03, 1.02, "n", transform=ax.transAxes, va="bottom", fontsize=7, fontweight="bold")


def _hue(cause: str, found: Sequence[str]) -> str:
    others = [name for name in found if name not in _CAUSE_HUES]
    return _CAUSE_HUES.get(cause) or _OTHER_HUES[others.index(cause) % len(_OTHER_HUES)]
