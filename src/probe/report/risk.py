"""Figures of risk: propensity and sensitivity, side by side and against each other. Computes no statistic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from probe.report.drawn import (
    NARROW_ROW,
    Drawn,
    counted,
    dodged,
    explained,
    in_arm_order,
    named_rows,
    numbers_of,
    panel_title,
    planned_key,
    row_height,
    ruled,
    said,
    stratum_keys,
)
from probe.report.style import (
    INK,
    SOFT,
    TEXT_WIDTH,
    arms,
    colours,
    has_plan,
    laid_out,
    markers,
    shown,
    stratum_looks,
    styled,
)

METRICS = ("risk_propensity", "risk_log_ratio", "risk_sensitivity")
_DRAWN = ("value", "low", "high", "planned")


def risk_height(n_personas: int, n_strata: int) -> float:
    """Inches of the risk figure."""
    per_line = 0.165 if n_personas * n_strata <= 40 else NARROW_ROW
    return 0.95 + n_personas * max(per_line * n_strata, row_height(n_personas))


def risk_numbers(metrics: pd.DataFrame, strata: Sequence[str] = ()) -> pd.DataFrame:
    """Propensity and sensitivity of every arm, one row per arm: what both figures of risk draw.

    ``ratio`` is I/II, NaN without a type II error; ``smoothed`` is (I + .5)/(II + .5), with its interval.
    """
    personas, found = arms(metrics)
    metrics = metrics.assign(planned=metrics["planned"].where(has_plan(metrics)))
    rows: list[dict[str, object]] = []
    for stratum in (stratum for stratum in found if not strata or stratum in strata):
        parts = {}
        for name in METRICS:
            part = metrics[(metrics["metric"] == name) & (metrics["stratum"] == stratum)]
            parts[name] = in_arm_order(part, personas)
        for persona in personas:
            share, log, ratio = (parts[name].loc[persona] for name in METRICS)
            row: dict[str, object] = {"persona": persona, "stratum": stratum, "n": share["n"]}
            row |= {name if name != "value" else "propensity": share[name] for name in _DRAWN}
            row |= {f"smoothed_{name}".removesuffix("_value"): np.exp(log[name]) for name in _DRAWN}
            counts = ratio["counts"] if isinstance(ratio["counts"], Mapping) else {}
            if not counts:  # no answer was parsed: a share of 0 would read as a finding
                row |= dict.fromkeys(("propensity", "low", "high"), np.nan)
            row |= {name: counts.get(name, np.nan) for name in ("type_1", "type_2")}
            rows.append(row | {"ratio": ratio["value"]})
    return pd.DataFrame(rows)


def draw_risk(metrics: pd.DataFrame, *, strata: Sequence[str] = ()) -> Drawn:
    """Risk propensity (left) and sensitivity (right) per persona and stratum (the paper's figure 3).

    Propensity: share of all cases that are given the high-urgency label. Sensitivity is drawn as (I + .5) / (II + .5)
    on a log scale, which is always defined; both error counts and the plain ratio stand beside it.
    """
    numbers = risk_numbers(metrics, strata)
    personas, drawn = arms(numbers)
    looks = stratum_looks(drawn)
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, risk_height(len(personas), len(drawn))))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.25])
        for stratum, shift in zip(drawn, dodged(len(drawn)), strict=True):
            part = numbers[numbers["stratum"] == stratum]
            y = np.arange(len(personas)) + shift
            _dots(left, part, ("propensity", "low", "high", "planned"), y, looks[stratum])
            _dots(right, part, tuple(f"smoothed{end}" for end in ("", "_low", "_high", "_planned")), y, looks[stratum])
            for at, row in zip(y, part.to_dict("records"), strict=True):
                where = {"transform": right.get_yaxis_transform(), "va": "center", "fontsize": 7}
                right.text(
                    1.02, at, _counted(row["type_1"], row["type_2"], row["ratio"]), color=looks[stratum][0], **where
                )
        named_rows(left, [shown(persona) for persona in personas])
        ruled(right, len(personas))
        right.tick_params(axis="y", length=0)
        right.grid(axis="y", visible=False)
        left.set_xlim(-0.03, 1.03)
        left.set_title("Risk propensity")
        left.set_xlabel("share called high-urgency")
        _log_axis(right)
        right.set_title("Risk sensitivity, (I + ½) / (II + ½)")
        right.set_xlabel("← under-triage            over-triage →")
        right.text(1.02, 1.02, "I : II = I/II", transform=right.transAxes, va="bottom", fontsize=7, fontweight="bold")
        names = {stratum: f"{shown(stratum)} ({_n_of(numbers, stratum)})" for stratum in drawn}
        keys = [*stratum_keys(looks, names), *planned_key(numbers), said("95 % intervals")]
        explained(figure, keys, ncols=5)
        return Drawn(laid_out(figure), numbers, "Risk propensity and sensitivity", _RISK_CAPTION)


_RISK_CAPTION = (
    "Left: share of all cases that are given the high-urgency label, whatever the reference; an unparsed answer is "
    "not high-urgency (no mark: no answer was parsed). Right: over-triage (type I) against under-triage (type II) "
    "errors of the stated label; drawn with one half added to both counts, because the plain ratio is undefined "
    "without a type II error. Where a count is 0 the mark rests on that half, and lies the further out the more cells "
    "(wordings, seeds) there are: read the counts and the plain ratio beside it. Lines: 95 % "
    "intervals. Neither kind of error is better as such."
)


def draw_risk_plane(metrics: pd.DataFrame, base: str = "") -> Drawn:
    """Risk propensity (across) against sensitivity (up), one panel per stratum, one mark per persona.

    A fine line leads from the base persona to each other one: to the right it calls more cases urgent, upwards the
    balance of its errors goes to over-triage.
    """
    numbers = risk_numbers(metrics)
    personas, strata = arms(numbers)
    hue, mark = colours(personas, base), markers(personas)
    named = len(personas) <= _MANY
    with styled():
        lines = -(-len(personas) // 4) if named else 1
        figure = Figure(figsize=(TEXT_WIDTH, 2.6 + 0.15 * lines))
        axes = figure.subplots(1, len(strata), sharey=True, squeeze=False)[0]
        for ax, stratum in zip(axes, strata, strict=True):
            part = numbers[numbers["stratum"] == stratum]
            _plane_panel(ax, part, base, hue, mark)
            panel_title(ax, f"{shown(stratum)} ({_n_of(numbers, stratum)})", len(strata))
            ax.set_xlabel("risk propensity")
        _log_axis(axes[0], along="y")
        axes[0].set_ylabel("risk sensitivity\n(I + ½) / (II + ½)")
        keys = [Line2D([], [], color=hue[p], ls="", marker=mark[p], ms=4, label=shown(p)) for p in personas]
        if not named:
            keys = [said("names and values: see the table behind this figure")]
        explained(figure, [*keys, said("95 % intervals")], ncols=4)
        caption = _PLANE_CAPTION + ("" if named else " Too many personas to name: their values stand in the CSV.")
        return Drawn(laid_out(figure), numbers, "Propensity against sensitivity", caption)


_MANY = 16
_PLANE_CAPTION = (
    "Each persona's share of cases called high-urgency against the ratio of its over- to its under-triage errors (one "
    "half added to both, logarithmic), by stratum, with 95 % intervals of both. Fine lines lead from the base persona. "
    "A persona that merely moves along the general trend is more urgent; one beside the trend errs differently."
)


def _plane_panel(ax: Axes, part: pd.DataFrame, base: str, hue: Mapping[str, str], mark: Mapping[str, str]) -> None:
    origin = part[part["persona"] == base]
    for row in part.to_dict("records"):
        colour, x, y = hue[row["persona"]], row["propensity"], row["smoothed"]
        if len(origin) and row["persona"] != base:
            start = origin.iloc[0]
            ax.plot([start["propensity"], x], [start["smoothed"], y], color=SOFT, lw=0.5)
        ax.hlines(y, row["low"], row["high"], color=colour, lw=0.9)
        ax.vlines(x, row["smoothed_low"], row["smoothed_high"], color=colour, lw=0.9)
        ax.plot(x, y, ls="", marker=mark[row["persona"]], color=colour, ms=4)
    ax.axhline(1, color=INK, lw=0.8)
    if part[["propensity", "smoothed"]].isna().any(axis=1).all():
        ax.set_xlim(0, 1)
        ax.text(0.5, 0.5, "undefined", transform=ax.transAxes, ha="center", fontsize=7.5, color=SOFT)


def _log_axis(ax: Axes, along: str = "x") -> None:
    axis = ax.xaxis if along == "x" else ax.yaxis
    if along == "x":
        ax.set_xscale("log")
        ax.axvline(1, color=INK, lw=0.8)
    else:
        ax.set_yscale("log")
    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x >= 1 else f"1/{1 / x:g}"))
    axis.set_minor_locator(NullLocator())


def _dots(ax: Axes, part: pd.DataFrame, names: Sequence[str], y: np.ndarray, look: tuple[str, str]) -> None:
    value, low, high, planned = numbers_of(part, *names)
    ax.hlines(y, low, high, color=look[0], lw=1)
    ax.plot(planned, y, ls="", marker="D", mfc="white", mec=look[0], ms=4.6, mew=0.8)
    ax.plot(value, y, ls="", marker=look[1], color=look[0], ms=3.4)


def _n_of(numbers: pd.DataFrame, stratum: str) -> str:
    return counted(numbers.loc[numbers["stratum"] == stratum, "n"].astype(float).tolist(), "cell") or "no cell"


def _counted(type_1: float, type_2: float, ratio: float) -> str:
    if np.isnan(type_1):
        return "–"
    return f"{type_1:.0f} : {type_2:.0f} = {'undefined' if np.isnan(ratio) else f'{ratio:.2f}'}"
