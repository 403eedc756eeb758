"""Every figure that a study's tables allow, and that of the residual shift. Computes no statistic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from probe.report.calibration import CHANNELS, PANELS, draw_reliability
from probe.report.consistency import causes_height, draw_causes, draw_sites, sites_height
from probe.report.drawn import Drawn, counted, explained, panel_title, said
from probe.report.effects import against, draw_forest, draw_persona_effects, effects_height, forest_height, main_base
from probe.report.risk import draw_risk, draw_risk_plane, risk_height
from probe.report.style import HUES, PAGE_HEIGHT, SOFT, TEXT_WIDTH, arms, colours, laid_out, markers, shown, styled


@dataclass(frozen=True, eq=False)
class Tables:
    """What a report is made of: tidy tables, empty where the study cannot have them.

    ``metrics``, ``comparisons``, ``reliability``, ``sites`` (consistency by answer site), ``causes`` (of disagreement),
    ``floor`` (noise floor), ``omnibus`` (all personas at once), ``positions`` (label-position bias), ``variance`` (its
    components), ``risk`` (by cut) and ``rates`` (how answers were read, by the column ``by``) are those of
    :mod:`probe.behaviour`; ``shifts`` that of :func:`probe.mechanism.shift_by_layer`, at one position.
    """

    metrics: pd.DataFrame
    comparisons: pd.DataFrame = field(default_factory=pd.DataFrame)
    reliability: pd.DataFrame = field(default_factory=pd.DataFrame)
    shifts: pd.DataFrame = field(default_factory=pd.DataFrame)
    sites: pd.DataFrame = field(default_factory=pd.DataFrame)
    causes: pd.DataFrame = field(default_factory=pd.DataFrame)
    floor: pd.DataFrame = field(default_factory=pd.DataFrame)
    omnibus: pd.DataFrame = field(default_factory=pd.DataFrame)
    positions: pd.DataFrame = field(default_factory=pd.DataFrame)
    variance: pd.DataFrame = field(default_factory=pd.DataFrame)
    risk: pd.DataFrame = field(default_factory=pd.DataFrame)
    rates: pd.DataFrame = field(default_factory=pd.DataFrame)


def study_figures(tables: Tables) -> dict[str, Drawn]:
    """Every figure that these tables allow, by name, in the order of the report.

    A table without rows (one persona only, no label distributions, no captured layer) gives no figure. Where a figure
    would not fit a page it is drawn one stratum, and then some personas, at a time.
    """
    figures = _effects(tables) | _risk(tables.metrics, _base_of(tables)) | _reliability(tables)
    sites, causes = tables.sites, tables.causes
    if len(sites):
        n_sites = sites["site"].nunique()
        for name, part in _by_persona("consistency_by_site", sites, lambda n: sites_height(n, n_sites)):
            figures[name] = draw_sites(part)
    if len(causes):
        for name, part in _by_persona("disagreement_causes", causes, causes_height):
            figures[name] = draw_causes(part)
    if len(tables.shifts):
        for name, part in _by_persona("shift", tables.shifts, lambda n: PAGE_HEIGHT * n / LINES):
            figures[name] = draw_shift(part)
    return figures


def _base_of(tables: Tables) -> str:
    return main_base(tables.comparisons) if len(tables.comparisons) else ""


def _effects(tables: Tables) -> dict[str, Drawn]:
    compared, floor, figures = tables.comparisons, tables.floor, {}
    if len(compared):
        compared = against(compared, main_base(compared))
        for name, part in _parts("persona_effects", compared, effects_height):
            figures[name] = draw_persona_effects(part)
    rows = floor if len(floor) else compared
    if len(rows):
        for name, part in _parts("forest", rows, forest_height):
            figures[name] = draw_forest(part, floor=len(floor) > 0)
    return figures


def _parts(name: str, table: pd.DataFrame, height: Callable[[int, int], float]) -> Iterator[tuple[str, pd.DataFrame]]:
    """The table whole where its figure fits a page, else one stratum, and then some personas, at a time.

    Parts are numbered: the name of a stratum may suit no file.
    """
    personas, strata = arms(table)
    if height(len(personas), len(strata)) <= PAGE_HEIGHT:
        yield name, table
        return
    parts = [
        part
        for stratum in strata
        for _, part in _by_persona(name, table[table["stratum"] == stratum], lambda n: height(n, 1))
    ]
    for i, part in enumerate(parts):
        yield name if len(parts) == 1 else f"{name}_{i + 1}", part


def _by_persona(name: str, table: pd.DataFrame, height: Callable[[int], float]) -> Iterator[tuple[str, pd.DataFrame]]:
    """The table whole where its figure fits a page, else as many personas at a time as fit."""
    personas = arms(table)[0]
    most = len(personas)
    while most > HUES and height(most) > PAGE_HEIGHT:
        most -= 1
    if most < len(personas):
        most -= most % HUES  # so that each persona keeps its colour from figure to figure
    for i, start in enumerate(range(0, len(personas), most)):
        part = table[table["persona"].isin(personas[start : start + most])]
        yield name if most == len(personas) else f"{name}_{i + 1}", part


def _risk(metrics: pd.DataFrame, base: str) -> dict[str, Drawn]:
    if not metrics.loc[metrics["metric"] == "risk_log_ratio", "value"].notna().any():
        return {}  # no answer was parsed, or which option is high-risk is not known
    figures = {name: draw_risk(part) for name, part in _parts("risk", metrics, risk_height)}
    return figures | {"risk_plane": draw_risk_plane(metrics, base)}


def _reliability(tables: Tables) -> dict[str, Drawn]:
    bins, figures = tables.reliability, {}
    for channel in CHANNELS:
        if not len(bins) or ("labels" not in bins and channel != "latent"):
            continue
        personas = arms(bins[bins["labels"] == channel] if "labels" in bins else bins)[0]
        parts = [personas[start : start + PANELS] for start in range(0, len(personas), PANELS)]
        name = "reliability" if channel == "latent" else f"reliability_{channel}"
        for i, part in enumerate(parts):
            numbered = name if len(parts) == 1 else f"{name}_{i + 1}"
            figures[numbered] = draw_reliability(bins, tables.metrics, channel=channel, personas=part)
    return figures


LINES = 12
"""Personas of one figure of the shift; more make further figures."""


def draw_shift(shifts: pd.DataFrame) -> Drawn:
    """Size of each persona's residual shift by layer, relative to the base's residual norm; one panel per stratum.

    Bands: jackknife intervals over families. Dotted: the noise floor, the 95 % quantile without a common shift at that
    layer. Where the size is undefined the line is broken.
    """
    personas, strata = arms(shifts)
    base = str(shifts["base"].iloc[0])
    hue, mark = colours(personas, base), markers([base, *personas])  # in other figures the base has the first mark
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 2.5 + 0.18 * (1 + len(personas) // 4)))
        axes = figure.subplots(1, len(strata), sharey=True, sharex=True, squeeze=False)[0]
        for ax, stratum in zip(axes, strata, strict=True):
            within = shifts[shifts["stratum"] == stratum]
            for persona in personas:
                part = within[within["persona"] == persona].sort_values("layer")
                x, colour = part["layer"], hue[persona]
                low, high = (part[name].astype(float) for name in ("low", "high"))
                ax.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
                ax.vlines(x, low, high, color=colour, lw=0.6)  # a band has no width at a point that stands alone
                ax.plot(x, part["floor"], color=colour, lw=0.9, ls=":")
                ax.plot(x, part["value"].astype(float), color=colour, marker=mark[persona], ms=3.2)
            panel_title(ax, f"{shown(stratum)} ({counted(within['n'].astype(float).tolist(), 'case')})", len(strata))
            ax.set_xlabel("residual point (0 = embeddings)")
            ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes[0].set_ylim(bottom=0)
        axes[0].set_ylabel(f"common shift from {shown(base)}\n(share of residual norm)")
        keys = [Line2D([], [], color=hue[p], marker=mark[p], ms=3.2, label=shown(p)) for p in personas]
        keys += [Line2D([], [], color=SOFT, lw=0.9, ls=":", label="noise floor"), said("bands: 95 % jackknife")]
        explained(figure, keys, ncols=4)
        return Drawn(laid_out(figure), shifts.reset_index(drop=True), "Shift of the residual stream", _SHIFT_CAPTION)


_SHIFT_CAPTION = (
    "Norm of the mean paired shift from the base persona, as a share of the base's root mean square residual norm, "
    "estimated from products of different case families only, so that noise does not inflate it. Bands: jackknife over "
    "families. Dotted: 95 % quantile at that point when the sign of each family's shift is random; the sentences above "
    "compare the largest shift with the quantile of the largest over all points."
)
