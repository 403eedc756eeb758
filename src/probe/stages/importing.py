"""Activations captured elsewhere become a store. Knows tables, arrays and the writer; runs no model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probe.stages.import_arrays import SavedActivations, find_activations
from probe.stages.import_checks import Saved, check_saved
from probe.stages.import_tables import ImportedRow, ImportedTable, read_rows
from probe.stages.targets import read_table
from probe.store import Plan, Store, StoreLock, open_store, open_writer
from probe.store.packing import UNKNOWN_INDEX
from probe.values import CellRecord, PlannedRow, ProbeError

SHARD_BYTES = 64 * 2**20
SHARD_ROWS = 512
_KEYS = ("row_id", "persona", "case", "condition")


@dataclass(frozen=True)
class Origin:
    """What the user says of a capture that another tool made.

    ``model`` is the model's id; its weights are not known. ``options`` are the labels in rising urgency (by default
    those of the ``logp_<label>`` columns) and ``high_risk`` one of them. ``to_float32`` allows arrays of float16 and
    float64 to be converted: exact from the former, rounded from the latter.
    """

    model: str
    options: tuple[str, ...] = ()
    high_risk: str | None = None
    to_float32: bool = False


@dataclass(frozen=True)
class Imported:
    """The store that an import filled, its rows, and the columns of the table that it has no place for."""

    store: str | Path
    rows: int
    left_out: tuple[str, ...]


def import_store(
    table: pd.DataFrame | str | Path,
    activations: Sequence[str | Path],
    store: str | Path,
    origin: Origin,
    *,
    name_map: str | Path | None = None,
    rows: str | Path | None = None,
) -> Store:
    """Make a store of a table and of activations that another tool captured; every analysis then works on it.

    ``table`` has the columns of ``Store.table()``, of which ``case`` and ``persona`` are needed, as a data frame or a
    CSV, JSONL or Parquet file. ``activations`` are files or folders of ``.npy``, ``.safetensors`` and ``.pt`` (of which
    only weights are read) with arrays ``[rows, d_model]`` named ``resid.<position>.L<point>``; ``name_map`` names them
    otherwise. Entry i belongs to line i of the table, or to the line whose ``row_id`` (or persona, case and condition)
    line i of the file ``rows`` gives. Importing the same again changes nothing; docs/import-export.md has examples.

    Raises:
        ProbeError: a name, a shape, a number of rows, a dtype or a value breaks a rule; nothing was written.
    """
    done = run_import(table, activations, store, origin, name_map=name_map, rows=rows)
    return open_store(done.store)


def run_import(
    table: pd.DataFrame | str | Path,
    activations: Sequence[str | Path],
    store: str | Path,
    origin: Origin,
    *,
    name_map: str | Path | None = None,
    rows: str | Path | None = None,
) -> Imported:
    """As :func:`import_store`; says what was left out."""
    frame = table if isinstance(table, pd.DataFrame) else read_table(Path(table))
    if frame.empty:
        raise ProbeError("an import needs a table with at least one line; this one has none")
    read = read_rows(frame, origin.options)
    found = find_activations([Path(path) for path in activations], None if name_map is None else Path(name_map))
    order = None if rows is None else _order(read_table(Path(rows)), frame, read)
    saved = check_saved(found, len(read.rows), order, convert=origin.to_float32)
    manifest = _manifest(read, saved, origin, found)
    manifest["imported"]["table"] = _table_source(table, frame)
    manifest["study"] = {"name": Path(str(store)).name}
    plan = _plan(read, saved)
    with StoreLock.acquire(store) as lock:
        writer = open_writer(store, manifest, lock=lock)
        writer.add_plan(plan)
        pending = {row.cell.row_id for row in writer.pending()}
        writer.start_run({"imported": True, "versions": {"persona-probe": version("persona-probe")}})
        for shard in sorted({row.shard for row in plan.rows}):
            lines = [at for at, row in enumerate(plan.rows) if row.shard == shard and row.cell.row_id in pending]
            if lines:
                writer.commit(list(_records(read, saved, lines)))
        writer.finish_run(0)
    return Imported(store, len(read.rows), read.left_out)


def _order(keys: pd.DataFrame, table: pd.DataFrame, read: ImportedTable) -> np.ndarray:
    """The line of the table that each line of ``keys`` names."""
    columns = ["row_id"] if "row_id" in keys else [name for name in _KEYS[1:] if name in keys]
    if "row_id" not in keys and not {"persona", "case"} <= set(columns):
        raise ProbeError(
            f"a file of rows has the column row_id, or persona and case; it has {', '.join(map(str, keys))}"
        )
    lines = table.assign(persona=table["persona"].map(str), case=table["case"].map(str))
    if "row_id" in columns and "row_id" not in table:
        lines = lines.assign(row_id=[row.cell.row_id for row in read.rows])
    if not set(columns) <= set(lines):
        raise ProbeError(f"the table has no column {next(name for name in columns if name not in lines)!r}")
    at: dict[tuple[str, ...], int] = {}
    for line, key in enumerate(lines[columns].astype(str).itertuples(index=False, name=None)):
        if at.setdefault(key, line) != line:
            raise ProbeError(f"a row is told by {', '.join(columns)}; {'/'.join(key)} are two lines: add `condition`")
    order = []
    for line, key in enumerate(keys[columns].astype(str).itertuples(index=False, name=None)):
        if key not in at:
            raise ProbeError(f"line {line + 1} of the file of rows, {'/'.join(key)}, is not in the table")
        order.append(at[key])
    return np.array(order, np.int64)


def _manifest(read: ImportedTable, saved: Saved, origin: Origin, found: SavedActivations) -> dict[str, Any]:
    if origin.high_risk is not None and origin.high_risk not in read.options:
        raise ProbeError(f"the high-risk option is one of {', '.join(read.options)}; found {origin.high_risk!r}")
    arrays = [*(a for layers in found.resid.values() for a in layers.values()), *found.rows.values()]
    files = sorted({array.file for array in arrays})
    sources: dict[str, Any] = {"activations": [_source(file) for file in files]}
    if read.conditions:
        sources["conditions"] = dict(read.conditions)
    return {
        "created_by": f"persona-probe {version('persona-probe')}, import",
        "model": {"id": origin.model},
        "capture": {
            "layers": list(saved.layers),
            "positions": [position.name for position in saved.positions],
            "dtype": saved.dtype,
            "d_model": saved.d_model,
        },
        "labels": {"options": list(read.options), "high_risk": origin.high_risk},
        "imported": sources,
    }


def _source(file: Path) -> dict[str, str]:
    with file.open("rb") as opened:
        return {"file": file.name, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _table_source(table: pd.DataFrame | str | Path, frame: pd.DataFrame) -> dict[str, str]:
    if isinstance(table, pd.DataFrame):
        content = frame.to_json(orient="records").encode()
        return {"file": "(a data frame)", "sha256": hashlib.sha256(content).hexdigest()}
    return _source(Path(table))


def _plan(read: ImportedTable, saved: Saved) -> Plan:
    per_shard = max(1, min(SHARD_ROWS, SHARD_BYTES // max(1, saved.row_bytes)))
    rows = (
        PlannedRow(row.cell, at // per_shard, row.prompt_sha, "", row.told["n_prompt"], row.prompt)
        for at, row in enumerate(read.rows)
    )
    return Plan(tuple(rows), read.personas, read.cases, split_seed=0, batch_size=per_shard)


def _records(read: ImportedTable, saved: Saved, lines: Sequence[int]) -> Iterator[CellRecord]:
    """The rows of some lines of the table; the arrays are read for all of them at once, layer by layer."""
    resid: dict[int, dict[str, np.ndarray]] = {line: {} for line in lines}
    for position in saved.positions:
        entries = position.entries[list(lines)]
        present = np.flatnonzero(entries >= 0)
        if present.size:
            layers = [array.take(entries[present]).astype(saved.kept, copy=False) for array in position.arrays]
            for place, row in zip(present.tolist(), np.stack(layers, axis=1), strict=True):
                resid[lines[place]][position.name] = row
    for line in lines:
        yield _record(read.rows[line], resid[line], [position.name for position in saved.positions])


def _record(row: ImportedRow, resid: Mapping[str, np.ndarray], positions: Sequence[str]) -> CellRecord:
    return CellRecord(
        cell=row.cell,
        prompt_sha=row.prompt_sha,
        tokens_sha="",
        prompt_tokens=(),
        positions={name: UNKNOWN_INDEX if name in resid else -1 for name in positions},
        resid=resid,
        labels=row.labels,
        gen_tokens=(),
        gen_text=row.gen_text,
        status=row.status,
        label=row.label,
        letter=row.letter,
        letter_first=row.letter_first,
        extra={"imported": dict(row.told)},
    )
