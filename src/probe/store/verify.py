"""Whether a store is as it was committed. Knows every hash and checksum; reads bytes, changes none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from probe.store.packing import GIVEN_LOGP, RAGGED
from probe.store.places import Place, open_place
from probe.store.plans import Plan, cell_name, cell_of, parse_plan
from probe.store.progress import read_plans, read_record
from probe.store.readout import FILE as READOUT
from probe.store.readout import read_readout
from probe.store.seal import FILE as SEAL
from probe.store.seal import Seal, file_digest, read_seal
from probe.store.shard_format import as_bytes, ragged_crcs, row_crcs
from probe.store.shards import Shard
from probe.store.sums import KINDS, SETS
from probe.values import STREAMS, NewerVersion, StoreError, canonical_json

Level = Literal["quick", "crc", "full"]
"""``quick``: size, header and name of each shard; ``crc``: the checksum of every row too; ``full``: every hash."""

LEVELS: tuple[Level, ...] = ("quick", "crc", "full")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: in which file, what was found, and the tensor and rows it touches where known.

    ``kind`` is ``damaged`` (its bytes are not what was written), ``missing`` (a seal lists it) or ``duplicate`` (sound,
    but it holds rows that another shard holds, which costs space only).
    """

    file: str
    message: str
    tensor: str = ""
    rows: tuple[str, ...] = ()
    kind: Literal["damaged", "missing", "duplicate"] = "damaged"

    def __str__(self) -> str:
        where = f", rows {', '.join(self.rows[:5])}{', ...' if len(self.rows) > 5 else ''}" if self.rows else ""
        return f"{self.file}: {self.message}{where}"


def verify(path: str | Path | Place, identity: str, shards: Sequence[Shard], level: Level = "full") -> list[Problem]:
    """Check every shard, then the seal, the readout, plans, failures and run records; empty where all is well.

    ``quick`` reads headers only, about a millisecond a shard; ``crc`` and ``full`` read every byte.

    Raises:
        NewerVersion: a newer version wrote some of it, which this one can neither check nor repair.
    """
    place = open_place(path)
    seal, problems = _read(SEAL, lambda: read_seal(place))
    if seal is not None:
        problems += _of_seal(place, seal, shards, level)
    holders: dict[tuple[str, str], str] = {}
    for shard in shards:
        found = list(check_shard(shard, level))
        problems += found
        if not found:
            problems += _duplicates(shard, holders)
    if READOUT in place.list(""):
        problems += _read(READOUT, lambda: read_readout(place, identity))[1]
    return problems + list(_of_records(place))


def _read(file: str, read: Callable[[], Any]) -> tuple[Any, list[Problem]]:
    try:
        return read(), []
    except NewerVersion:
        raise
    except StoreError as error:
        return None, [Problem(file, str(error))]
    except OSError as error:
        return None, [Problem(file, f"it cannot be read ({error.strerror or error})")]


def _plan(place: Place, base: str) -> Plan:
    return parse_plan(base.removesuffix(".jsonl"), place.read(f"plan/{base}"))


def _of_records(place: Place) -> Iterator[Problem]:
    """Plans, failures and run records, each by its own file."""
    found = False
    for base in sorted(place.list("plan")):
        name = f"plan/{base}"
        if base.endswith(".jsonl"):
            problems = _read(name, partial(_plan, place, base))[1]
            found |= bool(problems)
            yield from problems
    if not found:  # which of them is the latest can be asked once all can be read
        yield from _read("plan", lambda: read_plans(place))[1]
    for folder, key in (("failures", "row_id"), ("runs", "id")):
        for base in sorted(place.list(folder)):
            name = f"{folder}/{base}"
            if base.endswith(".json"):
                yield from _read(name, partial(read_record, place, name, needs=key))[1]


def _of_seal(place: Place, seal: Seal, shards: Sequence[Shard], level: Level) -> Iterator[Problem]:
    there = {shard.name: shard for shard in shards}
    for sealed in seal.shards:
        file = f"{sealed.name}.safetensors"
        shard = there.get(sealed.name)
        if shard is None:
            yield Problem(file, "the seal lists this shard, and it is missing", kind="missing")
        elif shard.file.entry.size != sealed.bytes:
            yield Problem(file, f"size {shard.file.entry.size} != {sealed.bytes}, which the seal says")
        elif level == "full" and file_digest(place, shard.file.name)[1] != sealed.sha256:
            yield Problem(file, "the file fails the sha256 of the seal")


