"""Figures of a patching run: where in layers and tokens a persona's effect lives. Knows tidy tables; knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from probe.mechanism.patching.grid import ATTN_OUT, DENOISING, HEAD_OUT, KEYS_VALUES, MLP_OUT, NOISING, RESID
from probe.mechanism.patching.groups import ANSWER, GROUPS, PROMPT_END
from probe.mechanism.patching.reads import LATENT
from probe.report.drawn import Drawn, explained, named_rows, panel_title, said
from probe.report.numbers import decimal, interval, plural, signed
from probe.report.patching_lines import GROUP_NAMES, draw_controls, draw_roles
from probe.report.style import INK, PAGE_HEIGHT, SOFT, TEXT_WIDTH, laid_out, metric_name, shown, styled
from probe.values import ALL

READ_NAMES = {LATENT: "latent label (prompt end)", "stated": "stated label (at the letter, one forced text)"}
COLUMN_NAMES = {
    DENOISING: "denoising: persona → base run",
    NOISING: "noising: base → persona's run",
    KEYS_VALUES: "keys and values",
    ATTN_OUT: "attention's output",
    MLP_OUT: "MLP's output",
}

_MOST_WRITTEN = 15
"""Layers up to which every cell has its number."""

_MOST_HEADS = 16
_CELL = 0.17


def patch_figures(effects: pd.DataFrame, paths: pd.DataFrame, totals: pd.DataFrame, outcome: str) -> dict[str, Drawn]:
    """Every figure that the tables allow, by file name: one outcome, all strata together."""
    figures: dict[str, Drawn] = {}
    pooled = effects[(effects["stratum"] == ALL) & (effects["outcome"] == outcome)]
    for read, own in pooled.groupby("read", sort=False):
        plain = own[own["control"] == ""]
        resid, inner = plain[plain["stream"] == RESID], plain[plain["stream"].isin([KEYS_VALUES, ATTN_OUT, MLP_OUT])]
        for name, part in _pages(f"patch_grid_{read}", resid):
            figures[name] = draw_grid(part, totals, "direction")
        for name, part in _pages(f"patch_streams_{read}", inner[inner["direction"] == DENOISING]):
            figures[name] = draw_grid(part, totals, "stream")
        heads = plain[(plain["stream"] == HEAD_OUT) & (plain["direction"] == DENOISING)]
        heads = heads[heads["fraction"].notna()]
        if len(heads):
            figures[f"patch_heads_{read}"] = draw_heads(heads)
        if (own["control"] != "").any():
            figures[f"patch_controls_{read}"] = draw_controls(own)
    pooled = paths[(paths["stratum"] == ALL) & (paths["outcome"] == outcome)] if len(paths) else paths
    if len(pooled) and pooled["value"].notna().any():
        figures["patch_paths"] = draw_roles(pooled)
    return figures


def _pages(name: str, table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The table by as many personas at a time as a page holds."""
    personas = list(table["persona"].drop_duplicates())
    most = max(1, int((PAGE_HEIGHT - 1.2) / _panel_height(table["group"].nunique()))) if personas else 1
    for i, start in enumerate(range(0, len(personas), most)):
        part = table[table["persona"].isin(personas[start : start + most])]
        yield name if len(personas) <= most else f"{name}_{i + 1}", part


def _panel_height(n_groups: int) -> float:
    return 0.45 + _CELL * n_groups


