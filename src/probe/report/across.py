"""Persona effects in several models: a forest by metric, and the order of the personas. Computes no statistic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from probe.report.drawn import Drawn, dodged, explained, named_rows, panel_title, said, signed_tick
from probe.report.numbers import decimal, interval, listed, p_value, plural, signed
from probe.report.page import Picture, embedded
from probe.report.style import (
    BAND,
    INK,
    SOFT,
    TEXT_WIDTH,
    colours,
    drawable,
    laid_out,
    markers,
    metric_name,
    shortened,
    shown,
    styled,
)
from probe.report.templates import render
from probe.values import ALL

FLIP = "±"

PANELS = 3
"""Metrics of one forest; more make further figures."""

_ROW = 0.085


def across_figures(effects: pd.DataFrame, summary: pd.DataFrame, agreement: pd.DataFrame) -> dict[str, Drawn]:
    """The forests of all metrics (``across_effects``), and the personas' order in every model (``across_ranks``)."""
    pooled = effects[effects["stratum"] == ALL]
    metrics = list(dict.fromkeys(pooled["metric"]))
    parts = [metrics[start : start + PANELS] for start in range(0, len(metrics), PANELS)]
    figures = {}
    for i, part in enumerate(parts):
        name = "across_effects" if len(parts) == 1 else f"across_effects_{i + 1}"
        figures[name] = draw_across(pooled, summary[summary["stratum"] == ALL], part)
    if pooled["persona"].nunique() > 2 and pooled["model"].nunique() > 1 and pooled["difference"].abs().max() > 0:
        figures["across_ranks"] = draw_ranks(pooled, agreement[agreement["stratum"] == ALL], metrics)
    return figures


def draw_across(effects: pd.DataFrame, summary: pd.DataFrame, metrics: Sequence[str]) -> Drawn:
    """Every persona's effect in every model, one panel per metric; over all strata, against the first base.

    Marks: one model each, bars 95 % over cases. Black bar and diamond: the mean over models like these, 95 %; thin grey
    line: 95 % of the effect in one more model. A row marked with a plus-minus sign has models with effects of either
    sign, each beyond its own noise.
    """
    base = str(effects["base"].iloc[0])
    rows, whole = (one[(one["base"] == base) & one["metric"].isin(list(metrics))] for one in (effects, summary))
    models, personas = (list(dict.fromkeys(rows[name])) for name in ("model", "persona"))
    hue, mark, place = colours(["", *models], ""), markers(models), dodged(len(models) + 1, 0.34)
    with styled():
        height = 0.9 + len(personas) * max(0.26, _ROW * (len(models) + 1))
        figure = Figure(figsize=(TEXT_WIDTH, height))
        axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            of_metric, of_whole = rows[rows["metric"] == metric], whole[whole["metric"] == metric]
            ax.axvline(0, color=INK, lw=0.8)
            for model, offset in zip(models, place, strict=False):
                part = of_metric[of_metric["model"] == model].set_index("persona").reindex(personas)
                y = np.arange(len(personas)) + offset
                ax.hlines(y, part["low"], part["high"], color=hue[model], lw=0.9)
                ax.plot(part["difference"], y, ls="", marker=mark[model], ms=3.4, color=hue[model])
            _summary_marks(ax, of_whole.set_index("persona").reindex(personas), np.arange(len(personas)) + place[-1])
            ax.set_xlim(*_reach(of_metric, of_whole))
            panel_title(ax, metric_name(metric), len(metrics))
            ax.xaxis.set_major_formatter(signed_tick)
            named_rows(ax, [shown(persona) for persona in personas])
        keys = [
            Line2D([], [], color=hue[model], marker=mark[model], lw=0.9, ms=3.4, label=shortened(model))
            for model in models
        ]
        keys += [
            Line2D([], [], color=INK, marker="D", lw=1.6, ms=3.8, label="mean over models"),
            Line2D([], [], color=SOFT, lw=0.8, label="one more model"),
            said(f"{FLIP} models of either sign"),
        ]
        explained(figure, keys, ncols=4, axis=f"change against {shown(base)}")
        numbers = pd.concat([rows.assign(kind="model"), whole.assign(kind="summary")], ignore_index=True)
        return Drawn(laid_out(figure), numbers, "Persona effects across models", _CAPTION.format(base=shown(base)))


