"""One set of activations, bf16 ``[layer, row, d_model]``, in the formats that a user would pick instead of a store.

Each format writes what it is given row block by row block, and reads a whole layer and one row over all layers, as its
own documentation does it. bf16 travels as its 16 bits where a format does not know the type.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from probe.store import Plan, Store, StoreLock, View, open_store, open_writer
from probe.values import Cell, CellRecord, Condition, PlannedRow, sha256_of

BF16 = np.dtype(ml_dtypes.bfloat16)
POSITION = "prompt_end"


@dataclass(frozen=True)
class Size:
    """How much is stored, in which pieces."""

    rows: int
    layers: int
    d_model: int
    rows_per_shard: int

    @property
    def nbytes(self) -> int:
        return self.rows * self.layers * self.d_model * 2

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """First row and bf16 ``[rows, layer, d_model]`` of every shard; the same on every call."""
        for first in range(0, self.rows, self.rows_per_shard):
            rows = min(self.rows_per_shard, self.rows - first)
            rng = np.random.default_rng(first)
            yield first, rng.standard_normal((rows, self.layers, self.d_model), np.float32).astype(BF16)


class Format(Protocol):
    """A format on disk under ``folder``.

    ``find`` says where a row is: for the store a selection by the case's name, for the others what the caller knows.
    """

    name: str
    folder: Path

    def write(self, first: int, block: np.ndarray) -> None: ...
    def finish(self) -> None: ...
    def open(self) -> Any: ...
    def layer(self, handle: Any, layer: int) -> np.ndarray: ...
    def find(self, handle: Any, row: int) -> Any: ...
    def row(self, handle: Any, found: Any) -> np.ndarray: ...


class ByNumber:
    """A row is found by its number."""

    def find(self, handle: Any, row: int) -> int:
        return row


class OurStore:
    """This package's store, every checksum on."""

    name = "store"

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder, self.size = folder, size
        self._lock = StoreLock.acquire(folder)
        self._writer = open_writer(folder, manifest(size.layers, size.d_model), lock=self._lock)
        self.plan = plan(size.rows, size.rows_per_shard)
        self._writer.add_plan(self.plan)
        self._writer.start_run({})
        self.shards: list[Path] = []

    def records(self, first: int, block: np.ndarray) -> list[CellRecord]:
        return [
            record(row, resid) for row, resid in zip(self.plan.rows[first : first + len(block)], block, strict=True)
        ]

    def write(self, first: int, block: np.ndarray) -> None:
        self.commit(self.records(first, block))

    def commit(self, records: Sequence[CellRecord]) -> None:
        self.shards.append(self.folder / "shards" / f"{self._writer.commit(records)}.safetensors")

    def finish(self) -> None:
        self._writer.finish_run(0)
        self._lock.release()

    def open(self) -> Store:
        store = open_store(self.folder)
        store.select()
        return store

    def layer(self, handle: Store, layer: int) -> np.ndarray:
        return handle.select().resid(layer=layer, position=POSITION).numpy(BF16)

    def find(self, handle: Store, row: int) -> View:
        return handle.select(case=f"case-{row:05d}")

    def row(self, handle: Store, found: View) -> np.ndarray:
        return found.stack(position=POSITION, dtype=BF16)[0]


class Memmap(ByNumber):
    """One bare array on disk, ``[layer, row, d_model]``: no names, no checksums, no metadata."""

    name = "numpy memmap"

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder, self.size = folder, size
        folder.mkdir()
        shape = (size.layers, size.rows, size.d_model)
        self._array = np.lib.format.open_memmap(folder / "resid.npy", "w+", np.uint16, shape)

    def write(self, first: int, block: np.ndarray) -> None:
        self._array[:, first : first + len(block)] = block.view(np.uint16).swapaxes(0, 1)

    def finish(self) -> None:
        self._array.flush()
        del self._array

    def open(self) -> np.ndarray:
        return np.load(self.folder / "resid.npy", mmap_mode="r")

    def layer(self, handle: np.ndarray, layer: int) -> np.ndarray:
        return np.array(handle[layer]).view(BF16)

    def row(self, handle: np.ndarray, row: int) -> np.ndarray:
        return np.array(handle[:, row]).view(BF16)