def draw_grid(rows: pd.DataFrame, totals: pd.DataFrame, across: str) -> Drawn:
    """The share of a persona's effect in each cell of layer x group of tokens; one row of panels for each persona.

    ``across`` is the column of the table whose values stand side by side: ``direction`` or ``stream``. Where the effect
    itself is not resolved there are no shares, and the numbers are differences, without colour. Hatched cells must show
    what they show.
    """
    personas, columns = (list(rows[name].drop_duplicates()) for name in ("persona", across))
    groups = [group for group in GROUPS if (rows["group"] == group).any()]
    read, outcome = str(rows["read"].iloc[0]), str(rows["outcome"].iloc[0])
    with styled():
        figure = Figure(figsize=(TEXT_WIDTH, 1.0 + _panel_height(len(groups)) * len(personas)))
        axes = figure.subplots(len(personas), len(columns), squeeze=False, sharey=True)
        for i, persona in enumerate(personas):
            for j, column in enumerate(columns):
                part = rows[(rows["persona"] == persona) & (rows[across] == column)]
                _heat(axes[i, j], part, groups)
                heading = f"{COLUMN_NAMES.get(column, column)}" if i == 0 else ""
                panel_title(axes[i, j], heading, len(columns))
            words = _row_name(persona, totals, read, outcome)
            if rows.loc[rows["persona"] == persona, "fraction"].isna().all():
                words += "\n(differences)"
            axes[i, 0].set_ylabel(words, fontsize=6.5, fontweight="bold", labelpad=8)
        for j, column in enumerate(columns):
            of_points = across == "direction" or column == RESID
            axes[-1, j].set_xlabel("residual point (0 = embeddings)" if of_points else "block")
        words = f"{READ_NAMES.get(read, read)}: share of the effect on {outcome_words(outcome)}"
        explained(figure, _keys(), ncols=5, axis=words)
        counts = plural(int(rows["n"].max()), "case")
        title = f"Where the persona is patched in: {read} label"
        caption = f"{_GRID_CAPTION if across == 'direction' else _STREAMS_CAPTION} {_CELLS_CAPTION} At most {counts}."
        return Drawn(laid_out(figure), rows.reset_index(drop=True), title, caption)


def outcome_words(outcome: str) -> str:
    """An outcome as a reader sees it."""
    if outcome.startswith("log_odds "):
        upper, _, lower = outcome.removeprefix("log_odds ").partition(":")
        return f"log P({shown(upper)}) / P({shown(lower)})"
    return metric_name(outcome).lower()


def _row_name(persona: str, totals: pd.DataFrame, read: str, outcome: str) -> str:
    """The persona with the effect that there is to recover."""
    own = totals[
        (totals["persona"] == persona)
        & (totals["read"] == read)
        & (totals["outcome"] == outcome)
        & (totals["stratum"] == ALL)
    ]
    if own.empty:
        return shown(persona)
    first = own.iloc[0]
    return f"{shown(persona)}\n{signed(first['value'], 2)} {interval(first['low'], first['high'])}"


