"""A study's jobs over a loaded model, shard by shard into its store. Knows order, signals and what is told of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from probe.stages.absent_sites import count_absent
from probe.stages.committing import Committing
from probe.stages.interrupts import Interrupted, terminable
from probe.store import StoreWriter
from probe.values import ModelError, ProbeError, StoreError

if TYPE_CHECKING:
    from probe.capture import Capturer, Job
    from probe.models.protocol import Backend
    from probe.stages.capture import CapturePolicy
    from probe.stages.preparation import Preparation
    from probe.stages.resolution import Resolved

SMALL_MODEL_BYTES = 32 * 2**20


def run_jobs(
    preparation: Preparation, backend: Backend, writer: StoreWriter, jobs: list[Job], policy: CapturePolicy
) -> None:
    """Run the jobs shard by shard; each is committed, in order, while the next one computes."""
    from probe.engines import run_local
    from probe.stages.numerics import require_same, run_facts, what_moved

    resolved = preparation.resolved
    shards = [list(group) for _, group in groupby(jobs, key=lambda job: job.row.shard)]
    capturer = capturer_of(resolved, backend, allow_nonfinite=policy.allow_nonfinite)
    total = len(preparation.cells.rows)
    with _threads_for(resolved):
        facts = run_facts(resolved, backend)
        moved = what_moved(writer.runs(), facts)
        if policy.strict_numerics:
            require_same(moved, writer.place.url)
        elif moved:
            notice(f"captured before under other numerics: {'; '.join(moved)}; low bits may differ (it is recorded)")
        _write_readout(preparation, backend, writer)
        record = _recorded(writer, {**facts, "numerics_moved": moved, "readout": writer.has_readout})
        with terminable() as interrupts, record, Committing(interrupts) as committing:
            run_local(shards, _shard_work(capturer, writer, committing), total=total, done=total - len(jobs))


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
    capturer: Capturer, writer: StoreWriter, committing: Committing
) -> Callable[[list[Job], Callable[[int], None]], None]:
    from probe.capture import capture_shard

    fitting = capturer

    def work(jobs: list[Job], on_rows: Callable[[int], None]) -> None:
        nonlocal fitting

        def advance(rows: int) -> None:
            committing.check()  # a disk that is full ends the run now, not after this shard
            on_rows(rows)

        result = capture_shard(fitting, jobs, advance)
        if len(result.batches) > 1:
            notice(
                f"out of memory with batches of {result.batches[0]}; the rest of the shard ran with "
                f"{result.batches[-1]}, and the next begins with {result.batches[1]} (the run's record has each; "
                "--batch-size sets another)"
            )
            fitting = replace(capturer, batch_size=result.batches[1])

        def commit() -> None:
            if result.records:
                facts: dict[str, Any] = {
                    "shard": jobs[0].row.shard,
                    "batch_size": capturer.batch_size,
                    "batches": result.batches,
                }
                if absent := count_absent(record.extra for record in result.records):
                    facts["absent_sites"] = absent
                writer.commit(result.records, facts)
            for failure in result.failed:
                row = failure.job.row
                writer.fail(row.cell, failure.kind, failure.reason, prompt_sha=row.prompt_sha)

        committing.give(commit)

    return work


def notice(text: str) -> None:
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


def load_model(resolved: Resolved) -> Backend:
    """The model of a study, checked, with every stream that is asked for.

    Raises:
        ModelError: it does not load, or lacks a stream.
    """
    from probe.models.loading import load_backend

    model = resolved.study.model
    backend = load_backend(
        resolved.source,
        backend=model.backend,
        dtype=resolved.compute_dtype,
        device=model.device,
        attention=model.attn_implementation,
        remote=model.remote,
    )
    _require_streams(resolved, backend)
    return backend


def _require_streams(resolved: Resolved, backend: Backend) -> None:
    """Refuse a study that asks for streams which the model, now that it is loaded, is seen not to have."""
    facts = backend.facts
    facts.require(resolved.points)
    for stream, width in resolved.widths.items():
        if facts.widths[stream] != width:
            raise ModelError(
                f"stream {stream!r} of {facts.architecture} is {facts.widths[stream]} wide, where its config.json says "
                f"{width}; leave it out of capture.streams"
            )


def capturer_of(resolved: Resolved, backend: Backend, *, allow_nonfinite: bool = False) -> Capturer:
    """What is the same for every shard of a study."""
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
            resolved.points,
            study.capture.positions,
            study.generation.max_new_tokens,
            resolved.sampling,
        ),
        batch_size=resolved.batch_size,
        dtype=resolved.stored_dtype,
        allow_nonfinite=allow_nonfinite,
        parser=study.task.parser,
        label_sites=study.labels.sites,
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
