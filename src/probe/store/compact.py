"""Shards without the rows that nobody reads. Knows which rows count; changes no bit of those."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probe.store.index import write_index
from probe.store.locations import Locations
from probe.store.locks import StoreLock
from probe.store.manifests import Layout, layout_of, read_manifest
from probe.store.packing import pack
from probe.store.places import Place
from probe.store.progress import read_plans
from probe.store.reading import read_records
from probe.store.repair import alone, origins, quarantine
from probe.store.runs import new_ulid, utc_now
from probe.store.seal import FILE as SEAL
from probe.store.seal import seal_store
from probe.store.shards import Key, Located, Shard, locate, shards_in
from probe.store.verify import check_shard, verify
from probe.values import NewerVersion, StoreError


@dataclass(frozen=True)
class Compacted:
    """What ``compact`` did: rows dropped (twice there, or of an earlier text), shards rewritten, and bytes saved."""

    superseded: int
    duplicates: int
    shards: int
    bytes_saved: int


def compact(lock: StoreLock) -> Compacted:
    """Rewrite the shards that hold rows which nobody reads: superseded by a later text, or standing in another shard.

    New shards are durable and checked, and a sealed store has its new seal, before the old shards move to
    ``quarantine/``. A kill in between leaves rows twice, which is what the next ``compact`` drops.

    Raises:
        StoreError: the lock is not that of a lone writer, or the store is damaged: repair comes first.
        NewerVersion: a newer version wrote some of what would be rewritten; nothing was changed.
    """
    place = alone(lock, "compact")
    layout = layout_of(read_manifest(place))
    if layout.moments:
        raise StoreError(
            f"{place.url} keeps sums over rows (capture.keep: moments), which no row can leave: none can be dropped"
        )
    shards = shards_in(place, layout.identity)
    damaged = [problem for problem in verify(place, layout.identity, shards) if problem.kind == "damaged"]
    if damaged:
        raise StoreError(f"{place.url} is damaged ({damaged[0]}); run `probe store repair` first")
    kept, outdated = _kept(place, shards)
    located = locate(shards)
    plan = [(shard, _places(shard, kept, located)) for shard in shards]
    rewritten = [(shard, places) for shard, places in plan if len(places) < len(shard.keys)]
    for shard, _ in rewritten:
        _require_known(shard, layout)
    new = {name: size for shard, places in rewritten for name, size in _rewrite(place, layout, shard, places)}
    old = [shard for shard, _ in rewritten if shard.name not in new]
    if SEAL in place.list(""):
        seal_store(place, incomplete=True, leaving_out=[shard.name for shard in old])
    for shard in old:
        quarantine(place, shard.file.name, ["compacted: its rows that count stand in other shards"])
    write_index(place, layout.identity)
    dropped = sum(len(shard.keys) - len(places) for shard, places in rewritten)
    superseded = sum(key in outdated for shard, _ in rewritten for key in shard.keys)
    saved = sum(shard.file.entry.size for shard in old) - sum(new.values())
    return Compacted(superseded, dropped - superseded, len(old), saved)


def _kept(place: Place, shards: Sequence[Shard]) -> tuple[set[Key], set[Key]]:
    """Rows that count, and those whose cell the latest plan asks for under another text."""
    plans = read_plans(place)
    latest = {row.cell.row_id: row.prompt_sha for row in plans[-1].rows} if plans else {}
    committed = {key for shard in shards for key in shard.keys}
    outdated = {
        (row_id, sha)
        for row_id, sha in committed
        if latest.get(row_id, sha) != sha and (row_id, latest[row_id]) in committed
    }
    return committed - outdated, outdated


def _places(shard: Shard, kept: set[Key], located: Mapping[Key, Located]) -> np.ndarray:
    """The rows of a shard that count and are read from it."""
    keep = [
        row
        for row, key in enumerate(shard.keys)
        if key in kept and located[key].shard is shard and located[key].row == row
    ]
    return np.array(keep, np.int64)


def _require_known(shard: Shard, layout: Layout) -> None:
    """Refuse a shard that this version cannot write again bit for bit: what it does not know would be dropped.

    Raises:
        NewerVersion: there is such a thing in it.
    """
    n = len(shard.keys)
    if pack(list(read_records(Locations((shard,), np.zeros(n, np.int64), np.arange(n)))), layout).name != shard.name:
        raise NewerVersion(
            f"{shard.file.where} holds more than this version writes, which compacting would drop; upgrade "
            "persona-probe"
        )


def _rewrite(place: Place, layout: Layout, shard: Shard, places: np.ndarray) -> list[tuple[str, int]]:
    """The rows that count as a shard of their own, with the record of who captured them; nothing where none does."""
    if not len(places):
        return []
    records = list(read_records(Locations((shard,), np.zeros(len(places), np.int64), places)))
    encoded = pack(records, layout)
    place.write(f"shards/{encoded.name}.safetensors", encoded.parts)
    written = next(new for new in shards_in(place, layout.identity) if new.name == encoded.name)
    if problems := list(check_shard(written, "full")):
        raise StoreError(f"a rewritten shard is not as it was written ({problems[0]}); nothing was moved")
    for run, commit in origins(place, [shard.name]):
        began = {"id": new_ulid(), "started": utc_now(), "pid": os.getpid(), "origin": run["id"], "ended": utc_now()}
        line = {**commit, "name": encoded.name, "rows": len(records), "compacted_from": shard.name}
        record = {**run, **began, "shards": [line], "exit_status": 0}
        place.write(f"runs/{record['id']}.json", [json.dumps(record, indent=1, default=str).encode()])
    return [(encoded.name, encoded.size)]