def _heat(ax: Axes, part: pd.DataFrame, groups: Sequence[str]) -> None:
    layers = sorted(part["layer"].unique())
    undefined = bool(part["fraction"].isna().all())
    names = ("shift" if undefined else "fraction", "low", "high", "by_construction")
    tables = [part.pivot(index="group", columns="layer", values=name) for name in names]
    value, low, high, must = (table.reindex(index=list(groups), columns=layers).to_numpy(float) for table in tables)
    ax.set_facecolor("white")
    if not undefined:
        ax.imshow(value, cmap="RdBu", vmin=-1.25, vmax=1.25, aspect="auto")
    for i, j in np.ndindex(value.shape):
        found = float(value[i, j])
        if not np.isnan(must[i, j]):
            ax.add_patch(
                Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor="none", edgecolor=SOFT, hatch="/////", lw=0, alpha=0.7)
            )
        elif np.isnan(found):
            ax.text(j, i, "–", ha="center", va="center", fontsize=6, color=SOFT)
        elif len(layers) <= _MOST_WRITTEN:
            holds_zero = low[i, j] <= 0 <= high[i, j]
            ink = "white" if abs(found) > 0.7 and not undefined else SOFT if holds_zero else INK
            ax.text(j, i, decimal(found), ha="center", va="center", fontsize=6, color=ink)
    named_rows(ax, [GROUP_NAMES.get(group, group) for group in groups], lines=False)
    step = max(1, -(-len(layers) // _MOST_WRITTEN))
    ax.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    ax.set_xlim(-0.5, len(layers) - 0.5)
    ax.grid(visible=False)


def _keys() -> list[Patch]:
    return [
        Patch(facecolor="#2f79b5", label="1: all"),
        Patch(facecolor="#f7f7f7", edgecolor=SOFT, label="0: nothing"),
        Patch(facecolor="#c6413e", label="−1: the opposite"),
        Patch(facecolor="white", edgecolor=SOFT, hatch="/////", label="by construction"),
        Patch(facecolor="none", lw=0, label="grey: interval holds 0"),
    ]


_GRID_CAPTION = (
    "The residual stream of the persona's run put into the base run (denoising), or that of the base run into the "
    "persona's (noising), at one point and one group of tokens."
)

_STREAMS_CAPTION = (
    "Parts of one block, taken from the persona's run at one group of tokens and put into the base run. Keys and "
    "values: only what later tokens read of these tokens in that block."
)

_CELLS_CAPTION = (
    "Numbers: share of the persona's mean effect on the label that the patch brings, or takes away; the base run has a "
    "neutral sentence of as many tokens in the persona's place, so that all tokens are aligned. Beside each row: the "
    "effect itself, with its 95 % interval. Hatched: cells that must be 1 or 0 whatever the model does (all tokens; "
    "the last point; embeddings). Grey numbers: the 95 % interval of the difference holds 0. Intervals by case family "
    "are in the table."
)


def draw_heads(heads: pd.DataFrame) -> Drawn:
    """The share of each persona's effect that one attention head brings at the token that is read."""
    personas, read = list(heads["persona"].drop_duplicates()), str(heads["read"].iloc[0])
    read_group = PROMPT_END if read == LATENT else ANSWER
    rows = heads[heads["group"] == (read_group if (heads["group"] == read_group).any() else heads["group"].iloc[0])]
    n_heads = int(rows["head"].max()) + 1
    columns = min(3, len(personas))
    lines = -(-len(personas) // columns)
    with styled():
        height = 0.8 + lines * (0.5 + min(0.14 * n_heads, 2.4))
        figure = Figure(figsize=(TEXT_WIDTH, min(height, PAGE_HEIGHT)))
        axes = figure.subplots(lines, columns, squeeze=False, sharey=True).reshape(-1)
        for ax, persona in zip(axes, personas, strict=False):
            table = rows[rows["persona"] == persona].pivot(index="head", columns="layer", values="fraction")
            matrix, blocks = table.to_numpy(float), [str(block) for block in table.columns]
            ax.imshow(matrix, cmap="RdBu", vmin=-1.25, vmax=1.25, aspect="auto")
            _write_heads(ax, matrix)
            panel_title(ax, shown(persona), columns)
            step = max(1, -(-len(blocks) // _MOST_WRITTEN))
            ax.set_xticks(range(0, len(blocks), step), blocks[::step])
            ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
            ax.grid(visible=False)
        for ax in axes[len(personas) :]:
            ax.set_axis_off()
        axes[0].set_ylabel("head")
        axes[0].set_xlabel("block")
        axis = f"{READ_NAMES.get(read, read)}: heads at {GROUP_NAMES[read_group]}, denoising"
        explained(figure, [*_keys()[:3], said("numbers: beyond .05")], ncols=4, axis=axis)
        return Drawn(laid_out(figure), rows.reset_index(drop=True), f"Heads: {read} label", _HEADS_CAPTION)


def _write_heads(ax: Axes, matrix: Float[np.ndarray, "head block"]) -> None:
    if max(matrix.shape) > _MOST_HEADS:
        return
    for i, j in np.ndindex(matrix.shape):
        found = float(matrix[i, j])
        if abs(found) >= 0.05:
            ink = "white" if abs(found) > 0.7 else INK
            ax.text(j, i, decimal(found), ha="center", va="center", fontsize=6, color=ink)


_HEADS_CAPTION = (
    "Output of one attention head at the token that is read, taken from the persona's run and put into the base run: "
    "share of the persona's mean effect that this brings. A head that brings much has fetched what the persona says, "
    "here or at an earlier token; heads need not add up, for later ones read what earlier ones wrote. Personas whose "
    "effect is not resolved are not drawn."
)
