"""A figure with the numbers behind it, and what figures share. Knows tables and axes; knows no metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from probe.report.numbers import plural
from probe.report.style import BAND, INK, drawable, pdf, png, svg
from probe.values.spreadsheets import inert

FEW_ROWS, ROW, NARROW_ROW = 14, 0.19, 0.135
"""Rows of a figure are .19 in high, and .135 (the least for 7 pt) where there are more than 14."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure, the numbers behind it, and its words.

    ``numbers`` holds every drawn value, one row per mark, in the units of the table it came from (shares, not percent).
    """

    figure: Figure
    numbers: pd.DataFrame
    title: str
    caption: str


def save(drawn: Drawn, folder: Path, name: str) -> list[Path]:
    """Write ``name.svg``, ``.pdf``, ``.png`` (200 dpi) and ``.numbers.csv``, byte-identical on a second run."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{form}" for form in ("svg", "pdf", "png", "numbers.csv")]
    vector, page, pixels, table = paths
    vector.write_text(svg(drawn.figure), encoding="utf-8")
    page.write_bytes(pdf(drawn.figure))
    pixels.write_bytes(png(drawn.figure))
    table.write_text(numbers_csv(drawn.numbers), encoding="utf-8")
    return paths


def numbers_csv(numbers: pd.DataFrame) -> str:
    """A table as CSV text; a text that a spreadsheet would run as a formula is quoted with an apostrophe."""
    buffer = io.StringIO()
    numbers.map(inert).to_csv(buffer, index=False, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
    return buffer.getvalue()


def row_height(n_rows: int) -> float:
    """Inches of one row of names."""
    return ROW if n_rows <= FEW_ROWS else NARROW_ROW


def counted(counts: Sequence[float], word: str) -> str:
    """``300 pairs``, or ``280–300 pairs`` where the counts differ; empty where there are none."""
    known = [count for count in counts if not np.isnan(count)]
    if not known:
        return ""
    low, high = min(known), max(known)
    return plural(high, word) if low == high else f"{low:,.0f}–{plural(high, word)}"


def named_rows(ax: Axes, names: Sequence[str], *, lines: bool = True) -> None:
    """One row per name from top to bottom, with a fine line between them."""
    ax.set_yticks(range(len(names)), [drawable(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    if lines:
        ruled(ax, len(names))


def ruled(ax: Axes, n: int) -> None:
    """Fine lines between rows."""
    ax.hlines(np.arange(1, n) - 0.5, 0, 1, transform=ax.get_yaxis_transform(), color=BAND, lw=0.5)


def dodged(n: int, reach: float = 0.27) -> np.ndarray:
    """Offsets that keep ``n`` marks of one row apart."""
    return np.linspace(-reach, reach, n) if n > 1 else np.zeros(1)


def numbers_of(rows: pd.DataFrame, *names: str) -> list[np.ndarray]:
    """Columns as floats; one that the table lacks is all NaN."""
    none = np.full(len(rows), np.nan)
    return [rows[name].to_numpy(dtype=float) if name in rows else none for name in names]


def in_arm_order(rows: pd.DataFrame, personas: Sequence[str]) -> pd.DataFrame:
    """One row per persona, in this order; all NaN where the table has none."""
    return rows.set_index("persona").reindex(list(personas))


def planned_key(rows: pd.DataFrame) -> list[Line2D]:
    """The legend's entry for planned values, where there are any."""
    if "planned" not in rows or not rows["planned"].notna().any():
        return []
    return [Line2D([], [], ls="", marker="D", mfc="white", mec=INK, ms=3.6, label="planned")]


def said(words: str) -> Line2D:
    """A legend entry of words alone."""
    return Line2D([], [], ls="", label=words)


def explained(figure: Figure, keys: Sequence[Artist], *, ncols: int = 5, axis: str = "") -> None:
    """The legend under a figure, in as many columns as fit; ``axis``, a label of all panels, stands above it."""
    lengths = [len(str(key.get_label())) + _HANDLE for key in keys]
    for columns in range(min(ncols, len(keys)), 0, -1):
        rows = -(-len(keys) // columns)
        if sum(max(lengths[start : start + rows]) for start in range(0, len(keys), rows)) <= _CHARACTERS:
            break
    figure.legend(handles=list(keys), ncols=columns, loc="outside lower center", title=axis or None, title_fontsize=7.5)


_CHARACTERS, _HANDLE = 122, 6
"""Characters of 7 pt that fit a text column, and what a legend's mark takes of them."""

_COLUMN_CHARACTERS = 88
"""Characters of a bold title that fit a text column."""


def panel_title(ax: Axes, text: str, panels: int, **style: Any) -> None:
    """A title that is broken where it would run into the next of so many panels."""
    ax.set_title(wrapped(text, max(_COLUMN_CHARACTERS // panels, 10)), **style)


def side_label(ax: Axes, *lines: str) -> None:
    """A bold vertical label, broken after fifteen characters where its words allow."""
    broken = [part for line in lines for part in wrapped(drawable(line), _SIDE).split("\n") if part]
    ax.set_ylabel("\n".join(squeezed(part, _SIDE) for part in broken), fontweight="bold", labelpad=6)


_SIDE = 15


def squeezed(text: str, width: int) -> str:
    """A line without words to break at, shortened to so many characters; its end is kept."""
    return text if len(text) <= width else f"{text[: width - 5]}…{text[-4:]}"


def wrapped(text: str, width: int) -> str:
    """A title broken into lines of at most so many characters, where its words allow."""
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], joined] if len(joined) <= width else [*lines, word]
    return "\n".join(filter(None, lines))


def plain_tick(value: float, _: object = None, *, plus: str = "") -> str:
    """``.25``, ``−.5``, ``1``: as few digits as a tick needs; ``plus`` is the sign of what is positive."""
    text = f"{abs(value):.4f}".rstrip("0").rstrip(".").removeprefix("0") or "0"
    return text if text == "0" else ("−" if value < 0 else plus) + text


def signed_tick(value: float, _: object = None) -> str:
    """``+.25``, ``−.5``, ``0``."""
    return plain_tick(value, plus="+")


def stratum_keys(looks: Mapping[str, tuple[str, str]], names: Mapping[str, str]) -> list[Line2D]:
    """Legend entries of the strata."""
    return [Line2D([], [], color=hue, marker=mark, label=names[stratum]) for stratum, (hue, mark) in looks.items()]
