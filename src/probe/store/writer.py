"""The writer of a store. Knows what is planned, committed and failed, and in what order bytes become durable."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from probe.store.editions import OnChanged, settle_changes
from probe.store.files import Bytes, fsync_directory, refusal
from probe.store.index import write_index
from probe.store.locks import StoreLock
from probe.store.manifests import FILE as MANIFEST
from probe.store.manifests import SCHEMA, Layout, check_same, layout_of, normal, read_manifest
from probe.store.packing import pack
from probe.store.places import FOLDERS, LocalPlace, Place, open_place
from probe.store.plans import Plan, cell_name
from probe.store.progress import LATEST, Coverage, coverage_of, read_failures, read_record, read_runs
from probe.store.readout import FILE as READOUT
from probe.store.runs import new_ulid, utc_now
from probe.store.seal import require_unsealed
from probe.store.shard_format import encode
from probe.store.shards import fetch_headers, shards_in
from probe.store.tensor_files import TensorFile
from probe.values import Cell, CellRecord, PlannedRow, StoreError, canonical_json


def open_writer(path: str | Path | Place, manifest: Mapping[str, Any], *, lock: StoreLock) -> StoreWriter:
    """Open a store for writing: make it with this manifest, or continue one that was captured under the same identity.

    Temps that a dead writer left are removed. ``manifest`` needs at least ``capture.layers`` (residual points, in the
    order of the arrays) and ``labels.options``; docs/FORMAT.md lists the rest.

    Raises:
        StoreMismatch: the store has another identity; nothing was written.
        StoreError: the lock is not held, the manifest lacks a field, or the directory cannot be written.
    """
    place = open_place(path)
    if not lock.held or not _same(lock.place, place):
        raise StoreError(f"writing {place.url} needs its StoreLock; this one is for {lock.place.url} or was released")
    place = lock.place  # where temps go is the lock's affair
    asked = normal(manifest)
    layout = layout_of(asked)
    try:
        found = place.list("")
        if MANIFEST in found:
            check_same(place.url, read_manifest(place), asked)
        elif any(name.endswith(".safetensors") for name in place.list("shards")):
            raise StoreError(f"{place.url} holds shards but no {MANIFEST}; restore it, or name another --store")
        place.make()
        lock.clear_temps()
        if MANIFEST not in found:
            _write_manifest(place, asked)
        _settle(place)
    except OSError as error:
        raise refusal(error, f"{place.url}/{MANIFEST}", 0, 0) from error
    return StoreWriter(place, layout, lock)


class StoreWriter:
    """Adds plans, rows, failures and run records to one store; made by ``open_writer``."""

    def __init__(self, place: Place, layout: Layout, lock: StoreLock) -> None:
        self.place = place
        self._layout = layout
        self._lock = lock
        self._committed: set[tuple[str, str]] = set()
        self._seen: set[str] = set()
        self._plan: Plan | None = None
        self._planned: dict[str, PlannedRow] = {}
        self._run: dict[str, Any] | None = None
        self.refresh()

    @property
    def path(self) -> Path:
        """The folder of a local store."""
        return self._lock.path

    @property
    def plan(self) -> Plan:
        """The plan that is followed, as ``add_plan`` settled it.

        Raises:
            StoreError: none was added.
        """
        if self._plan is None:
            raise StoreError("a writer follows the plan that add_plan gave it; there is none")
        return self._plan

    def refresh(self) -> None:
        """See the rows that other writers of this store have committed meanwhile."""
        new = [shard for shard in shards_in(self.place, self._layout.identity) if shard.name not in self._seen]
        fetch_headers(new)
        for shard in new:
            self._committed |= set(shard.keys)
            self._seen.add(shard.name)

    def add_plan(self, plan: Plan, on_changed: OnChanged = "error") -> Coverage:
        """Make ``plan`` the one that ``pending`` and every later reader follow; returns how far it already is.

        ``on_changed`` says what happens to cells that were captured under another text.

        Raises:
            ChangedPrompt: there are such cells, and ``on_changed`` is ``error``; nothing was written.
            StoreError: the plan holds a cell twice, or one whose persona or case it does not list; or the store is
                sealed and the plan is not the one that it was sealed with.
        """
        plan = settle_changes(plan, self._committed, on_changed, self.place, sums=self._layout.moments is not None)
        content, name = plan.file, f"{plan.hash}.jsonl"
        planned = {row.cell.row_id: row for row in plan.rows}
        for file, wanted in ((name, content), (LATEST, plan.hash.encode())):
            if self._read(f"plan/{file}") != wanted:
                require_unsealed(self.place, "to change its plan")
                self._write(f"plan/{file}", [wanted])
        self._plan, self._planned = plan, planned
        if self._run is not None:
            self._record_run(plan=plan.hash)
        return self.coverage()

    def coverage(self) -> Coverage:
        """How far the latest plan is."""
        return coverage_of(self._planned, self._committed, read_failures(self.place))

    def pending(self, again: Callable[[str], bool] = lambda kind: False) -> tuple[PlannedRow, ...]:
        """Rows of the latest plan that this writer has still to capture, in plan order.

        They are neither committed nor failed for good, and of a writer that shares the store only its own. ``again``
        says of a kind of failure whether such rows count as pending.
        """
        failures, share = read_failures(self.place), self._lock.share
        coverage = coverage_of(self._planned, self._committed, failures)
        retried = (row for row in coverage.failed_rows if again(str(failures[row].get("kind"))))
        wanted = {*coverage.pending_rows, *retried}
        rows = (row for row_id, row in self._planned.items() if row_id in wanted)
        return tuple(row for row in rows if share is None or share.holds(row.shard))

    def commit(self, records: Sequence[CellRecord], facts: Mapping[str, Any] | None = None) -> str:
        """Commit rows as one shard and return its name; when this returns they survive kill -9 and power loss.

        Committing equal records again gives the same name and changes nothing. ``facts`` (batch size, device, padded
        lengths: what may differ between two runs of the same rows) go to the run record, never into the shard.

        Raises:
            DiskFull: nothing of these rows was kept; every row committed before is safe.
            ProbeError: a row is not in the plan, is not finite, or does not fit the manifest; nothing was written.
        """
        self._check(records)
        require_unsealed(self.place, "to add rows")
        shard = pack(records, self._layout)
        name = f"{shard.name}.safetensors"
        with self._told({"name": shard.name, "rows": len(records), **(facts or {})}):
            stands = self._size_of(name)
            if stands != shard.size:
                with suppress(FileExistsError):  # an object store in which another writer was faster: the same bytes
                    replace = stands is not None or isinstance(self.place, LocalPlace)
                    self._write(f"shards/{name}", shard.parts, shard.size, replace=replace)
        self._committed |= {(record.cell.row_id, record.prompt_sha) for record in records}
        self._forget_failures(records)
        return shard.name

    @contextmanager
    def _told(self, shard: Mapping[str, Any]) -> Iterator[None]:
        """The record of this run names a shard before it stands, so that none is ever without a run that made it."""
        if self._run is None:
            yield
            return
        before = self._run["shards"]
        try:
            self._record_run(shards=[*before, shard])
            yield
        except StoreError:
            self._run["shards"] = before  # as the record will say when it is next written
            raise

    def fail(self, cell: Cell, kind: str, reason: str, prompt_sha: str = "") -> None:
        """Record that a cell cannot be captured for good; it is tried again only if its prompt text changes.

        ``kind`` is one word (``PromptTooLong``), ``reason`` the sentence that a table shows.
        """
        failure = {
            "row_id": cell.row_id,
            "persona": cell.persona,
            "case": cell.case,
            "condition": cell.condition.changed,
            "kind": kind,
            "reason": reason,
            "prompt_sha": prompt_sha,
        }
        content, name = canonical_json(failure).encode(), f"failures/{cell.row_id}.json"
        if self._read(name) != content:
            require_unsealed(self.place, "to record a failure")
            self._write(name, [content])

    def runs(self) -> tuple[Mapping[str, Any], ...]:
        """The record of every invocation so far, oldest first."""
        return read_runs(self.place)

    def start_run(self, info: Mapping[str, Any]) -> str:
        """Open the record of this invocation (argv, versions, device, ...) and return its id."""
        run = new_ulid()
        share = {"writer": str(self._lock.share)} if self._lock.share else {}
        plan = self._plan.hash if self._plan else info.get("plan")
        began: dict[str, Any] = {"id": run, "started": utc_now(), "pid": os.getpid(), "plan": plan, "shards": []}
        self._run = {**info, **share, **began}
        self._record_run()
        return run

    def finish_run(self, exit_status: int, **facts: Any) -> None:
        """Close the record of this invocation, and renew the index; a record without ``ended`` was killed."""
        if self._run is None:
            raise StoreError("finish_run closes the run that start_run opened; there is none")
        self._record_run(**facts, exit_status=exit_status, ended=utc_now())
        self._run = None
        write_index(self.place, self._layout.identity)

    @property
    def has_readout(self) -> bool:
        """Whether the store has its readout already: the weights are identity, so another would say the same."""
        return READOUT in self.place.list("")

    def write_readout(self, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
        """Keep what the label lens needs without the model: final norm, unembedding rows of the labels, scales.

        Written once, F32 or BF16; the same again changes nothing.

        Raises:
            StoreError: another readout stands there.
        """
        marks = {"schema": SCHEMA, "identity_sha256": self._layout.identity}
        readout = encode(tensors, {**metadata, **marks})
        there = TensorFile.at(self.place, READOUT)
        if there is None:
            self._write(READOUT, readout.parts, readout.size)
        elif (found := there.header().name) != readout.name:
            raise StoreError(
                f"{self.place.url}/{READOUT} was written with content {found}; this run has {readout.name}: the "
                "weights of the final norm or of the labels differ. Use --store NEW_DIR, or the original model"
            )

    def _check(self, records: Sequence[CellRecord]) -> None:
        if not records:
            raise StoreError("a commit needs at least one record")
        if len({record.cell.row_id for record in records}) < len(records):
            raise StoreError("a commit holds each cell once")
        for record in records:
            planned = self._planned.get(record.cell.row_id)
            if planned is None or planned.prompt_sha != record.prompt_sha:
                found = "is not in it" if planned is None else "has another prompt_sha"
                raise StoreError(f"a commit holds rows of the latest plan; {cell_name(record.cell)} {found}")

    def _forget_failures(self, records: Sequence[CellRecord]) -> None:
        """Remove what says that these rows failed: should their shard ever be lost, they are to be captured again."""
        recorded = self.place.list("failures")
        for record in records:
            if f"{record.cell.row_id}.json" in recorded:
                name = f"failures/{record.cell.row_id}.json"
                if read_record(self.place, name, needs="row_id").get("prompt_sha") in ("", record.prompt_sha):
                    with suppress(OSError):  # the rows are saved whatever becomes of this
                        self.place.remove(name)

    def _read(self, name: str) -> bytes | None:
        try:
            return self.place.read(name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self.place.url}/{name} cannot be read: {error.strerror or error}") from error

    def _size_of(self, shard: str) -> int | None:
        if isinstance(self.place, LocalPlace):
            file = self.place.path / "shards" / shard
            return file.stat().st_size if file.exists() else None
        entry = self.place.list("shards").get(shard)
        return None if entry is None else entry.size

    def _record_run(self, **changes: Any) -> None:
        assert self._run is not None
        self._run |= changes
        content = json.dumps(self._run, indent=1, default=str).encode()
        self._write(f"runs/{self._run['id']}.json", [content])

    def _write(self, name: str, parts: Sequence[Bytes], size: int = 0, *, replace: bool = True) -> None:
        if not self._lock.held:
            raise StoreError(
                f"writing {self.place.url} needs its StoreLock, which was released, or taken over by another writer "
                "while this process slept; run the same command again"
            )
        try:
            self.place.write(name, parts, replace=replace)
        except FileExistsError:
            raise
        except OSError as error:
            needed, where = size or sum(map(len, parts)), f"{self.place.url}/{name}"
            raise refusal(error, where, needed, len(self._committed)) from error


def _same(one: Place, other: Place) -> bool:
    if isinstance(one, LocalPlace) and isinstance(other, LocalPlace):
        return one.path.resolve() == other.path.resolve()
    return one.url == other.url


def _write_manifest(place: Place, manifest: Mapping[str, Any]) -> None:
    content = json.dumps(manifest, indent=2, ensure_ascii=False).encode()
    try:
        place.write(MANIFEST, [content], replace=False)
    except FileExistsError:  # another of several writers was faster
        check_same(place.url, read_manifest(place), manifest)


def _settle(place: Place) -> None:
    """Make durable the names that a writer gave files and did not live to fsync: from now on they count as saved."""
    if isinstance(place, LocalPlace):
        for folder in (*(place.path / name for name in FOLDERS), place.path):
            fsync_directory(folder)
        with suppress(PermissionError):  # a parent that may be passed but not read
            fsync_directory(place.path.resolve().parent)
