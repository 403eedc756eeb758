"""Sums over the rows of a shard as its tensors, and back. Knows names and layout; knows no arithmetic and no file.

A *set* is what one shard holds of one persona, condition and group of cases. Its sums (:mod:`probe.values.sums`) are
made in float64 and kept in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from probe.values import CellRecord
from probe.values.sums import Sums

SETS = "sets"
"""The tensor that names the set of every row of a shard; a shard of rows has none."""

MEAN, SQUARES, PRODUCTS, POWERS = KINDS = ("mean", "squares", "products", "powers")
"""Tensors of one site, ``<kind>.<stream>.<position>.L<nn>``, a line for each set that has the position."""


def sets_of(records: Sequence[CellRecord]) -> Int[np.ndarray, " row"]:
    """The set of every row of a shard, numbered in the order in which they begin."""
    numbers: dict[object, int] = {}
    keys = ((record.cell.persona, record.cell.condition, record.group) for record in records)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int32)


def names_at(site: str, axes: int) -> dict[str, str]:
    """The names of the tensors of one site (``<stream>.<position>.L<nn>``), by their kind."""
    return {kind: f"{kind}.{site}" for kind in (KINDS if axes else KINDS[:2])}


def tensors_of(sums: Sums, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The sums of one site as a shard holds them, in float32; of the products what is not below the diagonal."""
    above = np.triu_indices(sums.products.shape[-1])
    held = {
        MEAN: sums.mean,
        SQUARES: sums.squares,
        PRODUCTS: sums.products[:, above[0], above[1]],
        POWERS: np.column_stack([sums.cubes, sums.fourths]),
    }
    return {name: np.ascontiguousarray(held[kind], np.float32) for kind, name in names.items()}


def sums_from(arrays: Mapping[str, np.ndarray], names: Mapping[str, str], n: np.ndarray, axes: int) -> Sums:
    """The sums of one site, from the tensors of a shard and the number of rows in each of its sets."""
    held = {kind: arrays[name].astype(np.float64) for kind, name in names.items()}
    products = np.zeros((len(n), axes, axes))
    above = np.triu_indices(axes)
    powers = held.get(POWERS, np.zeros((len(n), 1)))
    if axes:
        products[:, above[0], above[1]] = products[:, above[1], above[0]] = held[PRODUCTS]
    return Sums(n.astype(np.float64), held[MEAN], held[SQUARES], products, powers[:, :axes], powers[:, axes])
