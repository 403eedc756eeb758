"""Figures of persona effects: by metric and stratum, and against the noise floor. Computes no statistic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from probe.behaviour.families import CONFIRMATORY
from probe.report.drawn import (
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
    said,
    side_label,
    signed_tick,
    stratum_keys,
)
from probe.report.numbers import SIGNIFICANT
from probe.report.style import (
    BAND,
    INK,
    TEXT_WIDTH,
    arms,
    colours,
    drawable,
    laid_out,
    metric_name,
    shown,
    stratum_looks,
    styled,
)
from probe.values import ALL

EFFECTS = {"accuracy": "↑", "consistency_strict": "↑", "ece": "↓"}
"""Metrics of the effects figure, each with the direction that is better."""

FOREST = ("accuracy", "consistency_strict", "risk_propensity", "expected_urgency_latent")
"""Metrics of the forest plot, where the table has them; the first four others where it has none of these."""

_LABEL = 0.75  # inches that a stratum's name needs beside its row of panels
_POOLED = "#f6f6f4"
_RANGE = "#ececec"
_NUMBERS = (
    *("metric", "stratum", "persona", "base", "difference", "low", "high", "n", "cases", "p", "p_holm", "family"),
    *("planned",),
)


def main_base(comparisons: pd.DataFrame) -> str:
    """The base persona that the figures and sentences compare with: the first of the table."""
    return str(comparisons["base"].iloc[0])


def against(comparisons: pd.DataFrame, base: str) -> pd.DataFrame:
    """The rows that compare with one base."""
    return comparisons[comparisons["base"] == base]


def effects_height(n_personas: int, n_strata: int) -> float:
    """Inches of the effects figure."""
    return 0.8 + n_strata * (0.3 + max(row_height(n_personas) * n_personas, _LABEL))


def draw_persona_effects(comparisons: pd.DataFrame, *, strata: Sequence[str] = ()) -> Drawn:
    """Change against the base persona in accuracy, consistency and ECE, in percentage points (the paper's figure 2).

    One row of panels per stratum (of those named, by default of all), one column per metric, one bar per persona.
    Whiskers are 95 % intervals (for ECE a descriptive bootstrap band); a star marks Holm-adjusted p < .05, a dagger a
    persona whose strata and pool differ in sign, a diamond the planned difference.
    """
    base = main_base(comparisons)
    rows = against(comparisons, base)
    rows = rows[rows["metric"].isin(list(EFFECTS))]
    personas, found = arms(rows)
    metrics = [metric for metric in EFFECTS if (rows["metric"] == metric).any()]
    drawn = [stratum for stratum in found if not strata or stratum in strata]
    rows, hue = rows[rows["stratum"].isin(drawn)], colours(personas, base)
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, effects_height(len(personas), len(drawn))))
        axes = figure.subplots(len(drawn), len(metrics), sharey=True, sharex="col", squeeze=False)
        for column, metric in enumerate(metrics):
            of_metric = rows[rows["metric"] == metric]
            for line, stratum in enumerate(drawn):
                ax, part = axes[line, column], in_arm_order(of_metric[of_metric["stratum"] == stratum], personas)
                _effect_bars(ax, part, [hue[persona] for persona in personas])
                ax.set_facecolor(_POOLED if stratum == ALL and line else "white")
                ax.set_title(f"{metric_name(metric)} {EFFECTS[metric]}" if line == 0 else "")
            reach = np.nanmax(np.abs(np.stack(numbers_of(of_metric, *_ENDS))), initial=0.01)
            axes[-1, column].set_xlim(-125 * reach - 3, 125 * reach + 3)
        for line, stratum in enumerate(drawn):
            within = rows[rows["stratum"] == stratum]
            n = counted(within["cases" if "cases" in rows else "n"].astype(float).tolist(), "case")
            side_label(axes[line, 0], shown(stratum), n)
        axes[0, 0].set_yticks(range(len(personas)), [drawable(shown(persona)) for persona in personas])
        axes[0, 0].set_ylim(len(personas) - 0.4, -0.6)
        _effect_legend(figure, rows, base)
        numbers = rows[[*filter(rows.columns.__contains__, _NUMBERS), "signs_differ"]].reset_index(drop=True)
        return Drawn(laid_out(figure), numbers, "Persona effects", _EFFECTS_CAPTION.format(base=shown(base)))


_ENDS = ("difference", "low", "high", "planned")
_EFFECTS_CAPTION = (
    "Change against {base} in accuracy, strict consistency (an unparsed answer is a mismatch) and expected "
    "calibration error of the latent label, in percentage points; arrows show the better direction. Whiskers: 95 % "
    "intervals of the paired difference (for ECE a descriptive bootstrap band, no test). * Holm-adjusted p < .05 "
    "over all tests of its family; ‡ decided beforehand, a family of its own. † strata and pool differ in sign, one of "
    "them with an interval that excludes 0. "
    "Diamonds: the planned difference on the same cases, where there is a plan. No bar: undefined."
)


def _effect_bars(ax: Axes, part: pd.DataFrame, hues: Sequence[str]) -> None:
    difference, low, high, planned = (100 * values for values in numbers_of(part, *_ENDS))
    y = np.arange(len(part))
    ax.barh(y, difference, height=0.62, color=hues, alpha=0.85, lw=0)
    ax.hlines(y, low, high, color=INK, lw=0.9)
    ax.plot(planned, y, ls="", marker="D", mfc="white", mec=INK, ms=3.6, mew=0.8)
    ax.axvline(0, color=INK, lw=0.8)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    stars = part["p_holm"] < SIGNIFICANT
    # The dagger belongs to the pooled figure: it is the one that hides what the strata show.
    daggers = part["signs_differ"].eq(True) & (part["stratum"] == ALL)
    decided = part["family"] == CONFIRMATORY if "family" in part else stars & False
    marks = zip(stars, decided, daggers, strict=True)
    for i, text in enumerate("*" * star + "‡" * before + "†" * dagger for star, before, dagger in marks):
        if not text or not np.isfinite(difference[i]):
            continue
        ends = [value for value in (difference[i], low[i], high[i], planned[i]) if np.isfinite(value)]
        end, offset, side = (max(ends), 4, "left") if difference[i] >= 0 else (min(ends), -4, "right")
        ax.annotate(text, (end, i), (offset, 0), textcoords="offset points", ha=side, va="center", fontsize=8)


def _effect_legend(figure: Figure, rows: pd.DataFrame, base: str) -> None:
    keys = [Line2D([], [], color=INK, lw=0.9, label="95 % interval (ECE: descriptive band)"), *planned_key(rows)]
    words = "* Holm-adjusted p < .05"
    if (rows["signs_differ"].eq(True) & (rows["stratum"] == ALL)).any():
        words += "    † strata and pool differ in sign"
    if "family" in rows and (rows["family"] == CONFIRMATORY).any():
        words += "    ‡ decided beforehand"
    explained(figure, [*keys, said(words)], axis=f"change against {shown(base)}, percentage points")


def forest_height(n_personas: int, n_strata: int) -> float:
    """Inches of the forest plot."""
    return 0.95 + max(row_height(n_personas), 0.1 * n_strata + 0.06) * max(n_personas, 2)


def draw_forest(rows: pd.DataFrame, *, floor: bool, strata: Sequence[str] = ()) -> Drawn:
    """Effect of every persona on every metric, one panel per metric, strata as marks within a row.

    With ``floor`` the rows are those of a noise-floor table: the effect is the persona (mean of its wordings) minus the
    mean of the neutral control wordings, dark bands are what 95 % of controls worded as often would reach, pale bands
    the range of the single control wordings, and a filled mark lies beyond the floor (Holm-adjusted p < .05). Without,
    they are rows of a comparison, nothing is known of the floor, and a filled mark has Holm-adjusted p < .05.
    """
    rows = rows.rename(columns={} if floor else {"difference": "effect"})
    metrics = _forest_metrics(rows)
    rows = rows[rows["metric"].isin(metrics) & (rows["stratum"].isin(strata) if len(strata) else True)]
    personas, strata = arms(rows)
    looks = stratum_looks(strata)
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, forest_height(len(personas), len(strata))))
        axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            for stratum, shift in zip(strata, dodged(len(strata), 0.3), strict=True):
                part = rows[(rows["metric"] == metric) & (rows["stratum"] == stratum)]
                _forest_marks(ax, in_arm_order(part, personas), looks[stratum], shift, 0.26 if len(strata) > 1 else 0.5)
            ax.axvline(0, color=INK, lw=0.8)
            panel_title(ax, metric_name(metric), len(metrics), fontsize=7.5)
            ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            ax.xaxis.set_major_formatter(FuncFormatter(signed_tick))
        named_rows(axes[0], [shown(persona) for persona in personas])
        for ax in axes[1:]:
            named_rows(ax, [shown(persona) for persona in personas])
        other = "the mean of the neutral control wordings" if floor else shown(main_base(rows))
        keys = [*stratum_keys(looks, {stratum: shown(stratum) for stratum in strata}), *_forest_keys(floor)]
        explained(figure, keys, ncols=3, axis=f"difference from {other} with 95 % interval, in each metric's own units")
        title = "Effects and the noise floor" if floor else "Effects by metric"
        wanted = ("metric", "stratum", "persona", "base", "effect", "low", "high", "p", "p_holm", *_FLOOR_COLUMNS)
        numbers = rows[[name for name in wanted if name in rows]].reset_index(drop=True)
        return Drawn(laid_out(figure), numbers, title, _forest_caption(rows, floor))


_FLOOR_COLUMNS = ("floor_half", "floor_low", "floor_high", "k", "m", "n", "p_rank", "p_rank_min")


def _forest_metrics(rows: pd.DataFrame) -> list[str]:
    found = list(dict.fromkeys(rows["metric"]))
    return [metric for metric in FOREST if metric in found] or found[: len(FOREST)]


def _forest_marks(ax: Axes, part: pd.DataFrame, look: tuple[str, str], shift: float, thick: float) -> None:
    hue, mark = look
    effect, low, high, half, least, most = numbers_of(
        part, "effect", "low", "high", "floor_half", "floor_low", "floor_high"
    )
    y = np.arange(len(part)) + shift
    ax.barh(y, most - least, left=least, height=thick, color=_RANGE, lw=0)
    ax.barh(y, 2 * half, left=-half, height=thick, color=BAND, lw=0)
    ax.hlines(y, low, high, color=hue, lw=1)
    beyond = (part["p_holm"] < SIGNIFICANT).to_numpy()
    ax.plot(effect[beyond], y[beyond], ls="", marker=mark, color=hue, ms=3.6)
    ax.plot(effect[~beyond], y[~beyond], ls="", marker=mark, mec=hue, mfc="white", ms=3.6, mew=0.8)


def _forest_keys(floor: bool) -> list[Line2D | Patch]:
    bands: list[Line2D | Patch] = [
        Patch(color=BAND, label="95 % of controls worded as often"),
        Patch(color=_RANGE, label="range of the control wordings"),
    ]
    words = (
        "filled: beyond the floor (Holm p < .05)" if floor else "filled: Holm-adjusted p < .05; no noise floor known"
    )
    return [*(bands if floor else []), said(words)]


def _forest_caption(rows: pd.DataFrame, floor: bool) -> str:
    if not floor:
        return (
            "Effect of every persona with its 95 % interval, paired by case. Filled: Holm-adjusted p < .05. The run "
            "holds no set of neutral control wordings (builtin:controls), so it is not known how far a mere change of "
            "wording moves these metrics: no noise floor is drawn."
        )
    k = counted(rows["k"].tolist(), "control wording")
    return (
        f"Effect of every persona (mean over its wordings) against the mean of {k or 'the control wordings'}, with "
        "its 95 % interval. Dark band: where 95 % of controls with as many wordings would fall; pale band: range of "
        "the single control wordings, which alone would flag far too many personas. Filled: beyond the floor, "
        "Holm-adjusted p < .05 of the t test against the spread of the controls, on these cases."
    )
