"""The one writer of a store. Knows what is planned, committed and failed, and in what order bytes become durable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from probe.store.files import Bytes, fsync_directory, refusal, write_durably
from probe.store.locks import StoreLock
from probe.store.manifests import SCHEMA, Layout, check_same, layout_of, normal, read_manifest
from probe.store.packing import pack
from probe.store.plans import Plan, cell_name
from probe.store.progress import LATEST, Coverage, coverage_of, read_failures
from probe.store.readout import FILE as READOUT
from probe.store.runs import new_ulid, utc_now
from probe.store.shard_format import encode, read_header
from probe.store.shards import locate, shards_in
from probe.values import Cell, CellRecord, ChangedPrompt, PlannedRow, StoreError, canonical_json

DIRECTORIES = ("plan", "shards", "failures", "runs", "tmp")


def open_writer(path: str | Path, manifest: Mapping[str, Any], *, lock: StoreLock) -> StoreWriter:
    """Open a store for writing: make it with this manifest, or continue one that was captured under the same identity.

    Temps that a dead writer left are removed. ``manifest`` needs at least ``capture.layers`` (residual points, in the
    order of the arrays) and ``labels.options``; docs/FORMAT.md lists the rest.

    Raises:
        StoreMismatch: the store has another identity; nothing was written.
        StoreError: the lock is not held, the manifest lacks a field, or the directory cannot be written.
    """
    path = Path(path)
    if not lock.held or lock.path.resolve() != path.resolve():
        raise StoreError(f"writing {path} needs its StoreLock; this one is for {lock.path} or was released")
    asked = normal(manifest)
    layout = layout_of(asked)
    file = path / "manifest.json"
    try:
        if file.exists():
            check_same(path, read_manifest(path), asked)
        elif any((path / "shards").glob("*.safetensors")):
            raise StoreError(f"{path} holds shards but no manifest.json; restore it, or name another --store")
        for name in DIRECTORIES:
            (path / name).mkdir(exist_ok=True)
        for temp in (path / "tmp").iterdir():  # with the lock held, whoever wrote them is dead
            temp.unlink()
        if not file.exists():
            content = json.dumps(asked, indent=2, ensure_ascii=False).encode()
            write_durably(file, [content], temp_dir=path / "tmp", replace=False)
            with suppress(PermissionError):  # a parent that may be passed but not read
                fsync_directory(path.resolve().parent)
    except OSError as error:
        raise refusal(error, file, 0, 0) from error
    return StoreWriter(path, layout, lock)


class StoreWriter:
    """Adds plans, rows, failures and run records to one store; made by ``open_writer``."""

    def __init__(self, path: Path, layout: Layout, lock: StoreLock) -> None:
        self.path = path
        self._layout = layout
        self._lock = lock
        self._prompts = {
            row_id: str(at.entry["prompt_sha"]) for row_id, at in locate(shards_in(path, layout.identity)).items()
        }
        self._plan: Plan | None = None
        self._planned: dict[str, PlannedRow] = {}
        self._run: dict[str, Any] | None = None

    def add_plan(self, plan: Plan) -> Coverage:
        """Make ``plan`` the one that ``pending`` and every later reader follow; returns how far it already is.

        Raises:
            ChangedPrompt: rows were captured under another prompt text; nothing was written.
            StoreError: the plan holds a cell twice, or one whose persona or case it does not list.
        """
        content = plan.file
        planned = {row.cell.row_id: row for row in plan.rows}
        changed = [
            cell_name(row.cell)
            for row_id, row in planned.items()
            if self._prompts.get(row_id, row.prompt_sha) != row.prompt_sha
        ]
        if changed:
            more = ", ..." if len(changed) > 5 else ""
            raise ChangedPrompt(
                f"{len(changed)} rows changed since capture (first: {', '.join(changed[:5])}{more}): a persona, case "
                f"or instruction was edited under the same id. Give it a new id, or use --store NEW_DIR ({self.path})"
            )
        target = self.path / "plan" / f"{plan.hash}.jsonl"
        if not target.exists() or target.stat().st_size != len(content):
            self._write(target, [content])
        self._write(self.path / "plan" / LATEST, [plan.hash.encode()])
        self._plan, self._planned = plan, planned
        if self._run is not None:
            self._record_run(plan=plan.hash)
        return self.coverage()

    def coverage(self) -> Coverage:
        """How far the latest plan is."""
        return coverage_of(self._planned, self._prompts, read_failures(self.path))

    def pending(self) -> tuple[PlannedRow, ...]:
        """Rows of the latest plan that are neither committed nor failed for good, in plan order."""
        pending = self.coverage().pending_rows
        return tuple(self._planned[row_id] for row_id in pending)

    def commit(self, records: Sequence[CellRecord], facts: Mapping[str, Any] | None = None) -> str:
        """Commit rows as one shard and return its name; when this returns they survive kill -9 and power loss.

        Committing equal records again gives the same name and changes nothing. ``facts`` (batch size, device, padded
        lengths: what may differ between two runs of the same rows) go to the run record, never into the shard.

        Raises:
            DiskFull: nothing of these rows was kept; every row committed before is safe.
            ProbeError: a row is not in the plan, is not finite, or does not fit the manifest; nothing was written.
        """
        self._check(records)
        shard = pack(records, self._layout)
        target = self.path / "shards" / f"{shard.name}.safetensors"
        if not target.exists() or target.stat().st_size != shard.size:
            self._write(target, shard.parts, shard.size)
        self._prompts |= {record.cell.row_id: record.prompt_sha for record in records}
        if self._run is not None:
            self._record_run(shards=[*self._run["shards"], {"name": shard.name, "rows": len(records), **(facts or {})}])
        return shard.name

    def fail(self, cell: Cell, kind: str, reason: str, prompt_sha: str = "") -> None:
        """Record that a cell cannot be captured for good; it is tried again only if its prompt text changes.

        ``kind`` is one word (``PromptTooLong``), ``reason`` the sentence that a table shows.
        """
        failure = {
            "row_id": cell.row_id,
            "persona": cell.persona,
            "case": cell.case,
            "condition": asdict(cell.condition),
            "kind": kind,
            "reason": reason,
            "prompt_sha": prompt_sha,
        }
        self._write(self.path / "failures" / f"{cell.row_id}.json", [canonical_json(failure).encode()])

    def start_run(self, info: Mapping[str, Any]) -> str:
        """Open the record of this invocation (argv, versions, device, ...) and return its id."""
        run = new_ulid()
        plan = self._plan.hash if self._plan else None
        self._run = {**info, "id": run, "started": utc_now(), "pid": os.getpid(), "plan": plan, "shards": []}
        self._record_run()
        return run

    def finish_run(self, exit_status: int, **facts: Any) -> None:
        """Close the record of this invocation; one without ``ended`` was killed."""
        if self._run is None:
            raise StoreError("finish_run closes the run that start_run opened; there is none")
        self._record_run(**facts, exit_status=exit_status, ended=utc_now())
        self._run = None

    @property
    def has_readout(self) -> bool:
        """Whether the store has its readout already: the weights are identity, so another would say the same."""
        return (self.path / "readout.safetensors").exists()

    def write_readout(self, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
        """Keep what the label lens needs without the model: final norm, unembedding rows of the labels, scales.

        Written once, F32 or BF16; the same again changes nothing.

        Raises:
            StoreError: another readout stands there.
        """
        marks = {"schema": SCHEMA, "identity_sha256": self._layout.identity}
        readout = encode(tensors, {**metadata, **marks})
        target = self.path / READOUT
        if not target.exists():
            self._write(target, readout.parts, readout.size)
        elif (found := read_header(target).name) != readout.name:
            raise StoreError(
                f"{target} was written with content {found}; this run has {readout.name}: the weights of the final "
                "norm or of the labels differ. Use --store NEW_DIR, or the original model"
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

    def _record_run(self, **changes: Any) -> None:
        assert self._run is not None
        self._run |= changes
        content = json.dumps(self._run, indent=1, default=str).encode()
        self._write(self.path / "runs" / f"{self._run['id']}.json", [content])

    def _write(self, target: Path, parts: Sequence[Bytes], size: int = 0) -> None:
        if not self._lock.held:
            raise StoreError(f"writing {self.path} needs its StoreLock, which was released")
        try:
            write_durably(target, parts, temp_dir=self.path / "tmp", replace=True)
        except OSError as error:
            raise refusal(error, target, size or sum(map(len, parts)), len(self._prompts)) from error