_CAPTION = (
    "Change of each metric against {base}, paired by case, in every model (marks; bars: 95 % t intervals over cases) "
    "and over models like these (diamond: random-effects mean with its 95 % interval, t with K - 1 degrees of freedom, "
    "which knows that the models read the same cases; thin line: 95 % of the effect in one more model, which few "
    f"models leave wide open). {FLIP}: at least one model with an interval above 0 and one below."
)


def _reach(of_metric: pd.DataFrame, of_whole: pd.DataFrame) -> tuple[float, float]:
    """The ends of a panel: models and means with their intervals. What one more of few models may do runs off it."""
    ends = np.concatenate([part[["low", "high"]].to_numpy(float).ravel() for part in (of_metric, of_whole)])
    ends = np.append(ends[np.isfinite(ends)], [-0.005, 0.005])
    spare = 0.08 * (ends.max() - ends.min())
    return float(ends.min() - spare), float(ends.max() + spare)


def _summary_marks(ax: Axes, part: pd.DataFrame, y: np.ndarray) -> None:
    ax.hlines(y, part["next_low"], part["next_high"], color=SOFT, lw=0.8)
    ax.hlines(y, part["low"], part["high"], color=INK, lw=1.6)
    ax.plot(part["value"], y, ls="", marker="D", ms=3.8, color=INK)
    for row, flips in enumerate(part["flips"].fillna(False).astype(bool)):
        if flips:
            ax.annotate(
                FLIP, (1, row), xycoords=("axes fraction", "data"), ha="right", va="center", fontsize=8, color=INK
            )


def draw_ranks(effects: pd.DataFrame, agreement: pd.DataFrame, metrics: Sequence[str]) -> Drawn:
    """The rank of every persona's effect in every model, one panel per metric; 1 is the largest difference."""
    base = str(effects["base"].iloc[0])
    rows = effects[effects["base"] == base]
    models, personas = (list(dict.fromkeys(rows[name])) for name in ("model", "persona"))
    told = agreement[agreement["base"] == base].set_index("metric")
    metrics = [name for name in metrics if rows.loc[rows["metric"] == name, "difference"].abs().max() > 0]
    columns = min(PANELS, len(metrics))
    lines = -(-len(metrics) // columns)
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, lines * (0.8 + 0.2 * len(personas)) + 0.5))
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for ax in axes.flat[len(metrics) :]:
            ax.set_axis_off()
        for ax, metric in zip(axes.flat, metrics, strict=False):
            wide = rows[rows["metric"] == metric].pivot(index="persona", columns="model", values="rank")
            ranks = wide.reindex(index=personas, columns=models).to_numpy(float)
            ax.imshow(depth := _depth(ranks), cmap="Greys", vmin=0, vmax=1, aspect="auto")
            for i, j in np.argwhere(~np.isnan(ranks)):
                colour = "w" if depth[i, j] > 0.55 else INK
                ax.text(j, i, f"{ranks[i, j]:g}", ha="center", va="center", fontsize=7, color=colour)
            ax.set_xticks(range(len(models)), [drawable(shortened(model)) for model in models], rotation=20, ha="right")
            named_rows(ax, [shown(persona) for persona in personas], lines=False)
            ax.grid(visible=False)
            for side in ax.spines.values():
                side.set_color(BAND)
            panel_title(ax, metric_name(metric), columns)
            ax.set_xlabel(_agreed(told, metric))
        caption = _RANKS.format(base=shown(base))
        return Drawn(laid_out(figure), rows.reset_index(drop=True), "The personas' order in every model", caption)


_RANKS = (
    "Rank of each persona's change against {base} (1: the largest difference) in every model. W: Kendall's coefficient "
    "of concordance of these ranks, with the p of permuting the personas within models."
)


def _depth(ranks: np.ndarray) -> np.ndarray:
    """How dark each rank is: the first .85, the last .05; ranks that are shared by many stay light enough to read."""
    depth: np.ndarray = 0.85 - 0.8 * (ranks - 1) / max(ranks.shape[0] - 1, 1)
    return depth


