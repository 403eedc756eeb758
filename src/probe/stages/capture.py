"""The capture stage: lock, plan, resume, run shards, commit. Knows both wings; computes nothing itself."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from probe.engines.specs import Engine
from probe.stages.absent_sites import Absent
from probe.stages.costs import disk_bytes, free_bytes
from probe.stages.places import store_path
from probe.stages.policy import CaptureOutcome, CapturePolicy
from probe.stages.running import capturer_of, load_model, notice, run_jobs
from probe.stages.store_lock import clear, locked
from probe.store import StoreLock, StoreWriter, open_writer
from probe.store.files import size_text
from probe.store.manifests import FILE as MANIFEST
from probe.store.places import LocalPlace, Place
from probe.store.seal import require_unsealed
from probe.study import Study
from probe.values import ProbeError

if TYPE_CHECKING:
    from probe.capture import Job
    from probe.models.protocol import Backend
    from probe.stages.preparation import Preparation
    from probe.stages.resolution import Resolved


def capture(
    study: Study,
    *,
    store: str | Path | None = None,
    fresh: bool = False,
    policy: CapturePolicy | None = None,
) -> CaptureOutcome:
    """Capture every cell of a study that its store does not hold yet; a second call continues or finds nothing to do.

    The store is locked before torch is imported. ``fresh`` removes what the store holds and starts again.

    Raises:
        ProbeError: the study, the model or the store refuses; nothing was written then.
        Interrupted: SIGINT or SIGTERM; the shards committed so far stay.
    """
    started, policy = time.monotonic(), (policy or CapturePolicy()).of(study)
    path = store_path(study, store)
    _refuse(policy, fresh=fresh)
    here = policy.engine.in_process
    with locked(path, policy.share) as lock:
        from probe.stages.preparation import prepare
        from probe.stages.recipes import optimism

        preparation = prepare(study, None if here else _device(policy.engine, study))
        _require_plan(preparation.resolved)
        backend = None
        if fresh:
            require_unsealed(lock.place, "to start it again")
            if here:
                backend = load_model(preparation.resolved)  # a model that does not load must not cost the store
            clear(lock.place)
        elif here and len(study.capture.streams) > 1 and MANIFEST not in lock.place.list(""):
            backend = load_model(preparation.resolved)  # whether the model has them decides what the store is
        writer = open_writer(path, preparation.manifest, lock=lock)
        preparation, backend = _with_batch_size(preparation, lock.place, backend, policy.engine)
        before = writer.add_plan(preparation.plan, policy.on_changed)
        if warning := optimism(preparation.resolved.study):
            notice(warning)
        jobs = _jobs(preparation, writer, policy)
        absent: Absent = {}
        if jobs or _lost_its_readout(writer):
            _warn_of_space(preparation.resolved, lock.place, jobs)
            absent = _run(preparation, backend, writer, lock, jobs, policy)
        if policy.share:
            writer.refresh()
        after = writer.coverage()
    return CaptureOutcome(
        store=path,
        planned=after.planned,
        committed=after.committed,
        resumed=before.committed,
        failed=after.failed,
        seconds=time.monotonic() - started,
        left=len(writer.pending()),
        share=policy.share,
        absent=absent,
    )


def _refuse(policy: CapturePolicy, *, fresh: bool) -> None:
    if fresh and policy.share:
        raise ProbeError("--fresh removes what the other writers do; start the store again without --writer")
    if policy.engine.in_process:
        return
    if policy.share:
        raise ProbeError("--writer divides a store among runs that are started by hand; an engine divides it itself")
    from probe.engines.pools import require_installed

    require_installed(policy.engine)


def _require_plan(resolved: Resolved) -> None:
    """Refuse a model that cannot be divided as its study says, before a store is begun."""
    processes = resolved.study.model.tensor_parallel or 1
    if processes > 1:
        from probe.models.spread import Spread
        from probe.models.tensor_parallel import require_plan

        Spread(tensor_parallel=processes).require(resolved.study.model.backend)
        require_plan(resolved.source, processes)


def _device(engine: Engine, study: Study) -> str:
    from probe.stages.elsewhere import device_of

    return device_of(engine, study)


def _run(
    preparation: Preparation,
    backend: Backend | None,
    writer: StoreWriter,
    lock: StoreLock,
    jobs: list[Job],
    policy: CapturePolicy,
) -> Absent:
    """The jobs, in this process or on an engine's workers."""
    if policy.engine.in_process:
        return run_jobs(preparation, backend or load_model(preparation.resolved), writer, jobs, policy)
    from probe.stages.elsewhere import run_elsewhere

    return run_elsewhere(preparation, writer, lock, jobs, policy)


def _with_batch_size(
    preparation: Preparation, place: Place, backend: Backend | None, engine: Engine
) -> tuple[Preparation, Backend | None]:
    """Settle how many rows run at a time: as the study says, as the store's plan says, or what fits into memory.

    On an accelerator that takes a pass over a few rows, for which the model is loaded; where that is not this process,
    the number is the one that the kind of device has, and workers halve it if they must.
    """
    from probe.stages import batch_size

    if not batch_size.is_open(preparation) or not preparation.cells.jobs:
        return preparation, backend
    size = batch_size.planned_batch(place)
    if size is None and (engine.name != "local" or (not engine.in_process and preparation.resolved.device != "cpu")):
        size = preparation.resolved.batch_size
    elif size is None and preparation.resolved.device == "cuda" and not preparation.resolved.study.model.remote:
        backend = backend or load_model(preparation.resolved)
        meter = batch_size.CudaMeter.of(backend.facts)
        capturer = capturer_of(preparation.resolved, backend)
        size = batch_size.measured_batch(preparation, capturer, meter)
    elif size is None:
        size = batch_size.fitting_batch(preparation, free_bytes() // (engine.workers or 1))
    return batch_size.with_batch(preparation, size), backend


def _jobs(preparation: Preparation, writer: StoreWriter, policy: CapturePolicy) -> list[Job]:
    """The jobs that this writer has still to run, by shard, with their rows as the writer's plan settled them.

    Cells that cannot be captured are put on record.
    """
    cells = preparation.cells
    settled = {old.cell.row_id: new for old, new in zip(cells.rows, writer.plan.rows, strict=True)}
    for refusal in cells.refusals:
        cell = settled[refusal.cell.row_id].cell
        writer.fail(cell, refusal.kind, refusal.reason, prompt_sha=refusal.prompt_sha)
    pending = {row.cell.row_id for row in writer.pending(policy.tries_again)}
    jobs = (replace(job, row=settled[job.row.cell.row_id]) for job in cells.jobs)
    return sorted((job for job in jobs if job.row.cell.row_id in pending), key=lambda job: job.row.shard)


def _warn_of_space(resolved: Resolved, place: Place, jobs: list[Job]) -> None:
    """Say beforehand where a disk will probably be full before the end; what is saved until then is safe anyway.

    Of an object store there is only to say that it knows no lock.
    """
    if not isinstance(place, LocalPlace):
        notice(f"{place.url} has no locks: see to it yourself that no other run fills it (it would only cost time)")
        return
    needed = disk_bytes(resolved, jobs)
    free = shutil.disk_usage(place.path).free
    if needed > free:
        notice(
            f"the {len(jobs)} rows still to capture need ~{size_text(needed)}, and {size_text(free)} are free at "
            f"{place.url}; the run will stop when the disk is full, and what is saved until then is safe"
        )


def _lost_its_readout(writer: StoreWriter) -> bool:
    """Whether an earlier run wrote a readout that is no longer there; some models have none to write."""
    return not writer.has_readout and any(run.get("readout") for run in writer.runs())
