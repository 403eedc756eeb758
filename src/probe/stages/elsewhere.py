"""A study's shards on workers: other processes, a Ray cluster, SLURM jobs. Knows what they are told; runs no model.

This process renders and plans, holds the store's lock, gives out tickets and shows how far the run is; the model, its
activations and the commits are the workers'. Should it die, the same command goes on from what is committed.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.engines import Engine, Listener, Receipt, Ticket, Work, progress, supervise
from probe.engines.pools import open_pool
from probe.stages.absent_sites import Absent, absent_in_run
from probe.stages.interrupts import terminable
from probe.stages.running import notice, recorded
from probe.stages.shard_runs import told_of_memory
from probe.stages.workers import TASK, Opening, read_row, row_text, sees_store
from probe.store import StoreLock, StoreWriter
from probe.store.places import LocalPlace
from probe.study import Study
from probe.values import ProbeError

if TYPE_CHECKING:
    from probe.capture import Job
    from probe.stages.policy import CapturePolicy
    from probe.stages.preparation import Preparation


def device_of(engine: Engine, study: Study) -> str:
    """The kind of device that an engine's workers compute on.

    With ``device: auto`` that is CUDA where a worker has a device, or, if nothing is said, where this machine has one.
    Workers over a model on NDIF hold no weights, and need none.

    Raises:
        ProbeError: the study asks for CUDA, and workers get no device; or for several, and they get a part of one; or
            for none, and they get some.
    """
    from probe.models.loading import device_kind

    if study.model.remote is True:
        if engine.gpus_per_worker:
            raise ProbeError(
                "NDIF holds the model (model.remote: true), so workers need no device, found --gpus-per-worker "
                f"{engine.gpus_per_worker:g}; leave it out"
            )
        return "cpu"
    gpus = engine.gpus_per_worker
    unsaid = gpus is None and device_kind("auto") == "cuda"
    if study.model.device_map is not None and (unsaid or 0 < (gpus or 0) < 1):
        raise ProbeError(
            "device_map lays a model on the devices of each worker, and --gpus-per-worker says how many these are; "
            f"found {'none' if unsaid else f'{gpus:g}'}, use 2 or more"
        )
    group = study.model.tensor_parallel or 1
    if group > 1 and engine.gpus_per_worker not in (None, 0, group):
        raise ProbeError(
            f"tensor_parallel: {group} takes {group} devices for each worker, found --gpus-per-worker "
            f"{engine.gpus_per_worker:g}; leave it out"
        )
    wanted = study.model.device
    if wanted == "auto":
        if engine.gpus_per_worker:
            return "cuda"
        kind = device_kind("auto")
        return "cpu" if kind == "cuda" and engine.gpus_per_worker == 0 else kind
    kind = wanted.partition(":")[0]
    if kind != wanted:
        raise ProbeError(f"an engine chooses which device a worker gets, found device {wanted!r}; use {kind!r}")
    if kind == "cuda" and engine.gpus_per_worker == 0:
        raise ProbeError("the study runs on CUDA and workers get no device; use --gpus-per-worker 1, or --device cpu")
    return kind


def run_elsewhere(
    preparation: Preparation, writer: StoreWriter, lock: StoreLock, jobs: list[Job], policy: CapturePolicy
) -> Absent:
    """Run the jobs on the workers of ``policy.engine``; returns how many rows lack an answer site.

    Without jobs one worker is opened, for what it writes then: the readout of a store that has lost its own.
    """
    engine = policy.engine
    groups = groupby(jobs, key=lambda job: job.row.shard)
    tickets = [Ticket(shard, tuple(row_text(job.row) for job in group)) for shard, group in groups] or [Ticket(0, ())]
    resolved = preparation.resolved
    facts = {"argv": sys.argv, "engine": engine.name, "workers": engine.workers, "address": engine.address}
    told = list[Mapping[str, Any]]()
    record = recorded(writer, {**facts, "study": resolved.study.to_mapping(cases=False)})
    total = len(preparation.cells.rows)
    with terminable(), record, _refreshed(writer), _opening(preparation, writer, lock, policy) as opening:
        pool = open_pool(
            engine,
            Work(TASK, opening.text),
            tickets=len(tickets),
            gpus=engine.gpus(resolved.device == "cuda"),
            folder=_folder_of_jobs(lock, resolved.study.name),
            check=partial(sees_store, opening.text),
        )
        with closing(pool), progress(total, total - len(jobs)) as bar:

            def receipt(ticket: Ticket, ended: Receipt) -> None:
                bar.update(len(ticket.rows))
                told.append(ended.facts)
                if said := told_of_memory(ended.facts.get("batches", ())):
                    notice(f"shard {ticket.shard}: {said}")

            def lost(ticket: Ticket, deaths: int, reason: str) -> None:
                bar.update(1)
                _record_loss(writer, ticket, deaths, reason)

            supervise(pool, tickets, Listener(receipt, lost, notice))
    return absent_in_run({"shards": told})


def _record_loss(writer: StoreWriter, ticket: Ticket, deaths: int, reason: str) -> None:
    """A row that ended every process that ran it is on record as failed.

    Raises:
        ProbeError: the ticket has no row: the model itself cannot be opened.
    """
    if not ticket.rows:
        raise ProbeError(f"no worker could open the model: {reason}")
    cell, prompt_sha = read_row(ticket.rows[0])
    said = f"every process that ran this row ended before it had, {deaths} of them; the last time {reason}"
    writer.fail(cell, "WorkerDied", said, prompt_sha=prompt_sha)
    notice(f"{cell.persona}/{cell.case} is on record as failed: {said}")


@contextmanager
def _refreshed(writer: StoreWriter) -> Iterator[None]:
    """What workers have committed is known to the writer when the block ends."""
    try:
        yield
    finally:
        writer.refresh()


@contextmanager
def _opening(
    preparation: Preparation, writer: StoreWriter, lock: StoreLock, policy: CapturePolicy
) -> Iterator[Opening]:
    """The file of the store in which workers find the study, while the run lasts."""
    resolved = preparation.resolved
    model = resolved.study.model
    if Path(model.id).is_dir():
        model = replace(model, id=str(Path(model.id).resolve()))
    run = writer.runs()[-1]
    work = {
        "study": replace(resolved.study, model=model).to_mapping(),
        "device": resolved.device,
        "batch_size": resolved.batch_size,
        "label_tokens": preparation.label_tokens,
        "strict_numerics": policy.strict_numerics,
        "allow_nonfinite": policy.allow_nonfinite,
        "told": {"argv": sys.argv, "study": run["study"], "plan": writer.plan.hash, "part_of": run["id"]},
    }
    content = json.dumps(work).encode()
    sha256 = hashlib.sha256(content).hexdigest()
    place, file = lock.place, f"tmp/work-{sha256[:16]}.json"
    place.write(file, [content])
    local = isinstance(place, LocalPlace)
    try:
        yield Opening(str(lock.path.absolute()) if local else place.url, file, sha256)
    finally:
        if local:
            lock.clear_temps()
        else:
            place.remove(file)


def _folder_of_jobs(lock: StoreLock, name: str) -> Path:
    """Beside a store in a folder; under ``cache`` for one that has a URL."""
    if isinstance(lock.place, LocalPlace):
        return lock.path.with_name(f"{lock.path.name}.jobs").absolute()
    return (Path("cache") / f"{name}.jobs").absolute()
