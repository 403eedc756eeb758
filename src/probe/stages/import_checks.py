"""Whether saved arrays are what a store keeps. Knows shapes, dtypes and which entry is which row; writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from probe.stages.import_arrays import SavedActivations, SavedArray
from probe.store.packing import in_order
from probe.values import ProbeError

CHECK_BYTES = 16 * 2**20
KEPT: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True, eq=False)
class SavedPosition:
    """The arrays of one position, and for each line of the table its entry in them, -1 where it has none."""

    name: str
    arrays: tuple[SavedArray, ...]
    entries: np.ndarray


@dataclass(frozen=True, eq=False)
class Saved:
    """Checked arrays: residual points, width, the dtype that the store keeps, and the positions."""

    layers: tuple[int, ...]
    d_model: int
    dtype: str
    positions: tuple[SavedPosition, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row at all points and positions."""
        return len(self.positions) * len(self.layers) * self.d_model * self.kept.itemsize

    @property
    def kept(self) -> np.dtype[Any]:
        """The dtype as numpy knows it."""
        return KEPT[self.dtype]


def check_saved(found: SavedActivations, n_rows: int, order: np.ndarray | None, *, convert: bool) -> Saved:
    """Every array has the shape, dtype and values that a store keeps; the first that has not is named."""
    positions = []
    first = next(array for layers in found.resid.values() for array in layers.values())
    points = sorted({point for layers in found.resid.values() for point in layers})
    for name in in_order(found.resid):
        layers = found.resid[name]
        if missing := [point for point in points if point not in layers]:
            raise ProbeError(
                f"every position has the same residual points; {name} lacks {', '.join(map(str, missing))}, which "
                "another position has"
            )
        entries = _entries(name, found.rows.get(name), n_rows, order)
        n_entries = int((entries >= 0).sum())
        for point in points:
            _check_shape(layers[point], n_entries, first, convert=convert)
        positions.append(SavedPosition(name, tuple(layers[point] for point in points), entries))
    if strange := [name for name in found.rows if name not in found.resid]:
        raise ProbeError(f"rows.{strange[0]} is given, and no array resid.{strange[0]}.L<nn>")
    for position in positions:
        for array in position.arrays:
            _check_finite(array, convert=convert)
    kept = "float32" if convert else first.dtype.name
    return Saved(tuple(points), first.shape[1], kept, tuple(positions))


def _entries(position: str, rows: SavedArray | None, n_rows: int, order: np.ndarray | None) -> np.ndarray:
    entries = np.full(n_rows, -1, np.int64)
    if rows is not None and order is not None:
        raise ProbeError(f"rows are told once; found the file of rows, and {rows.where} for {position}")
    lines = np.arange(n_rows) if order is None else order
    if rows is not None:
        lines = rows.read(0, rows.shape[0] if rows.shape else 0)
        if (
            lines.ndim != 1
            or lines.dtype.kind not in "iu"
            or (lines.size and (lines.min() < 0 or lines.max() >= n_rows))
        ):
            raise ProbeError(
                f"{rows.name} holds for each entry its line in the table, whole numbers from 0 to {n_rows - 1}; found "
                f"{lines.dtype} {list(rows.shape)} in {rows.where}"
            )
    if len(np.unique(lines)) < len(lines):
        raise ProbeError(f"each entry belongs to another line of the table; the rows of {position} name one twice")
    entries[lines] = np.arange(len(lines))
    return entries


def _check_shape(array: SavedArray, n_entries: int, first: SavedArray, *, convert: bool) -> None:
    if len(array.shape) != 2 or array.shape[0] != n_entries or array.shape[1] != first.shape[-1]:
        width = first.shape[-1] if len(first.shape) == 2 else "d_model"
        raise ProbeError(
            f"{array.where} has the shape [rows, d_model] = [{n_entries}, {width}]: one entry for each line of the "
            f"table, or as rows.<position> tells, and one width; found {list(array.shape)}"
        )
    if convert:
        if array.dtype.kind != "f" and array.dtype != KEPT["bfloat16"]:
            raise ProbeError(f"activations are floating-point numbers; {array.where} has {array.dtype}")
    elif array.dtype not in KEPT.values():
        raise ProbeError(
            f"{array.where} is {array.dtype}; a store keeps float32 and bfloat16 and converts nothing silently: allow "
            "it with --to-float32 (exact from float16, rounded from float64)"
        )
    elif array.dtype != first.dtype:
        raise ProbeError(
            f"all arrays have one dtype; {first.where} is {first.dtype} and {array.where} {array.dtype}: allow float32 "
            "for all with --to-float32"
        )


def _check_finite(array: SavedArray, *, convert: bool) -> None:
    step = max(1, CHECK_BYTES // max(1, array.shape[1] * array.dtype.itemsize))
    for start in range(0, array.shape[0], step):
        values = array.read(start, min(start + step, array.shape[0]))
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is what is looked for
            finite = np.isfinite(values.astype(np.float32, copy=False)).all(axis=1)
        if not finite.all():
            entry = start + int(np.argmin(finite))
            raise ProbeError(
                f"activations are finite{' in float32' if convert else ''}; {array.where} has NaN or infinity in entry "
                f"{entry} (from 0): leave such rows out, and tell the others with rows.<position> or --rows"
            )
