"""Selections as zarr v3 and as xarray datasets: one layout. Knows arrays and dimensions; changes no store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.store.exports import Selection, fresh
from probe.values import ProbeError

if TYPE_CHECKING:
    import pandas as pd
    import xarray

ROWS_PER_CHUNK = 1024
DIMENSIONS = ("layer", "row", "d_model")
"""Of the residual; of another stream ``<stream>_block`` and ``<stream>_width`` stand for the first and the last."""


def export_zarr(selection: Selection, out: str | Path) -> Path:
    """A zarr v3 group: ``resid_<position>`` float32 ``[layer, row, d_model]``, and each column of the table ``[row]``.

    Other streams are ``<stream>_<position>``, ``[<stream>_block, row, <stream>_width]``.

    The dimensions are named, so ``xarray.open_zarr(out)`` gives a Dataset. Rows without the position are NaN; a
    missing text is empty. Chunks hold one layer of up to 1,024 rows.

    Raises:
        ProbeError: ``out`` exists, or ``zarr`` is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise ProbeError('zarr is not installed; run: pip install "persona-probe[export]"') from error
    n = len(selection.view)
    with fresh(out) as folder:
        group = zarr.create_group(store=str(folder), zarr_format=3, attributes=selection.facts)
        for name, column in _columns(selection.table).items():
            _put(group, name, column, ("row",))
        for stream, layers in selection.streams.items():
            dimensions, width = _dimensions(stream), selection.width(stream)
            _put(group, dimensions[0], np.array(layers, np.int64), dimensions[:1])
            for position in selection.positions:
                array = group.create_array(
                    name=f"{stream}_{position}",
                    shape=(len(layers), n, width),
                    chunks=(1, max(1, min(n, ROWS_PER_CHUNK)), max(1, width)),
                    dtype="float32",
                    fill_value=np.nan,
                    dimension_names=dimensions,
                )
                for at, layer in enumerate(layers):
                    values = selection.view.resid(layer=layer, position=position, stream=stream, missing="nan")
                    array[at] = values.numpy()
    return Path(out)


def to_xarray(selection: Selection) -> xarray.Dataset:
    """The whole selection in memory, in the layout of :func:`export_zarr`; ``layer`` is a coordinate.

    Raises:
        ProbeError: ``xarray`` is not installed.
    """
    try:
        import xarray
    except ImportError as error:
        raise ProbeError('xarray is not installed; run: pip install "persona-probe[export]"') from error
    arrays: dict[str, Any] = {name: ("row", column) for name, column in _columns(selection.table).items()}
    coords = {}
    for stream, layers in selection.streams.items():
        dimensions = _dimensions(stream)
        coords[dimensions[0]] = (dimensions[0], np.array(layers, np.int64))
        for position in selection.positions:
            stacked = selection.view.stack(layers, position=position, stream=stream, missing="nan")
            arrays[f"{stream}_{position}"] = (dimensions, np.moveaxis(stacked, 1, 0))
    return xarray.Dataset(arrays, coords=coords, attrs=selection.facts)


def _dimensions(stream: str) -> tuple[str, str, str]:
    return DIMENSIONS if stream == "resid" else (f"{stream}_block", "row", f"{stream}_width")


def _put(group: Any, name: str, values: np.ndarray, dimensions: tuple[str, ...]) -> None:
    dtype = str if values.dtype == object else values.dtype
    shape = values.shape
    array = group.create_array(
        name=name, shape=shape, chunks=(max(1, len(values)),), dtype=dtype, dimension_names=dimensions
    )
    array[:] = values


def _columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Each column as an array: numbers and truth values as they are, texts as objects, a missing one empty."""
    import pandas as pd

    columns = {}
    for name in table:
        column = table[name]
        if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
            columns[str(name)] = column.to_numpy()
        else:
            columns[str(name)] = np.array(["" if pd.isna(value) else str(value) for value in column], object)
    return columns
