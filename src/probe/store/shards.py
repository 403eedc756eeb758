"""Committed shards as they are read. Knows row tables and checks every byte it returns; never writes."""

from __future__ import annotations

import io
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from probe.store.shard_format import DTYPES, Header, TensorSpec, as_bytes, corrupt, read_header, row_bytes

_ROW_KEYS = frozenset({"row_id", "persona", "case", "condition", "prompt_sha", "status", "label", "letter"})


@dataclass(frozen=True, eq=False)
class Shard:
    """One shard file; nothing is read before it is asked for, and never more than is asked for."""

    path: Path
    identity: str

    @cached_property
    def header(self) -> Header:
        """The validated header.

        Raises:
            CorruptShard: the header, the size or the name is not what was committed.
        """
        header = read_header(self.path)
        if header.name != self.path.stem:
            raise corrupt(self.path, f"its name is not the hash of its header, {header.name}")
        if header.metadata.get("identity_sha256") != self.identity:
            raise corrupt(self.path, "it belongs to a store with another manifest")
        return header

    @cached_property
    def rows(self) -> tuple[Mapping[str, Any], ...]:
        """The row table, from the header."""
        rows = self.listed("rows")
        if not all(isinstance(row, dict) and row.keys() >= _ROW_KEYS for row in rows):
            raise corrupt(self.path, "its row table lacks keys")
        return tuple(rows)

    def listed(self, key: str) -> list[Any]:
        """A list in the header's metadata: ``rows``, ``layers``, ``positions``, ``label_sites`` or ``options``."""
        try:
            value = json.loads(self.header.metadata[key])
        except (KeyError, ValueError, RecursionError) as error:
            raise corrupt(self.path, f"its header has no list {key!r}") from error
        if not isinstance(value, list):
            raise corrupt(self.path, f"its header's {key!r} is not a list")
        return value

    def has(self, tensor: str) -> bool:
        """Whether the shard holds a tensor."""
        return tensor in self.header.tensors

    def take(self, tensor: str, entries: Sequence[int] | np.ndarray) -> np.ndarray:
        """Entries of a tensor along its first axis, in the order asked; each is checked against its crc32.

        Entries that follow each other are read at once.

        Raises:
            CorruptShard: an entry's bytes are not those that were committed.
        """
        spec, entries = self._spec(tensor), np.asarray(entries, np.int64)
        out = np.empty((len(entries), *spec.shape[1:]), spec.dtype)
        target, width = as_bytes(out), spec.row_bytes
        with self._open() as file:
            crcs = self._crcs(file, tensor)
            for first, last in _consecutive(entries):
                _read(file, spec.start + int(entries[first]) * width, target[first * width : last * width], self.path)
        self._compare(tensor, entries, map(zlib.crc32, row_bytes(out)), crcs)
        return out

    def ragged(self, tensor: str, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """The run of each row in a ragged tensor, in the order asked, checked like ``take``."""
        spec, rows = self._spec(tensor), np.asarray(rows, np.int64)
        offsets = self.take(f"{tensor}.offsets", range(len(self.rows) + 1))
        runs = []
        with self._open() as file:
            crcs = self._crcs(file, tensor)
            for start, stop in zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True):
                if not 0 <= start <= stop <= spec.shape[0]:
                    raise corrupt(self.path, f"the offsets of {tensor!r} do not rise")
                run = np.empty(stop - start, spec.dtype)
                _read(file, spec.start + start * spec.row_bytes, as_bytes(run), self.path)
                runs.append(run)
        self._compare(tensor, rows, (zlib.crc32(as_bytes(run)) for run in runs), crcs)
        return runs

    def entries(self, position: str) -> np.ndarray:
        """For each row the entry that holds it in ``resid.<position>.*``, -1 where the site is absent."""
        entry = np.full(len(self.rows), -1, np.int64)
        if self.has(name := f"rows.{position}"):
            present = self.take(name, range(self._spec(name).shape[0]))
            if present.size and (present.min() < 0 or present.max() >= len(entry)):
                raise corrupt(self.path, f"tensor {name!r} names rows that it does not have")
            entry[present] = np.arange(len(present))
        return entry

    def whole(self, tensor: str) -> np.ndarray:
        """A whole tensor, unchecked: for ``verify``, which does the checking."""
        with self._open() as file:
            return read_tensor(file, self._spec(tensor), self.path)

    def _open(self) -> io.FileIO:
        try:
            return io.FileIO(self.path)
        except OSError as error:
            raise corrupt(self.path, f"it cannot be read ({error.strerror})") from error

    def _spec(self, tensor: str) -> TensorSpec:
        try:
            return self.header.tensors[tensor]
        except KeyError:
            raise corrupt(self.path, f"it has no tensor {tensor!r}") from None

    def _crcs(self, file: io.FileIO, tensor: str) -> np.ndarray:
        spec = self._spec(f"crc.{tensor}")
        if spec.dtype != DTYPES["I64"] or len(spec.shape) != 1:
            raise corrupt(self.path, f"the checksums of {tensor!r} are no list")
        return read_tensor(file, spec, self.path)

    def _compare(self, tensor: str, entries: np.ndarray, found: Iterator[int], crcs: np.ndarray) -> None:
        for entry, crc in zip(entries.tolist(), found, strict=True):
            if entry >= len(crcs) or crc != crcs[entry]:
                raise corrupt(self.path, f"tensor {tensor!r} fails its crc32 at entry {entry}")


@dataclass(frozen=True, eq=False)
class Located:
    """Where a committed row stands: its shard, its place there, and its line of the row table."""

    shard: Shard
    row: int
    entry: Mapping[str, Any]


def shards_in(path: Path, identity: str) -> tuple[Shard, ...]:
    """The committed shards of a store, by name; the list is the snapshot that a reader keeps."""
    names = (file for file in (path / "shards").glob("*.safetensors") if _is_name(file.stem))
    return tuple(Shard(file, identity) for file in sorted(names))


def locate(shards: Sequence[Shard]) -> dict[str, Located]:
    """Every committed row by its id; where two shards hold one row, the lowest name wins."""
    located: dict[str, Located] = {}
    for shard in shards:
        for row, entry in enumerate(shard.rows):
            located.setdefault(entry["row_id"], Located(shard, row, entry))
    return located


def _is_name(stem: str) -> bool:
    return len(stem) == 32 and not set(stem) - set("0123456789abcdef")


def _consecutive(entries: np.ndarray) -> Iterator[tuple[int, int]]:
    cuts = np.flatnonzero(np.diff(entries) != 1) + 1
    edges = [0, *cuts.tolist(), len(entries)] if len(entries) else []
    return itertools.pairwise(edges)


def read_tensor(file: io.FileIO, spec: TensorSpec, path: Path) -> np.ndarray:
    """A whole tensor of an open file, unchecked."""
    array = np.empty(spec.shape, spec.dtype)
    _read(file, spec.start, as_bytes(array), path)
    return array


def _read(file: io.FileIO, start: int, target: memoryview, path: Path) -> None:
    file.seek(start)
    while target:
        count = file.readinto(target)
        if not count:
            raise corrupt(path, "it became shorter while it was read")
        target = target[count:]
