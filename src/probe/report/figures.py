"""The figures of a persona study. Knows tidy tables of metrics, differences, bins and shifts; computes no statistic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from probe.report.style import (
    BAND,
    INK,
    METRIC_NAMES,
    SOFT,
    TEXT_WIDTH,
    arms,
    colours,
    laid_out,
    markers,
    shown,
    styled,
)
from probe.values import ALL

EFFECTS = {"accuracy": "↑", "consistency_strict": "↑", "ece": "↓"}
"""Metrics of the effects figure, each with the direction that is better."""

SIGNIFICANT = 0.05
POOLED = "#f6f6f4"
_COUNTS = "#9fc0dd"
_FEW = 10
_NARROWEST = 1.05  # inches of a small panel; more than six personas make a wider figure
_DRAWN = ("value", "low", "high", "planned")


def draw_persona_effects(comparisons: pd.DataFrame) -> Figure:
    """Change against the base persona in accuracy, consistency and ECE, in percentage points (the paper's figure 2).

    One row of panels per stratum. Whiskers are 95 % intervals (for ECE a descriptive bootstrap band); a star marks
    Holm-adjusted p < .05, a dagger a persona whose strata and pool differ in sign, a diamond the planned difference.
    """
    shown_rows = comparisons[comparisons["metric"].isin(list(EFFECTS))]
    personas, strata = arms(shown_rows)
    base = str(comparisons["base"].iloc[0])
    hue = colours(personas, base)
    height = 0.75 + len(strata) * (0.3 + 0.19 * len(personas))
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, height))
        axes = figure.subplots(len(strata), len(EFFECTS), sharey=True, sharex="col", squeeze=False)
        for column, (metric, better) in enumerate(EFFECTS.items()):
            rows = shown_rows[shown_rows["metric"] == metric]
            for line, stratum in enumerate(strata):
                ax = axes[line, column]
                part = rows[rows["stratum"] == stratum].set_index("persona").reindex(personas)
                _effect_bars(ax, part, [hue[persona] for persona in personas])
                ax.set_facecolor(POOLED if stratum == ALL and line else "white")
                ax.set_title(f"{METRIC_NAMES[metric]} {better}" if line == 0 else "")
                if column == 0:
                    ax.set_ylabel(shown(stratum), fontweight="bold", labelpad=6)
            reach = np.nanmax(
                np.abs(rows[["difference", "low", "high", "planned"]].to_numpy(dtype=float)), initial=0.01
            )
            axes[-1, column].set_xlim(-115 * reach - 3, 115 * reach + 3)
            axes[-1, column].set_xlabel(f"change against {shown(base)} (pp)")
        axes[0, 0].set_yticks(range(len(personas)), [shown(persona) for persona in personas])
        axes[0, 0].set_ylim(len(personas) - 0.4, -0.6)
        keys = [Line2D([], [], color=INK, lw=0.9, label="95 % interval (ECE: descriptive band)")]
        keys += _planned_key(shown_rows)
        said = "* Holm-adjusted p < .05"
        if shown_rows["signs_differ"].any():
            said += "    † strata and pool differ in sign"
        keys.append(Line2D([], [], ls="", label=said))
        figure.legend(handles=keys, loc="outside lower center", ncols=len(keys))
        return laid_out(figure)


def _effect_bars(ax: Axes, part: pd.DataFrame, hues: Sequence[str]) -> None:
    names = ("difference", "low", "high", "planned")
    difference, low, high, planned = (100 * part[name].to_numpy(dtype=float) for name in names)
    y = np.arange(len(part))
    ax.barh(y, difference, height=0.62, color=hues, alpha=0.85, lw=0)
    ax.hlines(y, low, high, color=INK, lw=0.9)
    ax.plot(planned, y, ls="", marker="D", mfc="white", mec=INK, ms=3.6, mew=0.8)
    ax.axvline(0, color=INK, lw=0.8)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    stars = part["p_holm"] < SIGNIFICANT
    # The dagger belongs to the pooled figure: it is the one that hides what the strata show.
    daggers = part["signs_differ"].fillna(False).astype(bool) & (part["stratum"] == ALL)
    for i, text in enumerate("*" * star + "†" * dagger for star, dagger in zip(stars, daggers, strict=True)):
        if not text or not np.isfinite(difference[i]):
            continue
        right = difference[i] >= 0
        end = np.nanmax([high[i], planned[i]]) if right else np.nanmin([low[i], planned[i]])
        offset, side = (4, "left") if right else (-4, "right")
        ax.annotate(text, (end, i), (offset, 0), textcoords="offset points", ha=side, va="center", fontsize=8)


def draw_risk(metrics: pd.DataFrame) -> Figure:
    """Risk propensity (left) and sensitivity (right) per persona and stratum (the paper's figure 3).

    Propensity: share of all cases that are given the high-urgency label. Sensitivity is drawn as (I + .5) / (II + .5)
    on a log scale, which is always defined; both error counts and the plain ratio stand beside it.
    """
    personas, strata = arms(metrics)
    looks = dict(zip(strata, _stratum_looks(len(strata)), strict=True))
    dodge = np.linspace(-0.27, 0.27, len(strata)) if len(strata) > 1 else np.zeros(1)
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 0.9 + 0.165 * len(personas) * max(len(strata), 2)))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.25])
        for stratum, shift in zip(strata, dodge, strict=True):
            y = np.arange(len(personas)) + shift
            propensity, log_ratio, ratio = (
                _metric(metrics, name, stratum, personas)
                for name in ("risk_propensity", "risk_log_ratio", "risk_sensitivity")
            )
            _dots(left, propensity, y, looks[stratum])
            _dots(right, log_ratio[list(_DRAWN)].astype(float).apply(np.exp), y, looks[stratum])
            for at, counts, value in zip(y, ratio["counts"], ratio["value"], strict=True):
                where = {"transform": right.get_yaxis_transform(), "va": "center", "fontsize": 7}
                right.text(1.02, at, _counted(counts, value), color=looks[stratum][0], **where)
        left.set_yticks(range(len(personas)), [shown(persona) for persona in personas])
        left.set_ylim(len(personas) - 0.5, -0.5)
        left.set_xlim(-0.03, 1.03)
        left.set_title("Risk propensity")
        left.set_xlabel("share of cases called high-urgency")
        right.set_xscale("log")
        right.axvline(1, color=INK, lw=0.8)
        right.set_title("Risk sensitivity, (I + ½) / (II + ½)")
        right.set_xlabel("← under-triage prevails      over-triage prevails →")
        right.text(1.02, 1.02, "I : II = I/II", transform=right.transAxes, va="bottom", fontsize=7, fontweight="bold")
        right.xaxis.set_major_locator(LogLocator(numticks=6))
        right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x >= 1 else f"1/{1 / x:g}"))
        right.xaxis.set_minor_locator(NullLocator())
        for ax in (left, right):
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", length=0)
            ax.hlines(np.arange(1, len(personas)) - 0.5, 0, 1, transform=ax.get_yaxis_transform(), color=BAND, lw=0.5)
        keys = [Line2D([], [], color=hue, marker=mark, label=shown(stratum)) for stratum, (hue, mark) in looks.items()]
        keys += _planned_key(metrics[metrics["metric"] == "risk_propensity"])
        figure.legend(handles=keys, loc="outside lower center", ncols=len(keys))
        return laid_out(figure)


def draw_reliability(bins: pd.DataFrame, metrics: pd.DataFrame | None = None) -> Figure:
    """Reliability diagrams, one small panel per persona and stratum: accuracy against confidence of the latent label.

    Grey boxes: where a perfectly calibrated bin falls 95 % of the time. The steps at the bottom are the share of cases
    per bin. With ``metrics`` each panel prints its ECE and the range of the ECE under perfect calibration.
    """
    personas, strata = arms(bins)
    with styled():
        width = min(max(TEXT_WIDTH / max(len(personas), 3), _NARROWEST), 1.6)
        size = (max(width * len(personas), TEXT_WIDTH), 1.1 + len(strata) * (width + 0.05))
        # The names over the first row reach beyond their panels: leave them a margin.
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 0.985)))
        axes = figure.subplots(len(strata), len(personas), sharex=True, sharey=True, squeeze=False)
        for line, stratum in enumerate(strata):
            for column, persona in enumerate(personas):
                ax = axes[line, column]
                _reliability_panel(ax, bins[(bins["persona"] == persona) & (bins["stratum"] == stratum)])
                ece = "" if metrics is None else _ece_text(metrics, persona, stratum)
                ax.set_title(ece, fontsize=7, fontweight="normal", pad=3)
                if line == 0:
                    place = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
                    ax.annotate(_two_lines(shown(persona)), (0, 1), (0, 21 if ece else 3), fontweight="bold", **place)
            axes[line, 0].set_ylabel(shown(stratum), fontweight="bold")
        axes[0, 0].set(xlim=(0, 1), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        for ax in axes[-1]:
            ax.set_xlabel("confidence")
            ax.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        axes[0, 0].set_yticks([0, 0.5, 1], ["0", ".5", "1"])
        figure.supylabel("accuracy of the latent label", fontsize=7.5)
        keys: list[Line2D | Patch] = [
            Line2D([], [], color=INK, marker="o", ms=3, label=f"accuracy, 95 % interval (hollow: < {_FEW} cases)"),
            Patch(color=BAND, label="perfect calibration, 95 % range"),
            Patch(color=_COUNTS, label="cases per bin"),
        ]
        figure.legend(handles=keys, loc="outside lower center", ncols=len(keys))
        return laid_out(figure)


def _reliability_panel(ax: Axes, part: pd.DataFrame) -> None:
    lower, width, count = part["lower"], part["upper"] - part["lower"], part["count"]
    ax.bar(lower, part["null_high"] - part["null_low"], width, part["null_low"], align="edge", color=BAND, lw=0)
    ax.bar(lower, 0.22 * count / max(count.max(), 1), width, align="edge", color=_COUNTS, lw=0)
    ax.plot([0, 1], [0, 1], color=SOFT, lw=0.7, ls=(0, (4, 3)))
    for few, fill in ((False, INK), (True, "white")):
        dots = part[(count < _FEW) == few]
        if dots.empty:  # unclipped artists without a point have no extent, which the layout cannot take
            continue
        ax.vlines(dots["confidence"], dots["low"], dots["high"], color=SOFT if few else INK, lw=0.6 if few else 1)
        ax.plot(
            dots["confidence"], dots["accuracy"], ls="", marker="o", ms=3, mfc=fill, mec=INK, mew=0.7, clip_on=False
        )
    ax.grid(visible=False)
    ax.set_aspect("equal")


def draw_shift(shifts: pd.DataFrame) -> Figure:
    """Size of each persona's residual shift by layer, relative to the base's residual norm; one panel per stratum.

    Bands: jackknife intervals over cases. Dotted: the noise floor, the 95 % quantile without a common shift at that
    layer. Where the size is undefined the line is broken.
    """
    personas, strata = arms(shifts)
    base = str(shifts["base"].iloc[0])
    hue, mark = colours(personas, base), markers(personas)
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 2.5 + 0.18 * (1 + len(personas) // 6)))
        axes = figure.subplots(1, len(strata), sharey=True, sharex=True, squeeze=False)[0]
        for ax, stratum in zip(axes, strata, strict=True):
            for persona in personas:
                part = shifts[(shifts["persona"] == persona) & (shifts["stratum"] == stratum)].sort_values("layer")
                x, colour = part["layer"], hue[persona]
                ax.fill_between(
                    x, part["low"].astype(float), part["high"].astype(float), color=colour, alpha=0.18, lw=0
                )
                ax.plot(x, part["floor"], color=colour, lw=0.9, ls=":")
                ax.plot(x, part["value"].astype(float), color=colour, marker=mark[persona], ms=3.2)
            ax.set_title(shown(stratum))
            ax.set_xlabel("residual point (0 = embeddings)")
            ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes[0].set_ylim(bottom=0)
        axes[0].set_ylabel(f"common shift from {shown(base)}\n(share of residual norm)")
        keys = [Line2D([], [], color=hue[p], marker=mark[p], ms=3.2, label=shown(p)) for p in personas]
        keys.append(Line2D([], [], color=SOFT, lw=0.9, ls=":", label="noise floor at each point"))
        figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 6))
        return laid_out(figure)


def study_figures(
    metrics: pd.DataFrame, comparisons: pd.DataFrame, bins: pd.DataFrame, shifts: pd.DataFrame | None = None
) -> dict[str, Figure]:
    """Every figure that these tables allow, by name: persona_effects, risk, reliability, shift.

    A table without rows (one persona only, no label distributions, no captured layer) gives no figure.
    """
    figures = {}
    if len(comparisons):
        figures["persona_effects"] = draw_persona_effects(comparisons)
    figures["risk"] = draw_risk(metrics)
    if len(bins):
        figures["reliability"] = draw_reliability(bins, metrics)
    if shifts is not None and len(shifts):
        figures["shift"] = draw_shift(shifts)
    return figures


def _planned_key(rows: pd.DataFrame) -> list[Line2D]:
    if not rows["planned"].notna().any():
        return []
    return [Line2D([], [], ls="", marker="D", mfc="white", mec=INK, ms=3.6, label="planned")]


def _ece_text(metrics: pd.DataFrame, persona: str, stratum: str) -> str:
    row = _metric(metrics, "ece", stratum, [persona]).iloc[0]
    if not np.isfinite(row["value"]):
        return "ECE undefined"
    value, low, high = (f"{row[name]:.2f}".removeprefix("0") for name in ("value", "null_low", "null_high"))
    return f"ECE {value}\n(null {low}–{high})"


def _two_lines(text: str) -> str:
    """Break a name near its middle, so that it fits over a small panel."""
    words, best = text.split(" "), text
    for cut in range(1, len(words)):
        broken = "\n".join((" ".join(words[:cut]), " ".join(words[cut:])))
        best = min(best, broken, key=lambda option: max(len(line) for line in option.split("\n")))
    return best


def _stratum_looks(n: int) -> list[tuple[str, str]]:
    """Colour and marker of each stratum; the pool, which comes last, is black."""
    hues, shapes = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"), ("s", "^", "v", "P", "X", "d")
    return [(hues[i % len(hues)], shapes[i % len(shapes)]) for i in range(n - 1)] + [(INK, "o")]


def _metric(metrics: pd.DataFrame, metric: str, stratum: str, personas: Sequence[str]) -> pd.DataFrame:
    rows = metrics[(metrics["metric"] == metric) & (metrics["stratum"] == stratum)]
    return rows.set_index("persona").reindex(list(personas))


def _dots(ax: Axes, rows: pd.DataFrame, y: np.ndarray, look: tuple[str, str]) -> None:
    value, low, high, planned = (rows[name].to_numpy(dtype=float) for name in _DRAWN)
    ax.hlines(y, low, high, color=look[0], lw=1)
    ax.plot(planned, y, ls="", marker="D", mfc="white", mec=look[0], ms=4.6, mew=0.8)
    ax.plot(value, y, ls="", marker=look[1], color=look[0], ms=3.4)


def _counted(counts: Mapping[str, float], ratio: float) -> str:
    if not counts:
        return "–"
    value = "undefined" if np.isnan(ratio) else f"{ratio:.2f}"
    return f"{counts['type_1']:.0f} : {counts['type_2']:.0f} = {value}"
