"""Figures of where personas lie: size, likeness, stability, role and style. Computes no statistic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from probe.report.drawn import Drawn, counted, explained, panel_title, said
from probe.report.numbers import decimal
from probe.report.style import INK, SOFT, TEXT_WIDTH, colours, laid_out, markers, shown, styled
from probe.values import ALL

VIEWS = {"raw": "raw", "without_largest": "3 largest dimensions out", "whitened": "whitened"}
"""The views of the tables, as a figure names them."""

LINES = 14
"""Personas of one figure; further ones are in the tables."""

_POINT = "residual point (0 = embeddings)"


def draw_norms(norms: pd.DataFrame, *, position: str) -> Drawn:
    """Size of every persona's common shift by layer: a row of panels per base, a column per view.

    Bands: jackknife intervals over case families. Dashed: one control wording against the mean of the others.
    """
    rows = _pooled(norms, position)
    bases, views = _found(rows, "base"), [view for view in VIEWS if view in set(rows["view"])]
    personas, more = _first(_found(rows, "persona"))
    rows = rows[rows["persona"].isin(personas)]
    hue, mark = colours(personas, bases[0]), markers([bases[0], *personas])
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 0.9 + 1.75 * len(bases) + 0.17 * (len(personas) // 4)))
        axes = figure.subplots(len(bases), len(views), sharex=True, squeeze=False)
        for i, base in enumerate(bases):
            for j, view in enumerate(views):
                ax, part = axes[i, j], rows[(rows["base"] == base) & (rows["view"] == view)]
                for persona in personas:
                    _line(ax, part[part["persona"] == persona], hue[persona], mark[persona])
                control = part.drop_duplicates("layer").sort_values("layer")
                ax.plot(control["layer"], control["reworded"].astype(float), color=INK, lw=1.0, ls="--", zorder=5)
                ax.set_ylim(bottom=0)
                if i == 0:
                    panel_title(ax, VIEWS[view], len(views))
                _by_layer(ax, last=i == len(bases) - 1)
            axes[i, 0].set_ylabel(f"shift from {shown(base)}\n(share of residual norm)")
            if "whitened" in views:
                axes[i, views.index("whitened")].set_ylabel("standard deviations")
        keys = _keys(personas, hue, mark)
        keys += [Line2D([], [], color=INK, lw=1, ls="--", label="one control wording"), said("bands: 95 % jackknife")]
        explained(figure, keys, ncols=5)
        return Drawn(laid_out(figure), rows.reset_index(drop=True), f"Persona shifts at {position}", _NORMS + more)


def draw_cosines(cosines: pd.DataFrame, *, position: str, layer: int) -> Drawn:
    """Cosine of every two personas' shifts at one layer: plain and centred, a column per view.

    Rows of panels stand for (base, measure). A dot: the interval holds what chance gives; a cross: undefined.
    """
    rows = cosines[(cosines["position"] == position) & (cosines["layer"] == layer)]
    rows = rows[rows["base"] == rows["base"].iloc[0]]
    personas, more = _first(list(dict.fromkeys([*_found(rows, "persona"), *_found(rows, "other")])))
    rows = rows[rows["persona"].isin(personas) & rows["other"].isin(personas)]
    measures, views = _found(rows, "measure"), [view for view in VIEWS if view in set(rows["view"])]
    height = max(0.16 * (rows["persona"].nunique() + 1), 1.2)
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 1.2 + len(measures) * (height + 0.45) + 0.9))
        axes = figure.subplots(len(measures), len(views), squeeze=False)
        image = None
        for i, measure in enumerate(measures):
            part = rows[rows["measure"] == measure]
            names = list(dict.fromkeys([*part["persona"], *part["other"]]))
            for j, view in enumerate(views):
                ax = axes[i, j]
                image = _matrix(ax, part[part["view"] == view], names)
                ax.set_yticks(range(len(names)), [shown(name) for name in names] if j == 0 else [])
                ax.set_xticks(range(len(names)), [shown(name) for name in names] if i == len(measures) - 1 else [])
                ax.tick_params(axis="x", rotation=90, length=0)
                if i == 0:
                    panel_title(ax, VIEWS[view], 2 * len(views))  # matrices stand close together
            chance = decimal(float(part["chance"].iloc[0]))
            told = "cosine" if measure == "cosine" else f"centred cosine\n(chance {chance})"
            axes[i, 0].set_ylabel(told, fontweight="bold")
        if image is not None:
            figure.colorbar(image, ax=axes, shrink=0.5, label="cosine", aspect=30)
        title = f"Likeness of persona shifts at {position}, residual point {layer}"
        return Drawn(laid_out(figure), rows.reset_index(drop=True), title, _COSINES + more)


def _matrix(ax: Axes, part: pd.DataFrame, names: Sequence[str]) -> AxesImage:
    """Cosines as colours, marked where they are undefined or hold the chance value."""
    at = {name: i for i, name in enumerate(names)}
    values = np.full((len(names), len(names)), np.nan)
    ends = (part[name].to_numpy(dtype=float) for name in ("value", "low", "high", "chance"))
    for one, other, value, low, high, chance in zip(part["persona"], part["other"], *ends, strict=True):
        i, j = at[one], at[other]
        values[i, j] = values[j, i] = value
        if not (chance < low or high < chance):
            ax.plot([i, j], [j, i], ls="", marker="x" if np.isnan(value) else ".", ms=2.5, color=INK)
    ax.grid(visible=False)
    return ax.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest", aspect="auto")


def draw_stability(stability: pd.DataFrame, agreement: pd.DataFrame, *, position: str) -> Drawn:
    """Split-half cosine of every persona's direction with its floor, and what all personas share, by layer.

    Left: mean cosine of the directions of two random halves of the case families; dotted, 95 % quantile
    without a common shift. Right: share of the personas' mean squared shift that is common to all.
    """
    halves = stability[(stability["position"] == position) & (stability["method"] == "split-half")]
    halves = halves[halves["base"] == halves["base"].iloc[0]]
    shared = _pooled(agreement, position) if len(agreement) else agreement
    personas, more = _first(_found(halves, "persona"))
    halves, base = halves[halves["persona"].isin(personas)], str(halves["base"].iloc[0])
    hue, mark = colours(personas, base), markers([base, *personas])
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 2.6 + 0.17 * (len(personas) // 4)))
        left, right = figure.subplots(1, 2)
        for persona in personas:
            part = halves[halves["persona"] == persona].sort_values("layer")
            left.plot(part["layer"], part["value"].astype(float), color=hue[persona], marker=mark[persona], ms=3.2)
            left.plot(part["layer"], part["floor"].astype(float), color=hue[persona], lw=0.8, ls=":")
        left.set_ylabel("cosine of two halves")
        left.set_ylim(top=1.02)
        panel_title(left, f"against {shown(base)} ({counted(halves['n'].astype(float).tolist(), 'case')})", 2)
        styles = ["-", "--", ":"]
        for i, of in enumerate(_found(shared, "base") if len(shared) else []):
            for j, view in enumerate(VIEWS):
                part = shared[(shared["base"] == of) & (shared["view"] == view)]
                _line(right, part, (INK, "#0072B2")[i % 2], ("o", "s", "^")[j], styles[j])
        right.axhline(0, color=SOFT, lw=0.7)
        right.set_ylabel("share common to all personas")
        panel_title(right, "shared variance", 2)
        for ax in (left, right):
            _by_layer(ax)
        keys = [*_keys(personas, hue, mark), Line2D([], [], color=SOFT, lw=0.8, ls=":", label="resampling floor")]
        for i, of in enumerate(_found(shared, "base") if len(shared) else []):
            keys.append(Line2D([], [], color=(INK, "#0072B2")[i % 2], label=f"right: against {shown(of)}"))
        keys += [
            Line2D([], [], color=SOFT, ls=styles[j], marker=("o", "s", "^")[j], ms=3, label=f"right: {VIEWS[view]}")
            for j, view in enumerate(VIEWS)
        ]
        explained(figure, keys, ncols=4)
        numbers = pd.concat([halves, shared], ignore_index=True)
        return Drawn(laid_out(figure), numbers, f"Stability and shared variance at {position}", _STABILITY + more)


def draw_role_style(role_style: pd.DataFrame, *, position: str) -> Drawn:
    """Is a style one direction on two roles, and does it add to the role? By layer, a column per view."""
    rows = _pooled(role_style, position)
    rows = rows.assign(pair=rows["style"] + ": " + rows["role"] + " | " + rows["other_role"])
    pairs, more = _first(_found(rows, "pair"), "pairs of roles")
    rows, views = rows[rows["pair"].isin(pairs)], [view for view in VIEWS if view in set(rows["view"])]
    hue, mark = colours(pairs, ""), markers(pairs)
    told = {"style_cosine": "cosine of the style\nshift on two roles", "interaction": "interaction share"}
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 4.0 + 0.17 * len(pairs)))
        axes = figure.subplots(2, len(views), sharex=True, sharey="row", squeeze=False)
        for i, measure in enumerate(told):
            for j, view in enumerate(views):
                ax, part = axes[i, j], rows[(rows["measure"] == measure) & (rows["view"] == view)]
                for pair in pairs:
                    _line(ax, part[part["pair"] == pair], hue[pair], mark[pair])
                for at in (0, 1):
                    ax.axhline(at, color=SOFT, lw=0.7)
                if i == 0:
                    panel_title(ax, VIEWS[view], len(views))
                    ax.set_ylim(-1.1, 1.2)
                _by_layer(ax, last=i == 1)
            axes[i, 0].set_ylabel(told[measure])
        labels = {pair: ", ".join(shown(part) for part in pair.replace(": ", " | ").split(" | ")) for pair in pairs}
        keys = [Line2D([], [], color=hue[p], marker=mark[p], ms=3.2, label=labels[p]) for p in pairs]
        explained(figure, [*keys, said("bands: 95 % jackknife")], ncols=3)
        return Drawn(laid_out(figure), rows.reset_index(drop=True), f"Role and style at {position}", _ROLE_STYLE + more)


def _line(ax: Axes, part: pd.DataFrame, colour: str, mark: str, style: str = "-") -> None:
    """A value by layer with the band of its interval; broken where it is undefined."""
    part = part.sort_values("layer")
    x = part["layer"].to_numpy(dtype=float)
    value, low, high = (part[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
    ax.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
    ax.plot(x, value, color=colour, marker=mark, ms=2.8, lw=1.1, ls=style)


def _by_layer(ax: Axes, *, last: bool = True) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if last:
        ax.set_xlabel(_POINT)


def _keys(personas: Sequence[str], hue: dict[str, str], mark: dict[str, str]) -> list[Line2D]:
    return [Line2D([], [], color=hue[p], marker=mark[p], ms=3.2, label=shown(p)) for p in personas]


def _pooled(table: pd.DataFrame, position: str) -> pd.DataFrame:
    return table[(table["position"] == position) & (table["stratum"] == ALL)]


def _first(names: Sequence[str], word: str = "personas") -> tuple[list[str], str]:
    """As many as one figure shows, and for its caption what it leaves out."""
    told = f" The first {LINES} of {len(names)} {word} are drawn; the tables have all." if len(names) > LINES else ""
    return list(names[:LINES]), told


def _found(table: pd.DataFrame, name: str) -> list[str]:
    return [str(value) for value in table[name].drop_duplicates()]


_NORMS = (
    "Norm of the mean paired shift, from products of different case families only, so that noise does not inflate it. "
    "Raw and with the three dimensions of largest variance left out: share of the base's root mean square residual "
    "norm; whitened: standard deviations of the base over cases. The last two views are fitted on other case families. "
    "Dashed: root mean square of one control wording against the mean of the others, what rewording alone does."
)
_COSINES = (
    "Cosine of the common shifts, from products of different case families; centred: after the mean over personas is "
    "taken out, which forces the mean cosine to about -1/(K-1). Dot: the 95 % jackknife interval holds the chance "
    "value; cross: undefined, a shift is below its noise."
)
_STABILITY = (
    "Left: mean cosine of the directions of 200 random halves of the case families; dotted: 95 % quantile of the same "
    "without a common shift (what each family departs from the mean by, with a random sign). Right: mean product of "
    "two personas' shifts over their mean squared norm; 1 where all shift alike, 0 where the shifts are unrelated."
)
_ROLE_STYLE = (
    "Above: cosine of (styled minus plain) on one role with the same on another. Below: squared norm of their "
    "difference over the sum of their squared norms; 0 where role and style add up, 1 where the two style shifts are "
    "unrelated, 2 where they are opposite."
)
