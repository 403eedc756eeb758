"""Whether a store is as it was committed. Knows every hash and checksum; reads all bytes, changes none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probe.store.packing import RAGGED
from probe.store.plans import cell_name, cell_of
from probe.store.progress import read_failures, read_plans, read_runs
from probe.store.readout import FILE, read_readout
from probe.store.shard_format import as_bytes, ragged_crcs, row_crcs
from probe.store.shards import Shard
from probe.values import CorruptShard, StoreError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: in which file, what was found, and the tensor and rows it touches where known."""

    file: str
    message: str
    tensor: str = ""
    rows: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f", rows {', '.join(self.rows[:5])}{', ...' if len(self.rows) > 5 else ''}" if self.rows else ""
        return f"{self.file}: {self.message}{where}"


def verify(path: Path, identity: str, shards: Sequence[Shard]) -> list[Problem]:
    """Check size, name, sha256, crc32 and row table of every shard, then readout, plans, failures and runs."""
    problems = []
    holders: dict[str, str] = {}
    for shard in shards:
        found = list(_of_shard(shard))
        problems += found
        if not found:
            problems += _duplicates(shard, holders)
    reads: dict[str, Callable[[], Any]] = {
        "plan": lambda: read_plans(path),
        "failures": lambda: read_failures(path),
        "runs": lambda: read_runs(path),
    }
    if (path / FILE).exists():
        reads[FILE] = lambda: read_readout(path, identity)
    for file, read in reads.items():
        try:
            read()
        except StoreError as error:
            problems.append(Problem(file, str(error)))
    return problems


def _of_shard(shard: Shard) -> Iterator[Problem]:
    file = shard.path.name
    try:
        cells = [cell_of(row) for row in shard.rows]
        if len({cell.row_id for cell in cells}) < len(cells):
            yield Problem(file, "its row table holds a cell twice")
        if [cell.row_id for cell in cells] != [row["row_id"] for row in shard.rows]:
            yield Problem(file, "its row ids are not those of its cells")
        digests = json.loads(shard.header.metadata["sha256"])
        for name in shard.header.tensors:
            array = shard.whole(name)
            intact = hashlib.sha256(as_bytes(array)).hexdigest() == digests.get(name)
            bad = [] if name.startswith("crc.") else _bad_entries(shard, name, array)
            if not intact or bad:
                rows = dict.fromkeys(cell_name(cells[row]) for row in _rows(shard, name, bad) if 0 <= row < len(cells))
                yield Problem(file, f"tensor {name!r} fails its {'crc32' if intact else 'sha256'}", name, tuple(rows))
    except CorruptShard as error:
        yield Problem(file, str(error))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield Problem(file, f"its header is not that of a shard ({error!r})")


def _bad_entries(shard: Shard, name: str, array: np.ndarray) -> list[int]:
    expected = shard.whole(f"crc.{name}")
    found = ragged_crcs(array, shard.whole(f"{name}.offsets")) if name in RAGGED else row_crcs(array)
    if found.shape != expected.shape:
        return list(range(len(found)))
    return [int(entry) for entry in np.flatnonzero(found != expected)]


def _rows(shard: Shard, name: str, entries: Sequence[int]) -> list[int]:
    """The rows that entries of a tensor belong to."""
    kind, _, rest = name.partition(".")
    if kind == "resid" and entries:
        return [int(row) for row in shard.whole(f"rows.{rest.rpartition('.')[0]}")[list(entries)]]
    return list(entries)


def _duplicates(shard: Shard, holders: dict[str, str]) -> Iterator[Problem]:
    """Rows that a shard of a lower name holds already; that one wins."""
    twice = [row for row in shard.rows if row["row_id"] in holders]
    if twice:
        first = holders[twice[0]["row_id"]]
        names = tuple(cell_name(cell_of(row)) for row in twice)
        yield Problem(shard.path.name, f"{len(twice)} rows stand in {first} too, which is read", rows=names)
    for row in shard.rows:
        holders.setdefault(row["row_id"], shard.path.name)
