"""Selections in files that other tools read. Knows numpy, CSV, Parquet and HF datasets; changes no store.

Every export holds the table and, for each position, the layers of every captured stream that were asked for; one layer
is in memory at a time. bfloat16 becomes float32, which is exact: none of these formats knows bfloat16. What is written
appears whole under its name or not at all, and never over something that stands there.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.store.names import require_known
from probe.store.packing import in_order, tensor_name
from probe.store.residuals import Residuals
from probe.store.views import View
from probe.values import ProbeError
from probe.values.spreadsheets import inert

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

GROUP_BYTES = 16 * 2**20
"""At least this much is written to one row group of Parquet, where a layer is smaller."""

SCHEMA = "persona-probe-export/1"


@dataclass(frozen=True, eq=False)
class Selection:
    """What is exported: the rows of a view, at some residual points and positions.

    Of the streams beside the residual these are the captured blocks with the numbers of the points.
    """

    view: View
    layers: tuple[int, ...]
    positions: tuple[str, ...]

    @classmethod
    def of(cls, view: View, layers: Sequence[int] | None = None, positions: Sequence[str] | None = None) -> Selection:
        """A selection of all residual points and positions that were captured, or of those named.

        Raises:
            UnknownName: a layer or position was not captured.
        """
        captured = in_order(view.frame.layout.positions)
        if view.frame.layout.moments and not layers and not positions:
            return cls(view, (), ())
        for position in positions or ():
            require_known("position", position, captured)
        chosen = tuple(view.frame.sites.layers("resid")) if layers is None else tuple(layers)
        at = tuple(captured if positions is None else positions)
        if at:
            view.frame.sites.site("resid", at[0], chosen)
        return cls(view, chosen, at)

    def values(self, stream: str, layer: int, position: str) -> Residuals:
        """Activations of the rows that have the position, not yet read."""
        return self.view.resid(layer=layer, position=position, stream=stream, missing="drop")

    @cached_property
    def streams(self) -> Mapping[str, tuple[int, ...]]:
        """The layers of each stream, the residual first."""
        sites = self.view.frame.sites
        inner = {
            stream: tuple(block for block in sites.layers(stream) if block in self.layers)
            for stream in sites.streams[1:]
        }
        return {"resid": self.layers} | {stream: blocks for stream, blocks in inner.items() if blocks}

    def width(self, stream: str) -> int:
        """The width of a stream."""
        known = {own.name: own.width for own in self.view.frame.layout.streams}
        return self.d_model if stream == "resid" else known[stream] or 0

    @cached_property
    def table(self) -> pd.DataFrame:
        """The table of the view, without attributes."""
        table = self.view.table()
        table.attrs = {}
        return table

    @cached_property
    def kept(self) -> Mapping[str, np.ndarray]:
        """For each position the rows that have it, by their place in the table."""
        return {
            position: self.values("resid", self.layers[0], position).kept for position in self.positions if self.layers
        }

    @property
    def facts(self) -> dict[str, Any]:
        """What a reader of the files needs to know, as plain JSON values."""
        layout, attrs = self.view.frame.layout, self.view.frame.attrs
        study = attrs.get("study")
        return {
            "schema": SCHEMA,
            "store_identity_sha256": layout.identity,
            "study": study.get("name") if isinstance(study, Mapping) else study,
            "options": list(layout.options),
            "high_risk": attrs.get("high_risk"),
            "layers": list(self.layers),
            "layer_is": "residual point: 0 the embedding, k the output of block k-1, without the final norm",
            "positions": list(self.positions),
            **self._inner_facts,
            "d_model": self.d_model,
            "dtype": "float32",
            "dtype_in_store": layout.dtype,
        }

    @property
    def _inner_facts(self) -> dict[str, Any]:
        """The streams beside the residual, where there are any, with their blocks and widths."""
        inner = {name: blocks for name, blocks in self.streams.items() if name != "resid"}
        if not inner:
            return {}
        return {"streams": {name: {"blocks": [*blocks], "width": self.width(name)} for name, blocks in inner.items()}}

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.view.frame.layout.d_model or next(
            (self.values("resid", layer, position).d_model for layer in self.layers for position in self.positions), 0
        )


def export_numpy(selection: Selection, out: str | Path) -> Path:
    """A folder: ``table.parquet``, ``export.json``, and ``resid.<position>.L<nn>.npy``, float32 ``[entries, d_model]``.

    Other streams stand beside it as ``<stream>.<position>.L<nn>.npy``, where nn is the block.
    ``rows.<position>.npy`` holds the line of the table that each entry belongs to, where not all rows have the
    position. ``probe store import`` reads such a folder, where it holds no stream but the residual.

    Raises:
        ProbeError: ``out`` exists.
    """
    with fresh(out) as folder:
        folder.mkdir()
        selection.table.to_parquet(folder / "table.parquet", index=False)
        (folder / "export.json").write_text(json.dumps(selection.facts, indent=2), encoding="utf-8")
        for position, kept in selection.kept.items():
            if len(kept) < len(selection.view):
                np.save(folder / f"rows.{position}.npy", kept, allow_pickle=False)
            for stream, layer in ((name, layer) for name, layers in selection.streams.items() for layer in layers):
                array = selection.values(stream, layer, position).numpy()
                np.save(folder / f"{tensor_name(stream, position, layer)}.npy", array, allow_pickle=False)
    return Path(out)


def export_csv(selection: Selection, out: str | Path) -> Path:
    """The table alone. A text that a spreadsheet would take for a formula (``=``, ``+``, ``-``, ``@``) gets a ``'``.

    Raises:
        ProbeError: ``out`` exists.
    """
    with fresh(out) as file:
        guarded(selection.table).to_csv(file, index=False)
    return Path(out)


def export_parquet(selection: Selection, out: str | Path) -> Path:
    """One file: the columns of the table, and ``<stream>.<position>.L<nn>`` as lists of as many floats as it is wide.

    Where a row has no such position the list is null. Row groups are of the size of one layer.

    Raises:
        ProbeError: ``out`` exists.
    """
    import pyarrow.parquet as pq

    with fresh(out) as file:
        groups = _arrow_groups(selection)
        first = next(groups)
        schema = first.schema.with_metadata({b"persona-probe": json.dumps(selection.facts).encode()})
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            writer.write_table(first.cast(schema))
            for group in groups:
                writer.write_table(group.cast(schema))
    return Path(out)


def export_datasets(selection: Selection, out: str | Path) -> Path:
    """A folder of HF ``datasets`` (``datasets.load_from_disk``), one line per row, columns as in Parquet.

    ``datasets`` writes 1,000 rows at a time, all their columns at once: that much is in memory.

    Raises:
        ProbeError: ``out`` exists, or ``datasets`` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise _missing("datasets", "export") from error
    import pyarrow as pa

    with fresh(out) as folder:
        scratch = folder.with_name(f"{folder.name}.scratch")
        try:
            scratch.mkdir()
            groups = _arrow_groups(selection)
            first = next(groups)
            with pa.OSFile(str(scratch / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, first.schema) as writer:
                writer.write_table(first)
                for group in groups:
                    writer.write_table(group.cast(first.schema))
            found = datasets.Dataset.from_file(str(scratch / "rows.arrow"))  # mapped into memory, not read
            found.info.description = json.dumps(selection.facts)
            found.save_to_disk(str(folder))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return Path(out)


def guarded(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every text, also of a column's name, that a spreadsheet would take for a formula made plain."""
    text = table.select_dtypes(include=["object", "string"]).columns
    out = table.assign(**{str(name): table[name].map(inert) for name in text})
    return out.rename(columns={name: inert(str(name)) for name in out.columns})


@contextmanager
def fresh(out: str | Path) -> Iterator[Path]:
    """A path to write to, which becomes ``out`` when all is written and is removed when something fails.

    Raises:
        ProbeError: ``out`` exists, or is on no local file system.
    """
    if "://" in str(out):
        raise ProbeError(f"an export is written to a local path, and can be copied from there; found {out}")
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise ProbeError(f"an export never writes over what is there, and {out} exists; choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{secrets.token_hex(4)}")
    try:
        yield partial
        partial.rename(out)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _arrow_groups(selection: Selection) -> Iterator[pa.Table]:
    """The rows as Arrow tables that together take no more memory than one layer, or ``GROUP_BYTES``."""
    import pyarrow as pa

    n = len(selection.view)
    wide = sum(len(layers) * selection.width(stream) for stream, layers in selection.streams.items())
    row_bytes = max(1, 4 * wide * len(selection.positions))
    step = max(1, max(GROUP_BYTES, 4 * selection.d_model * n) // row_bytes)
    whole = pa.Table.from_pandas(selection.table, preserve_index=False).replace_schema_metadata(None)
    for start in range(0, max(n, 1), step):
        stop = min(start + step, n)
        group = whole.slice(start, stop - start)
        for position in selection.positions:
            kept = selection.kept[position]
            first, last = np.searchsorted(kept, (start, stop))
            for stream, layer in ((name, layer) for name, layers in selection.streams.items() for layer in layers):
                values = selection.values(stream, layer, position).take(np.arange(first, last)).numpy()
                lists = _lists(values, kept[first:last] - start, stop - start, selection.width(stream))
                group = group.append_column(tensor_name(stream, position, layer), lists)
        yield group


def _lists(values: np.ndarray, places: np.ndarray, n: int, d_model: int) -> pa.Array:
    """Vectors as a column of lists of one length, null where a row has none."""
    import pyarrow as pa

    absent = np.ones(n, bool)
    absent[places] = False
    full = values
    if absent.any():
        full = np.zeros((n, d_model), np.float32)
        full[places] = values
    return pa.FixedSizeListArray.from_arrays(pa.array(full.reshape(-1)), d_model, mask=pa.array(absent))


def _missing(package: str, extra: str) -> ProbeError:
    return ProbeError(f'{package} is not installed; run: pip install "persona-probe[{extra}]"')
