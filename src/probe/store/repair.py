"""A store brought back into order. Knows what is damaged and where it is kept; never deletes what was captured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from probe.store.index import FILE as INDEX
from probe.store.index import write_index
from probe.store.locks import StoreLock
from probe.store.manifests import FILE as MANIFEST
from probe.store.manifests import layout_of, read_manifest
from probe.store.places import Place
from probe.store.progress import read_runs
from probe.store.runs import utc_now
from probe.store.seal import FILE as SEAL
from probe.store.shards import FOLDER as SHARDS
from probe.store.shards import Shard, shards_in
from probe.store.verify import Problem, verify
from probe.values import CorruptShard, StoreError

QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Repaired:
    """What ``repair`` did: files moved to ``quarantine/`` by their old names, and temps of dead writers removed."""

    moved: tuple[str, ...]
    temps: int
    unsealed: bool


def repair(lock: StoreLock) -> Repaired:
    """Move every damaged file to ``quarantine/`` with a note, take the seal off where it no longer holds, renew the
    index, and remove temps of dead writers. Reads every byte; the same study captures exactly the lost rows again.

    Raises:
        StoreError: the lock is not that of a lone writer, or the manifest, which nothing replaces, is damaged.
        NewerVersion: a newer version wrote some of it; nothing was moved.
    """
    place = alone(lock, "repair")
    identity = layout_of(read_manifest(place)).identity
    shards = shards_in(place, identity)
    _require_own_manifest(place, identity, shards)
    problems = verify(place, identity, shards)
    by_file: dict[str, list[str]] = {}
    for problem in problems:
        if problem.kind == "damaged" and (name := _name_of(problem, place)):
            by_file.setdefault(name, []).append(problem.message)
    sealed = SEAL in place.list("")
    lost = any(problem.kind == "missing" for problem in problems)
    if sealed and (lost or by_file):
        by_file.setdefault(SEAL, []).append("it lists shards that are missing or damaged")
    moved = [quarantine(place, name, reasons) for name, reasons in by_file.items()]
    _renew_index(place, identity)
    return Repaired(tuple(moved), lock.clear_temps(), sealed and SEAL in by_file)


def quarantine(place: Place, name: str, reasons: Sequence[str], **facts: Any) -> str:
    """Move a file to ``quarantine/``, under a name that is free there, with a note beside it; returns the old name."""
    taken, base = place.list(QUARANTINE), name.replace("/", ".")
    count = next(n for n in range(len(taken) + 1) if _numbered(base, n) not in taken)
    to = f"{QUARANTINE}/{_numbered(base, count)}"
    place.move(name, to)
    note = {"file": name, "moved": utc_now(), "reasons": list(reasons), **facts}
    place.write(f"{to}.note.json", [json.dumps(note, indent=1, ensure_ascii=False).encode()])
    return name


def origins(place: Place, shards: Iterable[str]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Of each shard the first run that committed it, and that run's line about it; none where no run has one."""
    wanted = set(shards)
    found: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    for run in read_runs(place):
        for commit in run.get("shards", ()):
            if commit["name"] in wanted:
                found.setdefault(commit["name"], (run, commit))
    return list(found.values())


def unseal(lock: StoreLock) -> bool:
    """Take the seal off, keeping it in ``quarantine/``; False where there is none.

    Raises:
        StoreError: the lock is not that of a lone writer.
    """
    place = alone(lock, "unseal")
    if SEAL not in place.list(""):
        return False
    quarantine(place, SEAL, ["taken off"])
    return True


def alone(lock: StoreLock, verb: str) -> Place:
    """The place of a lock that a lone writer holds.

    Raises:
        StoreError: it was released, or is one of several.
    """
    if not lock.held or lock.share is not None:
        raise StoreError(f"to {verb} a store needs its lock, held by a lone writer; {lock.place.url} has another")
    return lock.place


def _require_own_manifest(place: Place, identity: str, shards: Sequence[Shard]) -> None:
    """Refuse a store whose shards all name another identity: then the manifest is wrong, and not every one of them.

    Raises:
        StoreError: the manifest was edited or damaged.
    """
    named = set()
    for shard in shards:
        with suppress(CorruptShard):
            named.add(shard.file.header().metadata.get("identity_sha256", ""))
    if named and identity not in named:
        raise StoreError(
            f"{place.url}/{MANIFEST} is not the one that its {len(shards)} shards were captured under (they name the "
            f"identity {min(named)[:12]}.., and it has {identity[:12]}..); it was edited or damaged: restore it from a "
            "copy"
        )


def _name_of(problem: Problem, place: Place) -> str | None:
    """The file that a problem is about, relative to the store; None where it names no single one."""
    if problem.file.endswith(".safetensors") and problem.file in place.list(SHARDS):
        return f"{SHARDS}/{problem.file}"
    folder, _, base = problem.file.rpartition("/")
    return problem.file if base in place.list(folder) else None


def _numbered(base: str, count: int) -> str:
    return f"{base}.{count}" if count else base


def _renew_index(place: Place, identity: str) -> None:
    """A new index, or none: a stale one would only be distrusted."""
    if not write_index(place, identity) and INDEX in place.list(""):
        place.remove(INDEX)
