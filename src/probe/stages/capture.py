"""The capture stage: lock, plan, resume, run shards, commit. Knows both wings; computes nothing itself."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from probe.stages.interrupts import Interrupted, Interrupts, terminable
from probe.stages.places import store_path
from probe.stages.store_lock import clear, locked
from probe.store import OnChanged, Share, StoreWriter, open_writer
from probe.store.files import size_text
from probe.store.places import LocalPlace, Place
from probe.store.seal import require_unsealed
from probe.study import Study
from probe.values import ProbeError, StoreError

if TYPE_CHECKING:
    from probe.capture import Capturer, Job
    from probe.models.protocol import Backend
    from probe.stages.preparation import Preparation
    from probe.stages.resolution import Resolved

SMALL_MODEL_BYTES = 32 * 2**20
ROW_OVERHEAD_BYTES = 4096
"""Rough bytes of a row beside its residuals: tokens, text, label reads, checksums and its line of the row table."""


@dataclass(frozen=True)
class CapturePolicy:
    """How a capture treats what it finds.

    ``on_changed`` is what happens to cells whose text was edited under its id (see :class:`probe.store.OnChanged`).
    ``share`` makes this one of several writers. ``allow_nonfinite`` stores rows with NaN or infinities, marked, which
    otherwise fail. ``strict_numerics`` refuses to continue a store under other versions, devices or batch sizes.
    ``retry_failed`` captures rows again that failed before, such as those that ran out of memory.
    """

    on_changed: OnChanged = "error"
    share: Share | None = None
    allow_nonfinite: bool = False
    strict_numerics: bool = False
    retry_failed: bool = False

    def tries_again(self, kind: str) -> bool:
        """Whether rows that failed in this way are captured again."""
        return self.retry_failed or (self.allow_nonfinite and kind == "NonFinite")


@dataclass(frozen=True)
class CaptureOutcome:
    """How a capture ended: rows planned, committed (``resumed`` of them by earlier runs) and failed, and seconds.

    ``left`` rows are still to be captured by this writer; where several share the store, the others' do not count.
    """

    store: str | Path
    planned: int
    committed: int
    resumed: int
    failed: int
    seconds: float = field(compare=False)
    left: int = 0
    share: Share | None = None

    @property
    def exit_status(self) -> int:
        """0 where every row was captured (by one of several writers: all of its own, and no row failed), else 3."""
        done = self.left == 0 and self.failed == 0 if self.share else self.committed == self.planned
        return 0 if done else 3


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
    started, policy = time.monotonic(), policy or CapturePolicy()
    path = store_path(study, store)
    if fresh and policy.share:
        raise ProbeError("--fresh removes what the other writers do; start the store again without --writer")
    with locked(path, policy.share) as lock:
        from probe.stages.preparation import prepare

        preparation = prepare(study)
        backend = None
        if fresh:
            require_unsealed(lock.place, "to start it again")
            backend = _load(preparation.resolved)  # a model that does not load must not cost the store
            clear(lock.place)
        writer = open_writer(path, preparation.manifest, lock=lock)
        before = writer.add_plan(preparation.plan, policy.on_changed)
        jobs = _jobs(preparation, writer, policy)
        if jobs or _lost_its_readout(writer):
            _run(preparation, backend or _load(preparation.resolved), writer, jobs, policy)
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
    )


def _jobs(preparation: Preparation, writer: StoreWriter, policy: CapturePolicy) -> list[Job]:
    """The jobs that this writer has still to run, with their rows as the writer's plan settled them.

    Cells that cannot be captured are put on record.
    """
    cells = preparation.cells
    settled = {old.cell.row_id: new for old, new in zip(cells.rows, writer.plan.rows, strict=True)}
    for refusal in cells.refusals:
        cell = settled[refusal.cell.row_id].cell
        writer.fail(cell, refusal.kind, refusal.reason, prompt_sha=refusal.prompt_sha)
    pending = {row.cell.row_id for row in writer.pending(policy.tries_again)}
    jobs = (replace(job, row=settled[job.row.cell.row_id]) for job in cells.jobs)
    return [job for job in jobs if job.row.cell.row_id in pending]


def _run(
    preparation: Preparation, backend: Backend, writer: StoreWriter, jobs: list[Job], policy: CapturePolicy
) -> None:
    """Run the jobs shard by shard, each committed before the next begins."""
    from probe.engines import run_local
    from probe.stages.numerics import require_same, run_facts, what_moved

    resolved = preparation.resolved
    _warn_of_space(resolved, writer.place, jobs)
    shards = [list(group) for _, group in groupby(jobs, key=lambda job: job.row.shard)]
    capturer = _capturer(resolved, backend, policy)
    total = len(preparation.cells.rows)
    with _threads_for(resolved):
        facts = run_facts(resolved, backend)
        moved = what_moved(writer.runs(), facts)
        if policy.strict_numerics:
            require_same(moved, writer.place.url)
        elif moved:
            _notice(f"captured before under other numerics: {'; '.join(moved)}; low bits may differ (it is recorded)")
        _write_readout(preparation, backend, writer)
        record = _recorded(writer, {**facts, "numerics_moved": moved, "readout": writer.has_readout})
        with terminable() as interrupts, record:
            run_local(shards, _shard_work(capturer, writer, interrupts), total=total, done=total - len(jobs))


@contextmanager
def _recorded(writer: StoreWriter, facts: dict[str, Any]) -> Iterator[None]:
    """The record of this run, closed with its exit status however it ends."""
    writer.start_run(facts)
    status = 1
    try:
        yield
        status = 0 if writer.coverage().failed == 0 else 3
    except KeyboardInterrupt as interrupt:
        status = 143 if interrupt.args else 130
        where = writer.place.url
        raise Interrupted(
            f"interrupted: {writer.coverage()} are saved in {where}; run the same command again to continue", status
        ) from None
    except ProbeError as error:
        status = error.exit_status
        raise
    finally:
        try:
            writer.finish_run(status)
        except StoreError:
            if status in (0, 3):  # else what ended the run is what is told: a full disk takes no record either
                raise


def _shard_work(
    capturer: Capturer, writer: StoreWriter, interrupts: Interrupts
) -> Callable[[list[Job], Callable[[int], None]], None]:
    from probe.capture import capture_shard

    told: list[int] = []

    def work(jobs: list[Job], on_rows: Callable[[int], None]) -> None:
        result = capture_shard(capturer, jobs, on_rows)
        smaller = [size for size in result.batches[:-1] if size < capturer.batch_size]
        if smaller and not told:
            told.append(smaller[0])
            _notice(
                f"out of memory with batches of {capturer.batch_size}; shards go on with {smaller[0]} and fewer where "
                "they must (the run's record has each; --batch-size sets another)"
            )
        with interrupts.shielded():
            if result.records:
                facts = {"shard": jobs[0].row.shard, "batch_size": capturer.batch_size, "batches": result.batches}
                writer.commit(result.records, facts)
            for failure in result.failed:
                row = failure.job.row
                writer.fail(row.cell, failure.kind, failure.reason, prompt_sha=row.prompt_sha)

    return work


def _warn_of_space(resolved: Resolved, place: Place, jobs: list[Job]) -> None:
    """Say beforehand where a disk will probably be full before the end; what is saved until then is safe anyway.

    Of an object store there is only to say that it knows no lock.
    """
    if not isinstance(place, LocalPlace):
        _notice(f"{place.url} has no locks: see to it yourself that no other run fills it (it would only cost time)")
        return
    tokens = sum(len(job.prompt.token_ids) + resolved.study.generation.max_new_tokens for job in jobs)
    needed = len(jobs) * (resolved.row_bytes + ROW_OVERHEAD_BYTES) + 4 * tokens
    free = shutil.disk_usage(place.path).free
    if needed > free:
        _notice(
            f"the {len(jobs)} rows still to capture need ~{size_text(needed)}, and {size_text(free)} are free at "
            f"{place.url}; the run will stop when the disk is full, and what is saved until then is safe"
        )


def _notice(text: str) -> None:
    """One line on standard error, beside a progress bar."""
    tqdm.write(f"probe: {text}", file=sys.stderr)


def _write_readout(preparation: Preparation, backend: Backend, writer: StoreWriter) -> None:
    """What a label lens needs without the model, for the tokens of the store's labels."""
    from probe.models.readout import find_readout

    if writer.has_readout:
        return
    readout = find_readout(backend, preparation.label_tokens)
    if readout is not None:
        writer.write_readout(readout.tensors(), readout.metadata())


