"""The capture stage: lock, plan, resume, run shards, commit. Knows both wings; computes nothing itself."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from probe.stages.places import store_path
from probe.store import StoreLock, StoreWriter, open_writer
from probe.store.locks import ENTRIES
from probe.study import Study
from probe.values import ProbeError

if TYPE_CHECKING:
    from probe.capture import Capturer, Job
    from probe.models.protocol import Backend
    from probe.stages.preparation import Preparation
    from probe.stages.resolution import Resolved

SMALL_MODEL_BYTES = 32 * 2**20
VERSIONS_OF = ("persona-probe", "torch", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True)
class CaptureOutcome:
    """How a capture ended: rows planned, committed (``resumed`` of them by earlier runs) and failed, and seconds."""

    store: Path
    planned: int
    committed: int
    resumed: int
    failed: int
    seconds: float = field(compare=False)

    @property
    def exit_status(self) -> int:
        """0 where every row was captured, 3 where some failed or are missing."""
        return 0 if self.committed == self.planned else 3


class Interrupted(ProbeError):
    """A run was interrupted; every committed shard is safe."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def capture(study: Study, *, store: Path | None = None, fresh: bool = False) -> CaptureOutcome:
    """Capture every cell of a study that its store does not hold yet; a second call continues or finds nothing to do.

    The store is locked before torch is imported. ``fresh`` removes what the store holds and starts again.

    Raises:
        ProbeError: the study, the model or the store refuses; nothing was written then.
        Interrupted: SIGINT or SIGTERM; the shards committed so far stay.
    """
    started = time.monotonic()
    path = store_path(study, store)
    with _locked(path) as lock:
        from probe.stages.preparation import prepare

        preparation = prepare(study)
        backend = None
        if fresh:
            backend = _load(preparation.resolved)  # a model that does not load must not cost the store
            _clear(path)
        writer = open_writer(path, preparation.manifest, lock=lock)
        before = writer.add_plan(preparation.plan)
        for refusal in preparation.cells.refusals:
            writer.fail(refusal.cell, refusal.kind, refusal.reason, prompt_sha=refusal.prompt_sha)
        pending = {row.cell.row_id for row in writer.pending()}
        jobs = [job for job in preparation.cells.jobs if job.row.cell.row_id in pending]
        if jobs:
            _run(preparation, backend or _load(preparation.resolved), writer, jobs)
        after = writer.coverage()
    return CaptureOutcome(
        store=path,
        planned=after.planned,
        committed=after.committed,
        resumed=before.committed,
        failed=after.failed,
        seconds=time.monotonic() - started,
    )


def _run(preparation: Preparation, backend: Backend, writer: StoreWriter, jobs: list[Job]) -> None:
    """Run the jobs shard by shard, each committed before the next begins."""
    from probe.engines import run_local

    resolved = preparation.resolved
    _write_readout(preparation, backend, writer)
    shards = [list(group) for _, group in groupby(jobs, key=lambda job: job.row.shard)]
    work = _shard_work(_capturer(resolved, backend), writer)
    total = len(preparation.cells.rows)
    with _terminable(), _threads_for(resolved):
        writer.start_run(_run_facts(resolved, backend))
        status = 1
        try:
            run_local(shards, work, total=total, done=total - len(jobs))
            status = 0 if writer.coverage().failed == 0 else 3
        except KeyboardInterrupt as interrupt:
            status = 143 if interrupt.args else 130
            raise Interrupted(
                f"interrupted: {writer.coverage()} are saved in {writer.path}; run the same command again to continue",
                status,
            ) from None
        finally:
            writer.finish_run(status)


def _shard_work(capturer: Capturer, writer: StoreWriter) -> Callable[[list[Job], Callable[[int], None]], None]:
    from probe.capture import capture_shard

    def work(jobs: list[Job], on_rows: Callable[[int], None]) -> None:
        records, failed = capture_shard(capturer, jobs, on_rows)
        if records:
            writer.commit(records, {"shard": jobs[0].row.shard, "batch_size": capturer.batch_size})
        for failure in failed:
            row = failure.job.row
            writer.fail(row.cell, failure.kind, failure.reason, prompt_sha=row.prompt_sha)

    return work


def _write_readout(preparation: Preparation, backend: Backend, writer: StoreWriter) -> None:
    """What a label lens needs without the model, for the tokens of the store's labels."""
    from probe.models.readout import find_readout

    if writer.has_readout:
        return
    readout = find_readout(backend, preparation.label_tokens)
    if readout is not None:
        writer.write_readout(readout.tensors(), readout.metadata())


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


def _capturer(resolved: Resolved, backend: Backend) -> Capturer:
    from probe.capture import Capturer, PassSettings
    from probe.prompts import LetterVocabulary

    study = resolved.study
    return Capturer(
        backend=backend,
        tokenizer=resolved.tokenizer,
        vocabulary=LetterVocabulary(resolved.tokenizer, study.task.letters),
        letters=study.task.letters,
        options=study.task.option_ids,
        settings=PassSettings(resolved.layers, study.capture.positions, study.generation.max_new_tokens),
        batch_size=resolved.batch_size,
        dtype=resolved.stored_dtype,
    )


def _run_facts(resolved: Resolved, backend: Backend) -> dict[str, Any]:
    """What may differ between two runs of the same rows."""
    import torch

    facts = backend.facts
    return {
        "argv": sys.argv,
        "study": resolved.study.to_mapping(cases=False),
        "versions": {name: version(name) for name in VERSIONS_OF} | {"python": platform.python_version()},
        "platform": platform.platform(),
        "device": str(facts.device),
        "dtype": str(facts.dtype).removeprefix("torch."),
        "architecture": facts.architecture,
        "attention": facts.attention,
        "padding_side": "left",
        "batch_size": resolved.batch_size,
        "threads": torch.get_num_threads(),
        "placement": resolved.placement,
        "ignored_generation_config": dict(facts.shape.ignored),
    }


@contextmanager
def _locked(path: Path) -> Iterator[StoreLock]:
    """The lock of a store; one that was made for a run that then saved nothing is removed again."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    with StoreLock.acquire(path) as lock:
        try:
            yield lock
        except BaseException:
            if made and not any((path / "shards").glob("*.safetensors")):
                shutil.rmtree(path)
                with suppress(OSError):  # another run may have put its store beside this one meanwhile
                    for folder in made[1:]:
                        folder.rmdir()
            raise


def _clear(path: Path) -> None:
    """Remove a store's entries, and nothing else that may lie in the folder; the lock stays held."""
    for name in ENTRIES - {".lock"}:
        entry = path / name
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


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


@contextmanager
def _terminable() -> Iterator[None]:
    """Treat SIGTERM as an interrupt; a second signal ends the process at once."""

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise KeyboardInterrupt("SIGTERM")  # what it says tells it from Ctrl-C

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, terminate), signal.signal(signal.SIGINT, interrupt)
    except ValueError:  # not in the main thread: signals are the caller's affair
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous[0])
        signal.signal(signal.SIGINT, previous[1])