def _agreed(told: pd.DataFrame, metric: str) -> str:
    if metric not in told.index or np.isnan(told["w"].astype(float)[metric]):
        return ""
    w, p = (float(told[name].astype(float)[metric]) for name in ("w", "p"))
    return f"W {decimal(w)}, p {p_value(p)}"


@dataclass(frozen=True, eq=False)
class AcrossReport:
    """The page: one row per model, the summary over models, what the ranks say, and the figures."""

    title: str
    models: pd.DataFrame
    effects: pd.DataFrame
    summary: pd.DataFrame
    agreement: pd.DataFrame
    figures: Sequence[Picture]
    synthetic: bool = False


def render_across(report: AcrossReport) -> str:
    """The page as HTML text: one file without script or network, everything that came from outside escaped."""
    base = str(report.effects["base"].iloc[0]) if len(report.effects) else ""
    return render(
        "across.html",
        report=report,
        base=shown(base),
        columns=[metric_name(str(name)) if name != "model" else "model" for name in report.models],
        rows=[_model_row(row) for _, row in report.models.iterrows()],
        found=across_sentences(report.summary, report.agreement),
        blocks=_blocks(report.summary[report.summary["base"] == base]),
        figures=[embedded(picture) for picture in report.figures],
    )


def across_sentences(summary: pd.DataFrame, agreement: pd.DataFrame) -> list[str]:
    """What holds in all models, what flips, and whether they rank the personas alike; against the first base."""
    if summary.empty:
        return []
    base = str(summary["base"].iloc[0])
    rows = summary[(summary["base"] == base) & (summary["stratum"] == ALL)]
    told = []
    for metric, part in rows.groupby("metric", sort=False):
        sure = part[(part["low"] > 0) | (part["high"] < 0)]
        flips = [shown(str(name)) for name in part.loc[part["flips"].astype(bool), "persona"]]
        named = [
            f"{shown(str(row['persona']))} {signed(row['value'], 2)} {interval(row['low'], row['high'])}"
            for _, row in sure.iterrows()
        ]
        what = listed(named) if named else "no persona has an effect whose interval over models excludes 0"
        turned = f"; the sign depends on the model for {listed(flips)}" if flips else ""
        told.append(f"{metric_name(str(metric))}, {plural(part['models'].max(), 'model')}: {what}{turned}.")
    ranked = agreement[(agreement["base"] == base) & (agreement["stratum"] == ALL) & agreement["w"].notna()]
    for _, row in ranked.iterrows():
        told.append(
            f"{metric_name(str(row['metric']))}: {plural(row['models'], 'model')} rank "
            f"{plural(row['personas'], 'persona')} with concordance W {decimal(row['w'])} (p {p_value(row['p'])})."
        )
    return told


def _model_row(row: pd.Series) -> list[str]:
    return [_told(value) for value in row]


def _told(value: object) -> str:
    if isinstance(value, str):
        return value
    assert isinstance(value, float | int | np.number)
    return f"{value:,}" if isinstance(value, int | np.integer) else decimal(float(value))


def _blocks(summary: pd.DataFrame) -> list[Mapping[str, object]]:
    """The summary by stratum: a table of personas by metrics."""
    blocks: list[Mapping[str, object]] = []
    for stratum, part in summary.groupby("stratum", sort=False):
        metrics = list(dict.fromkeys(part["metric"]))
        cells = {(row["persona"], row["metric"]): row for _, row in part.iterrows()}
        lines = []
        for persona in dict.fromkeys(part["persona"]):
            told = [_cell(cells.get((persona, metric))) for metric in metrics]
            lines.append({"persona": shown(str(persona)), "cells": told})
        blocks.append({"stratum": shown(str(stratum)), "metrics": [metric_name(m) for m in metrics], "rows": lines})
    return blocks


def _cell(row: pd.Series | None) -> str:
    if row is None or pd.isna(row["value"]):
        return decimal(None)
    mark = f" {FLIP}" if row["flips"] else ""
    return f"{signed(row['value'], 2)} {interval(row['low'], row['high'])}, tau {decimal(row['tau'])}{mark}"