def _lost_its_readout(writer: StoreWriter) -> bool:
    """Whether an earlier run wrote a readout that is no longer there; some models have none to write."""
    return not writer.has_readout and any(run.get("readout") for run in writer.runs())


def _load(resolved: Resolved) -> Backend:
    from probe.models.loading import load_backend

    model = resolved.study.model
    return load_backend(
        resolved.source,
        backend=model.backend,
        dtype=resolved.compute_dtype,
        device=model.device,
        attention=model.attn_implementation,
    )


def _capturer(resolved: Resolved, backend: Backend, policy: CapturePolicy) -> Capturer:
    from probe.capture import Capturer, PassSettings
    from probe.prompts import LetterVocabulary

    study = resolved.study
    return Capturer(
        backend=backend,
        tokenizer=resolved.tokenizer,
        vocabulary=LetterVocabulary(resolved.tokenizer, study.task.letters),
        letters=study.task.letters,
        options=study.task.option_ids,
        settings=PassSettings(
            resolved.layers, study.capture.positions, study.generation.max_new_tokens, resolved.sampling
        ),
        batch_size=resolved.batch_size,
        dtype=resolved.stored_dtype,
        allow_nonfinite=policy.allow_nonfinite,
        parser=study.task.parser,
    )


@contextmanager
def _threads_for(resolved: Resolved) -> Iterator[None]:
    """One thread for a model so small that threads would wait for each other longer than they work."""
    import torch

    before = torch.get_num_threads()
    if resolved.weight_bytes < SMALL_MODEL_BYTES:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