class SafeOpen(ByNumber):
    """``safetensors.safe_open`` on the very shards of the store, by someone who knows what stands where.

    The files stay open, and mapped, from read to read, as the store keeps their headers. With ``anew`` each read opens
    what it reads, as one does who has only the path.
    """

    def __init__(self, ours: OurStore, *, anew: bool = False) -> None:
        self.name = "safe_open anew" if anew else "safe_open"
        self.folder, self.size, self._ours, self._anew = ours.folder / "shards", ours.size, ours, anew

    def write(self, first: int, block: np.ndarray) -> None:
        raise AssertionError("the store has written these files")

    def finish(self) -> None:
        return

    def open(self) -> list[Callable[[], Any]]:
        from safetensors import safe_open

        openers = [partial(safe_open, path, framework="numpy") for path in self._ours.shards]
        return list(openers) if self._anew else [partial(_same, opener()) for opener in openers]

    def layer(self, handle: list[Callable[[], Any]], layer: int) -> np.ndarray:
        return np.concatenate([shard().get_tensor(f"resid.{POSITION}.L{layer:02d}") for shard in handle])

    def row(self, handle: list[Callable[[], Any]], row: int) -> np.ndarray:
        shard, at = handle[row // self.size.rows_per_shard](), row % self.size.rows_per_shard
        names = [f"resid.{POSITION}.L{layer:02d}" for layer in range(self.size.layers)]
        return np.concatenate([shard.get_slice(name)[at : at + 1] for name in names])


class Zarr(ByNumber):
    """zarr v3, one array, chunks of one layer x one shard's rows, not compressed (random bf16 does not shrink)."""

    name = "zarr v3"

    def __init__(self, folder: Path, size: Size) -> None:
        import zarr

        self.folder, self.size = folder, size
        self._array = zarr.create_array(
            store=str(folder),
            shape=(size.layers, size.rows, size.d_model),
            chunks=(1, min(size.rows_per_shard, size.rows), size.d_model),
            dtype="uint16",
            compressors=None,
        )

    def write(self, first: int, block: np.ndarray) -> None:
        self._array[:, first : first + len(block)] = block.view(np.uint16).swapaxes(0, 1)

    def finish(self) -> None:
        del self._array

    def open(self) -> Any:
        import zarr

        return zarr.open_array(str(self.folder), mode="r")

    def layer(self, handle: Any, layer: int) -> np.ndarray:
        return np.asarray(handle[layer]).view(BF16)

    def row(self, handle: Any, row: int) -> np.ndarray:
        return np.asarray(handle[:, row]).view(BF16)


class Datasets(ByNumber):
    """A Hugging Face data set, one column of fixed length per layer, in Arrow files as ``save_to_disk`` makes them."""

    name = "HF datasets"

    def __init__(self, folder: Path, size: Size) -> None:
        import datasets

        self.folder, self.size = folder, size
        column = datasets.List(datasets.Value("uint16"), length=size.d_model)
        self._features = datasets.Features({f"L{layer:02d}": column for layer in range(size.layers)})
        folder.mkdir()
        self._writer = datasets.arrow_writer.ArrowWriter(
            path=str(folder / "data-00000-of-00001.arrow"), features=self._features
        )

    def write(self, first: int, block: np.ndarray) -> None:
        import pyarrow as pa

        bits = block.view(np.uint16)
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(bits[:, k]).reshape(-1)), self.size.d_model)
            for k in range(self.size.layers)
        ]
        self._writer.write_table(pa.table(columns, schema=self._features.arrow_schema))

    def finish(self) -> None:
        self._writer.finalize()
        self._writer.close()
        state = {
            "_data_files": [{"filename": "data-00000-of-00001.arrow"}],
            "_fingerprint": "0",
            "_format_columns": None,
        }
        state |= {"_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None}
        (self.folder / "state.json").write_text(json.dumps(state))
        (self.folder / "dataset_info.json").write_text(json.dumps({"features": self._features.to_dict()}))

    def open(self) -> Any:
        import datasets

        return datasets.load_from_disk(str(self.folder), keep_in_memory=False).with_format("numpy", dtype=np.uint16)

    def layer(self, handle: Any, layer: int) -> np.ndarray:
        return np.asarray(handle[f"L{layer:02d}"][:]).view(BF16)

    def row(self, handle: Any, row: int) -> np.ndarray:
        found = handle[row]
        return np.stack([found[f"L{layer:02d}"] for layer in range(self.size.layers)]).view(BF16)


def manifest(layers: int, d_model: int) -> dict[str, Any]:
    """The least that a store must know."""
    capture = {"layers": list(range(layers)), "positions": [POSITION], "dtype": "bfloat16", "d_model": d_model}
    return {"model": {"weights_sha256": "ab" * 32}, "capture": capture, "labels": {"options": ["a", "b", "c"]}}


def plan(rows: int, rows_per_shard: int) -> Plan:
    """One persona, as many cases as rows."""
    cases = [f"case-{row:05d}" for row in range(rows)]
    planned = tuple(
        PlannedRow(Cell("p", case, Condition()), row // rows_per_shard, sha256_of(case), sha256_of(row), 8)
        for row, case in enumerate(cases)
    )
    listed = tuple({"id": case, "family": case, "stratum": "", "target": "a", "sha256": ""} for case in cases)
    return Plan(planned, ({"id": "p", "role": "", "style": "", "sha256": ""},), listed, 0, 32)


def record(row: PlannedRow, resid: np.ndarray) -> CellRecord:
    """A row as a pass records it, residuals only."""
    return CellRecord(
        cell=row.cell,
        prompt_sha=row.prompt_sha,
        tokens_sha=row.tokens_sha,
        prompt_tokens=tuple(range(8)),
        positions={POSITION: 7},
        resid={POSITION: resid},
        labels={},
        gen_tokens=(),
        gen_text="",
        status="unparsable",
    )


def _same(opened: Any) -> Any:
    return opened


def bring_to_cache(folder: Path) -> None:
    """Read every file of a format once."""
    for path in files_of(folder):
        with path.open("rb") as file:
            while file.read(2**24):
                pass


def files_of(folder: Path) -> list[Path]:
    """Every file of a format."""
    return [path for path in folder.rglob("*") if path.is_file()]


def drop_from_cache(folder: Path) -> None:
    """Ask the kernel to forget a format's clean pages (``posix_fadvise``; no root is needed)."""
    for path in files_of(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
