"""Figures of the label lens: contrasts by layer, and which components carry a shift. Computes no statistic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from probe.report.drawn import Drawn, counted, dodged, explained, named_rows, panel_title, said, side_label, signed_tick
from probe.report.style import BAND, BASE_COLOUR, INK, SOFT, TEXT_WIDTH, colours, laid_out, shown, styled
from probe.values import ALL

LENS, READOUT = "lens", "held-out readout"

PANELS = 5
"""Personas of one figure of the lens; more make further figures."""

COMPONENTS = 10
"""Components with bars of their own, the largest; the others are summed."""

_SUMMED = "all others"


def lens_figures(tables: dict[str, pd.DataFrame]) -> dict[str, Drawn]:
    """Every figure of the lens at every position: ``lens_<position>``, ``lens_attribution_<position>``.

    ``tables`` are those of the stage by name: contrasts, reliability, depths, attribution.
    """
    figures: dict[str, Drawn] = {}
    for position in dict.fromkeys(tables["contrasts"]["position"]):
        here = {name: table[table["position"] == position] if len(table) else table for name, table in tables.items()}
        base = _base(here["contrasts"])
        personas = [p for p in dict.fromkeys(here["contrasts"]["persona"]) if p != base] or [base]
        parts = [personas[start : start + PANELS] for start in range(0, len(personas), PANELS)]
        for i, part in enumerate(parts):
            name = f"lens_{position}" if len(parts) == 1 else f"lens_{position}_{i + 1}"
            figures[name] = draw_lens(here["contrasts"], here["reliability"], here["depths"], part)
        if len(here["attribution"]):
            for i, part in enumerate(parts):
                name = f"lens_attribution_{position}" if len(parts) == 1 else f"lens_attribution_{position}_{i + 1}"
                figures[name] = draw_attribution(here["attribution"], part)
    return figures


def draw_lens(
    contrasts: pd.DataFrame, reliability: pd.DataFrame, depths: pd.DataFrame, personas: Sequence[str]
) -> Drawn:
    """Label contrasts by layer at one position, a row of panels per persona, the base's in grey; over all strata.

    Lines: the lens, minus its value on the base's content-free case. Dashed: the held-out readout, faint at layers
    where it predicts none of the last point's contrasts out of sample (``readout_r2`` not above 0). Bands: 95 %
    intervals over cases. Hatched: layers at which the lens is marked unreliable for this persona. The bar at the bottom
    spans the layers over which the persona's shift arises by the held-out readout, its thin ends the intervals.
    """
    levels = contrasts[(contrasts["quantity"] == "level") & (contrasts["stratum"] == ALL)]
    base, position = _base(contrasts), str(contrasts["position"].iloc[0])
    names = list(dict.fromkeys(levels["contrast"]))
    hue = colours([base, *dict.fromkeys(levels["persona"])], base)
    spans = depths.reindex(columns=["persona", "stratum", "base", "reader", "quantity", "low", "value", "high"])
    spans = spans[(spans["stratum"] == ALL) & (spans["base"] == base) & (spans["reader"] == READOUT)]
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 0.85 + 1.35 * len(personas)))
        axes = figure.subplots(len(personas), len(names), sharex=True, sharey="col", squeeze=False)
        for row, persona in enumerate(personas):
            own = levels[levels["persona"].isin([persona, base])]
            told = reliability[reliability["persona"] == persona]
            doubted, blind = told[~told["reliable"].astype(bool)], told.loc[told["readout_r2"] <= 0, "layer"]
            for column, contrast in enumerate(names):
                ax = axes[row, column]
                _hatch(ax, doubted["layer"].tolist())
                for who in (base, persona):
                    part = own[(own["persona"] == who) & (own["contrast"] == contrast)]
                    _curves(ax, part, hue[who], blind.tolist())
                ax.axhline(0, color=INK, lw=0.5)
                draw_span(ax, spans[spans["persona"] == persona], hue[persona])
                if row == 0:
                    panel_title(ax, f"{contrast} (nats)", len(names))
                ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
                ax.yaxis.set_major_formatter(FuncFormatter(signed_tick))
            n = counted(own.loc[own["persona"] == persona, "n"].astype(float).tolist(), "case")
            side_label(axes[row, 0], shown(persona), n)
        for ax in axes[-1]:
            ax.set_xlabel("residual point (0 = embeddings)")
        explained(figure, _lens_keys(base), ncols=4)
        drawn = levels[levels["persona"].isin([*personas, base])].reset_index(drop=True)
        caption = _LENS_CAPTION.format(position=position, base=shown(base), baseline=_baseline(levels))
        return Drawn(laid_out(figure), drawn, f"Label lens at {position}", caption)


_LENS_CAPTION = (
    "Label contrasts at {position} by residual point, in nats before the softcap: the model's own final norm and "
    "unembedding applied to each point (lines), minus their value on the {baseline} under {base} at the same point; "
    "dashed, a ridge readout of the last point's contrasts, trained on other cases and other personas, faint where it "
    "predicts none of them. Bands: 95 % "
    "percentile bootstrap over cases. Hatched: the lens is marked unreliable for this persona, because its labels go "
    "too little with the readout's, or the two show opposite shifts. Bar: where the persona's shift from the base "
    "arises by the held-out readout (a ramp fitted to the whole curve), thin ends its 95 % intervals."
)


def _lens_keys(base: str) -> list[Line2D | Patch]:
    return [
        Line2D([], [], color=INK, marker="o", ms=2.6, label="lens, persona"),
        Line2D([], [], color=BASE_COLOUR, marker="o", ms=2.6, label=f"lens, {shown(base)}"),
        Line2D([], [], color=SOFT, ls="--", lw=1, label="held-out readout"),
        Patch(facecolor="white", edgecolor=BAND, hatch="////", label="lens unreliable"),
        Line2D([], [], color=INK, lw=3.2, alpha=0.6, label="the shift arises"),
        said("bands: 95 % over cases"),
    ]


def _curves(ax: Axes, part: pd.DataFrame, colour: str, blind: Sequence[int]) -> None:
    """A level by lens and readout; the latter faint at the layers where it predicts nothing (``blind``)."""
    for reader, mark, line, alpha in ((LENS, "o", "-", 0.2), (READOUT, "", "--", 0.1)):
        own = part[part["reader"] == reader].sort_values("layer")
        x, value, low, high = (own[name].to_numpy(float) for name in ("layer", "value", "low", "high"))
        ax.fill_between(x, low, high, color=colour, alpha=alpha, lw=0)
        ax.plot(x, value, color=colour, marker=mark, ls=line, ms=2.6, lw=1.3, alpha=1.0 if reader == LENS else 0.35)
        if reader == READOUT:
            ax.plot(x, np.where(np.isin(x, blind), np.nan, value), color=colour, ls=line, lw=1.0)


def _hatch(ax: Axes, layers: Sequence[int]) -> None:
    for layer in layers:
        ax.axvspan(layer - 0.5, layer + 0.5, facecolor="none", edgecolor=BAND, hatch="////", lw=0, zorder=0)


def draw_span(ax: Axes, depths: pd.DataFrame, colour: str) -> None:
    """From where a shift separates to where it settles, at the bottom of a panel, with the outer interval ends.

    ``depths`` are the two rows of one persona, base, position and reader; nothing is drawn where they are undefined.
    """
    ends = depths.set_index("quantity")[["low", "value", "high"]].reindex(["separates", "settles"]).to_numpy(float)
    if np.isnan(ends).any():
        return
    (low, begins, _), (_, settles, high) = ends
    # One layer is a mark too.
    for where, width in (([low, high], 1.0), ([begins - 0.12, settles + 0.12], 3.2)):
        across = ax.get_xaxis_transform()
        ax.plot(where, [0.03, 0.03], lw=width, color=colour, transform=across, solid_capstyle="butt", clip_on=False)


def draw_attribution(attribution: pd.DataFrame, personas: Sequence[str]) -> Drawn:
    """Each component's contribution to a persona's shift of the label contrasts at one position; over all strata.

    One panel per contrast; bars are means over cases, whiskers 95 % intervals. The components with the largest
    contributions are shown, the sum of the others, the norm term, and the total that all of these add up to.
    """
    rows = attribution[(attribution["stratum"] == ALL) & attribution["persona"].isin(list(personas))]
    base, position = str(rows["base"].iloc[0]), str(rows["position"].iloc[0])
    rows = rows[rows["base"] == base]
    names, contrasts = _largest(rows), list(dict.fromkeys(rows["contrast"]))
    rows, hue = _with_others(rows, names), colours([base, *dict.fromkeys(attribution["persona"])], base)
    names = [*names, *([_SUMMED] if _SUMMED in set(rows["component"]) else []), "norm", "total"]
    offsets = dodged(len(personas), 0.36)
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 0.9 + len(names) * max(0.2, 0.075 * len(personas))))
        axes = figure.subplots(1, len(contrasts), sharey=True, squeeze=False)[0]
        for ax, contrast in zip(axes, contrasts, strict=True):
            for persona, offset in zip(personas, offsets, strict=True):
                part = rows[(rows["contrast"] == contrast) & (rows["persona"] == persona)]
                part = part.set_index("component").reindex(names)
                y, value = np.arange(len(names)) + offset, part["value"].to_numpy(float)
                ax.barh(y, value, height=0.8 / max(len(personas), 1), color=hue[persona], alpha=0.85, lw=0)
                ax.hlines(y, part["low"], part["high"], color=INK, lw=0.7)
            ax.axvline(0, color=INK, lw=0.8)
            ax.axhline(len(names) - 1.5, color=INK, lw=0.6)
            panel_title(ax, f"shift of {contrast} (nats)", len(contrasts))
            ax.xaxis.set_major_formatter(FuncFormatter(signed_tick))
        named_rows(axes[0], names)
        keys = [Patch(color=hue[persona], alpha=0.85, label=shown(persona)) for persona in personas]
        explained(figure, [*keys, said("whiskers: 95 % over cases")], ncols=4)
        caption = _ATTRIBUTION_CAPTION.format(position=position, base=shown(base))
        return Drawn(laid_out(figure), rows.reset_index(drop=True), f"What carries the shift at {position}", caption)


_ATTRIBUTION_CAPTION = (
    "Contribution of what attention and MLP of each block add to the residual (attn b, mlp b; block b where the two "
    "were not captured apart) to each persona's shift of the label contrasts from {base} at {position}, before the "
    "softcap. norm: what changes because the final norm divides by another number. The rows add up to total, the shift "
    "at the last residual point; all others: the sum of the components not shown. Means over cases with 95 % "
    "percentile bootstrap intervals."
)


def _largest(rows: pd.DataFrame) -> list[str]:
    """The components with the largest contribution anywhere, in the order of the network."""
    own = rows[~rows["component"].isin(["norm", "total"])]
    size = own.assign(size=own["value"].abs()).groupby("component", sort=False)["size"].max()
    kept = set(size.nlargest(COMPONENTS).index)
    return [name for name in size.index if name in kept]


def _with_others(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The rows of these components, norm and total, and the sum of the others, which has no interval."""
    shown_here = rows["component"].isin([*names, "norm", "total"])
    others = rows[~shown_here]
    if others.empty:
        return rows
    key = ["persona", "base", "stratum", "position", "contrast"]
    summed = others.groupby(key, sort=False, as_index=False).agg(value=("value", "sum"), n=("n", "first"))
    return pd.concat([rows[shown_here], summed.assign(component=_SUMMED)], ignore_index=True)


def _base(contrasts: pd.DataFrame) -> str:
    """The base persona of the shifts; the first persona where there is no shift."""
    named = contrasts.loc[contrasts["quantity"] == "shift", "base"]
    return str(named.iloc[0] if len(named) else contrasts["persona"].iloc[0])


def _baseline(levels: pd.DataFrame) -> str:
    told = levels.loc[levels["baseline"] != "", "baseline"]
    return str(told.iloc[0]) if len(told) else "content-free case"
