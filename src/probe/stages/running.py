"""A study's jobs over a loaded model, shard by shard into its store. Knows order, signals and what is told of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from probe.stages.absent_sites import Absent, absent_in_run
from probe.stages.committing import Committing
from probe.stages.interrupts import Interrupted, terminable
from probe.stages.shard_runs import ShardRunner, told_of_memory
from probe.store import StoreWriter
from probe.values import ModelError, ProbeError, StoreError

if TYPE_CHECKING:
    from probe.capture import Capturer, Job
    from probe.models.protocol import Backend
    from probe.stages.policy import CapturePolicy
    from probe.stages.preparation import Preparation
    from probe.stages.resolution import Resolved

SMALL_MODEL_BYTES = 32 * 2**20


def run_jobs(
    preparation: Preparation, backend: Backend, writer: StoreWriter, jobs: list[Job], policy: CapturePolicy
) -> Absent:
    """Run the jobs shard by shard in this process; each is committed, in order, while the next one computes.

    Returns how many rows lack an answer site.
    """
    from probe.engines import run_local

    resolved = preparation.resolved
    shards = [list(group) for _, group in groupby(jobs, key=lambda job: job.row.shard)]
    runner = ShardRunner(capturer_of(resolved, backend, allow_nonfinite=policy.allow_nonfinite), writer)
    total, told = len(preparation.cells.rows), list[dict[str, Any]]()
    with threads_for(resolved):
        facts = facts_of(resolved, backend, writer, preparation.label_tokens, strict=policy.strict_numerics)
        with terminable() as interrupts, recorded(writer, facts), Committing(interrupts) as committing:

            def work(shard: list[Job], on_rows: Callable[[int], None]) -> None:
                def advance(rows: int) -> None:
                    committing.check()  # a disk that is full ends the run now, not after this shard
                    on_rows(rows)

                computed = runner.compute(shard, advance)
                if said := told_of_memory(computed.result.batches):
                    notice(said)
                committing.give(lambda: told.append(runner.commit(computed)))

            run_local(shards, work, total=total, done=total - len(jobs))
    return absent_in_run({"shards": told})


def facts_of(
    resolved: Resolved, backend: Backend, writer: StoreWriter, label_tokens: Sequence[int], *, strict: bool
) -> dict[str, Any]:
    """What the record of a run says of the process that computes; the store has its readout after this.

    Raises:
        StoreMismatch: ``strict``, and the last rows of the store were captured under other numerics.
    """
    from probe.stages.numerics import require_same, run_facts, what_moved

    facts = run_facts(resolved, backend)
    moved = what_moved(writer.runs(), facts)
    if strict:
        require_same(moved, writer.place.url)
    elif moved:
        notice(f"captured before under other numerics: {'; '.join(moved)}; low bits may differ (it is recorded)")
    _write_readout(backend, writer, label_tokens)
    return {**facts, "numerics_moved": moved, "readout": writer.has_readout}


@contextmanager
def recorded(writer: StoreWriter, facts: Mapping[str, Any]) -> Iterator[None]:
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


def notice(text: str) -> None:
    """One line on standard error, beside a progress bar."""
    tqdm.write(f"probe: {text}", file=sys.stderr)


def _write_readout(backend: Backend, writer: StoreWriter, label_tokens: Sequence[int]) -> None:
    """What a label lens needs without the model, for the tokens of the store's labels."""
    from probe.models.readout import find_readout

    if writer.has_readout and backend.facts.tensor_parallel == 1:
        return
    readout = find_readout(backend, label_tokens)  # of a divided model every process asks, whatever the store holds
    if readout is not None and not writer.has_readout:
        writer.write_readout(readout.tensors(), readout.metadata())


def load_model(resolved: Resolved) -> Backend:
    """The model of a study, checked, with every stream that is asked for.

    Raises:
        ModelError: it does not load, or lacks a stream.
    """
    from probe.models.loading import load_backend
    from probe.models.spread import Spread

    model = resolved.study.model
    backend = load_backend(
        resolved.source,
        backend=model.backend,
        dtype=resolved.compute_dtype,
        device=model.device,
        attention=model.attn_implementation,
        remote=model.remote,
        spread=Spread(model.device_map, model.tensor_parallel),
    )
    if laid := backend.facts.device_map:
        notice(laid.told)
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
def threads_for(resolved: Resolved) -> Iterator[None]:
    """One thread for a model so small that threads would wait for each other longer than they work."""
    import torch

    before = torch.get_num_threads()
    set_threads(resolved)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_threads(resolved: Resolved) -> None:
    """The same, for good: in a process that does nothing else."""
    import torch

    if resolved.weight_bytes < SMALL_MODEL_BYTES:
        torch.set_num_threads(1)
