"""The formats of an export by their names. Knows which function writes which."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from probe.store.exports import Selection, export_csv, export_datasets, export_numpy, export_parquet
from probe.store.exports_zarr import export_zarr
from probe.store.views import View
from probe.values import ProbeError

FORMATS: Mapping[str, Callable[[Selection, str | Path], Path]] = {
    "numpy": export_numpy,
    "zarr": export_zarr,
    "xarray": export_zarr,
    "parquet": export_parquet,
    "datasets": export_datasets,
    "csv": export_csv,
}
"""``xarray`` is the zarr group, whose dimensions are named: ``xarray.open_zarr`` reads it layer by layer."""


def export(
    view: View,
    to: str,
    out: str | Path,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[str] | None = None,
) -> Path:
    """Write a selection as numpy, zarr, xarray, parquet, datasets or csv, and return where; the store stays as it is.

    Without ``layers`` and ``positions`` every one that was captured is written.

    Raises:
        ProbeError: there is no such format, its package is not installed, or ``out`` exists.
        UnknownName: a layer or position was not captured.
    """
    if to not in FORMATS:
        raise ProbeError(f"an export is one of {', '.join(FORMATS)}; found {to!r}")
    return FORMATS[to](Selection.of(view, layers, positions), out)