def check_shard(shard: Shard, level: Level) -> Iterator[Problem]:
    """What is wrong with one shard, seen alone."""
    file = f"{shard.name}.safetensors"
    try:
        cells = [cell_of(row) for row in shard.rows]
        if len({cell.row_id for cell in cells}) < len(cells):
            yield Problem(file, "its row table holds a cell twice")
        if [cell.row_id for cell in cells] != [row["row_id"] for row in shard.rows]:
            yield Problem(file, "its row ids are not those of its cells")
        if level == "full":
            yield from _not_canonical(shard, file)
        if level != "quick":
            names = [cell_name(cell) for cell in cells]
            yield from _of_tensors(shard, file, names, hashes=level == "full")
    except NewerVersion:
        raise
    except StoreError as error:
        yield Problem(file, str(error))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        yield Problem(file, f"its header is not that of a shard ({error!r})")


def _not_canonical(shard: Shard, file: str) -> Iterator[Problem]:
    text = shard.file.header_text().rstrip(b" ")
    if canonical_json(json.loads(text)).encode("utf-8", "surrogatepass") != text:
        yield Problem(file, "its header is not canonical JSON, which this tool writes")


def _of_tensors(shard: Shard, file: str, names: Sequence[str], *, hashes: bool) -> Iterator[Problem]:
    """Each tensor against its sha256 (if ``hashes``) and its rows' checksums, one tensor in memory at a time."""
    digests = json.loads(shard.header.metadata["sha256"])
    for tensor in shard.header.tensors:
        if tensor.startswith("crc.") and not hashes:
            continue
        array = shard.whole(tensor)
        intact = not hashes or hashlib.sha256(as_bytes(array)).hexdigest() == digests.get(tensor)
        bad = [] if tensor.startswith("crc.") else _bad_entries(shard, tensor, array)
        if not intact or bad:
            places = (row for row in _rows(shard, tensor, bad) if 0 <= row < len(names))
            rows = tuple(dict.fromkeys(names[row] for row in places))
            yield Problem(file, f"tensor {tensor!r} fails its {'crc32' if intact else 'sha256'}", tensor, rows)


def _bad_entries(shard: Shard, name: str, array: np.ndarray) -> list[int]:
    expected = shard.whole(f"crc.{name}")
    is_ragged = name in (*RAGGED, GIVEN_LOGP)
    found = ragged_crcs(array, shard.whole(f"{name}.offsets")) if is_ragged else row_crcs(array)
    if found.shape != expected.shape:
        return list(range(len(found)))
    return [int(entry) for entry in np.flatnonzero(found != expected)]


def _rows(shard: Shard, name: str, entries: Sequence[int]) -> list[int]:
    """The rows that entries of a tensor belong to."""
    kind, _, rest = name.partition(".")
    if kind in KINDS and entries:  # every row of the sets
        sets, present = shard.whole(SETS), shard.whole(f"rows.{rest.partition('.')[2].rpartition('.')[0]}")
        held = np.unique(sets[present])[list(entries)]
        return [int(row) for row in present if sets[row] in held]
    if kind in STREAMS and entries:
        return [int(row) for row in shard.whole(f"rows.{rest.rpartition('.')[0]}")[list(entries)]]
    return list(entries)


def _duplicates(shard: Shard, holders: dict[tuple[str, str], str]) -> Iterator[Problem]:
    """Rows that a shard of a lower name holds already; that one wins."""
    twice = [row for row in shard.rows if (row["row_id"], row["prompt_sha"]) in holders]
    if twice:
        first = holders[twice[0]["row_id"], twice[0]["prompt_sha"]]
        names = tuple(cell_name(cell_of(row)) for row in twice)
        message = f"{len(twice)} rows stand in {first} too, which is read; `probe store compact` drops them"
        yield Problem(f"{shard.name}.safetensors", message, rows=names, kind="duplicate")
    for key in shard.keys:
        holders.setdefault(key, f"{shard.name}.safetensors")
