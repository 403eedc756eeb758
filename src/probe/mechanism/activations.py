"""Cells with their residuals at named layers and positions. Knows a table and how to read; knows no store or model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from probe.values import ProbeError
from probe.values.nearest import nearest
from probe.values.sums import Sums


@dataclass(frozen=True, eq=False)
class LineSums:
    """What lines stand for that are each the mean over the rows of many cases.

    ``sums`` are those of each line's rows, ``cases`` and ``families`` the cases that are in it, and their families.
    ``kind`` numbers persona and condition: lines of one kind are of different cases.
    """

    sums: Sums
    cases: tuple[frozenset[str], ...]
    families: tuple[frozenset[str], ...]
    kind: Int[np.ndarray, " line"]

    def take(self, lines: Int[np.ndarray, " line"]) -> LineSums:
        """Those of some lines, in the order given."""
        cases, families = (tuple(own[at] for at in lines) for own in (self.cases, self.families))
        return LineSums(self.sums.take(lines), cases, families, self.kind[lines])


@dataclass(frozen=True, eq=False)
class SiteRows:
    """The rows of a table that have a site: their places in it, rising, and their residuals in the same order.

    Where the table has ``lines`` that stand for many cases each, ``x`` are their means.
    """

    layer: int
    position: str
    places: Int[np.ndarray, " row"]
    x: Float[np.ndarray, "row d_model"]
    lines: LineSums | None = None


@dataclass(frozen=True, eq=False)
class Activations:
    """Cells, one per row of ``table`` (the columns of ``Store.table()``), and their residual stream, read when asked.

    ``layers`` are residual points (0 the embedding, k the output of block k-1), rising. ``read(layer, position)`` gives
    the places of the rows that have the position, rising, and their residuals, in units of the residual stream.
    ``d_model`` is the width. Nothing is kept: one site is in memory at a time. Where rows were added up, ``read`` gives
    the means of lines, and ``lines`` what else is known of these; only analyses that ask for such a table get one.
    """

    table: pd.DataFrame
    layers: tuple[int, ...]
    positions: tuple[str, ...]
    d_model: int
    read: Callable[[int, str], tuple[Int[np.ndarray, " row"], Float[np.ndarray, "row d_model"]]]
    lines: Callable[[int, str], LineSums] | None = None

    def at(self, layer: int, position: str) -> SiteRows:
        """The rows that have this site, with their residuals.

        Raises:
            ProbeError: the layer or the position was not captured.
        """
        for name, asked, known in (("layer", layer, self.layers), ("position", position, self.positions)):
            if asked not in known:
                raise ProbeError(
                    f"the {name} {asked!r} was not captured. {nearest(str(asked), [str(one) for one in known], name)}"
                )
        return SiteRows(layer, position, *self.read(layer, position), self.lines and self.lines(layer, position))

    def sites(self, position: str) -> Iterator[SiteRows]:
        """Every layer at one position, rising, one in memory at a time."""
        for layer in self.layers:
            yield self.at(layer, position)

    def only(self, keep: np.ndarray) -> Activations:
        """These rows of the table only: a boolean mask, or places; the table's index is renumbered."""
        assert self.lines is None, "of lines none are chosen: an analysis takes them all"
        places = np.flatnonzero(keep) if keep.dtype == np.bool_ else np.asarray(keep)
        new = np.full(len(self.table), -1)
        new[places] = np.arange(len(places))

        def read(layer: int, position: str) -> tuple[np.ndarray, np.ndarray]:
            found, x = self.read(layer, position)
            there = new[found]
            kept = np.flatnonzero(there >= 0)
            order = kept[np.argsort(there[kept])]
            return there[order], x[order]

        return replace(self, table=self.table.iloc[places].reset_index(drop=True), read=read)


def in_memory(table: pd.DataFrame, x: Float[np.ndarray, "row layer d_model"], position: str) -> Activations:
    """Activations of arrays that are there already, layers 0, 1, ...; rows of NaN lack the position.

    Raises:
        ProbeError: the table has not as many rows as the array.
    """
    if len(table) != len(x):
        raise ProbeError(f"activations must be aligned with their table, found {len(x)} rows for {len(table)} cells")
    places = np.flatnonzero(~np.isnan(x).any((1, 2)))
    return Activations(
        table.reset_index(drop=True),
        tuple(range(x.shape[1])),
        (position,),
        x.shape[2],
        lambda layer, _: (places, x[places, layer]),
    )
