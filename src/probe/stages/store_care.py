"""The care of a store, for people and scripts: verify, repair, compact, seal. Knows exit statuses; captures nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probe.store import StoreLock
from probe.store.compact import compact
from probe.store.index import FILE as INDEX
from probe.store.index import read_index
from probe.store.manifests import layout_of, read_manifest
from probe.store.places import LocalPlace, Place, open_place
from probe.store.progress import Coverage, coverage_of, read_failures, read_plans
from probe.store.repair import QUARANTINE, repair, unseal
from probe.store.seal import seal_store
from probe.store.shards import Shard, shards_in
from probe.store.verify import LEVELS, Level, Problem, verify
from probe.values import ProbeError, StoreError


def verify_store(path: str | Path, level: str = "full", *, as_json: bool = False) -> int:
    """Check a store and print what is wrong: 1 damaged, 3 sound but incomplete, 0 sound and complete.

    ``level`` is ``quick``, ``crc`` or ``full``; with ``as_json`` one JSON object is printed instead of lines.
    """
    known: dict[str, Level] = {each: each for each in LEVELS}
    if level not in known:
        raise ProbeError(f"a store is verified at the level {', '.join(LEVELS)}; found {level!r}")
    place = open_place(path)
    identity = layout_of(read_manifest(place)).identity
    shards = shards_in(place, identity)
    problems = verify(place, identity, shards, known[level])
    bad = [problem for problem in problems if problem.kind != "duplicate"]
    coverage = None if bad else _coverage(place, shards)
    status = 1 if bad else 0 if coverage is not None and coverage.committed == coverage.planned else 3
    notes = list(_notes(place, shards))
    if as_json:
        found = _as_json(place, level, shards, problems, notes, coverage, status)
        sys.stdout.write(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        return status
    _tell(*map(str, problems), *notes)
    if coverage is not None:
        _tell(f"{len(shards)} shards are sound ({level}); {coverage}")
    return status


def repair_store(path: str | Path) -> int:
    """Move what is damaged to ``quarantine/`` and say what to do next; 0 complete, 3 with rows to capture again."""
    with _alone(path) as lock:
        done = repair(lock)
        coverage = _coverage(lock.place, shards_in(lock.place, layout_of(read_manifest(lock.place)).identity))
    _tell(*(f"moved {name} to {QUARANTINE}/" for name in done.moved))
    if done.temps:
        _tell(f"removed {done.temps} unfinished files of writers that died")
    if done.unsealed:
        _tell("the store is no longer sealed")
    if coverage is None:
        _tell("no plan can be read; run the study again, which writes it")
        return 3
    again = "; run the study again to capture the others" if coverage.pending else ""
    _tell(f"{coverage}{again}" if done.moved or again else f"nothing was damaged; {coverage}")
    return 0 if coverage.committed == coverage.planned else 3


def compact_store(path: str | Path) -> int:
    """Drop rows that nobody reads, and say how many."""
    with _alone(path) as lock:
        done = compact(lock)
    if not done.shards:
        _tell("every row counts; nothing to drop")
        return 0
    _tell(
        f"dropped {done.superseded} rows of earlier texts and {done.duplicates} that stood twice: {done.shards} shards "
        f"rewritten, {done.bytes_saved} bytes less; the old ones are in {QUARANTINE}/, which you may delete"
    )
    return 0


def seal(path: str | Path, *, incomplete: bool = False) -> int:
    """Seal a finished store."""
    with _alone(path) as lock:
        made = seal_store(lock.place, incomplete=incomplete)
    _tell(f"sealed {path}: {len(made.shards)} shards, {made.rows} rows; nothing more can be written into it")
    return 0


def break_seal(path: str | Path) -> int:
    """Take the seal off, so that more can be captured."""
    with _alone(path) as lock:
        _tell(f"{path} is open for writing again" if unseal(lock) else f"{path} is not sealed")
    return 0


@contextmanager
def _alone(path: str | Path) -> Iterator[StoreLock]:
    """The lock of a store that is there: a wrong path must not make one."""
    read_manifest(open_place(path))
    with StoreLock.acquire(path) as lock:
        yield lock


def _coverage(place: Place, shards: tuple[Shard, ...]) -> Coverage | None:
    """How far the latest plan is; None without one."""
    try:
        plans = read_plans(place)
    except StoreError:
        return None
    if not plans:
        return None
    committed = {key for shard in shards for key in shard.keys}
    return coverage_of({row.cell.row_id: row for row in plans[-1].rows}, committed, read_failures(place))


def _notes(place: Place, shards: tuple[Shard, ...]) -> Iterator[str]:
    """What is no damage, but good to know."""
    if isinstance(place, LocalPlace):
        temps = [file for file in (place.path / "tmp").rglob("*") if file.is_file()]
        if temps:
            yield f"note: {len(temps)} unfinished files in tmp/, of a writer that runs or died; the next removes them"
    kept = [name for name in place.list(QUARANTINE) if not name.endswith(".note.json")]
    if kept:
        yield f"note: {len(kept)} files in {QUARANTINE}/ (first: {sorted(kept)[0]}); its notes say why"
    if INDEX in place.list(""):
        index = read_index(place)
        there = {shard.name: shard.file.entry.size for shard in shards}
        if index is None or dict(index.sizes) != there:
            yield f"note: {INDEX} is stale or damaged and so partly unused; the next run or repair renews it"


def _as_json(
    place: Place,
    level: str,
    shards: tuple[Shard, ...],
    problems: list[Problem],
    notes: list[str],
    coverage: Coverage | None,
    status: int,
) -> dict[str, Any]:
    return {
        "store": place.url,
        "level": level,
        "shards": len(shards),
        "problems": [
            {
                "shard": problem.file,
                "kind": problem.kind,
                "found": problem.message,
                "tensor": problem.tensor,
                "rows": list(problem.rows),
            }
            for problem in problems
        ],
        "notes": [note.removeprefix("note: ") for note in notes],
        "coverage": None
        if coverage is None
        else {name: getattr(coverage, name) for name in ("planned", "committed", "failed", "pending", "superseded")},
        "exit_status": status,
    }


def _tell(*lines: str) -> None:
    """Lines on standard output; no terminal library, so that a script's check is quick."""
    for line in lines:
        sys.stdout.write(f"{line}\n")
