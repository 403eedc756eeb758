"""Workers as jobs of a SLURM array, through submitit, the one file that imports it. Knows jobs and their files.

A job runs a run of tickets one after the other and writes a line for each into a file of its own, so that progress is
seen while it works and it is known which ticket a dead job was at. A job that is preempted is put into the queue again
with all its tickets; those that are done are found in the store.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.engines.specs import Engine
from probe.engines.work import Crash, End, Refused, Ticket, Work, end_text, read_end, told
from probe.values import ProbeError

JOBS_PER_WORKER = 8
"""Jobs of the array for each that runs at a time: few, since each loads the model; more, so that all end together."""

TIMEOUT_MINUTES = 240
"""Of one job, unless ``timeout_min`` says another number; one that comes to it goes on as after a preemption."""

LARGEST_ARRAY = 1000
"""SLURM's own limit is 1,001 unless the cluster says otherwise."""

SCHEDULER = "cluster"
"""The parameter that names another executor of submitit: ``local`` and ``debug`` run jobs on this machine."""


class SlurmPool:
    """A :class:`~probe.engines.supervision.Pool` of jobs; made by :func:`start_slurm`.

    It has room for everything: what runs at a time is limited by the array.
    """

    def __init__(
        self,
        executor: Any,
        work: Work,
        folder: Path,
        *,
        workers: int,
        jobs: int,
        threads: int = 1,
        here: bool = False,
    ) -> None:
        self.workers = workers
        self._here = here
        self._threads = threads
        self._executor = executor
        self._work = work
        self._folder = folder
        self._most_jobs = jobs
        self._given: list[Ticket] = []
        self._jobs: list[_Job] = []

    @property
    def room(self) -> int:
        """The queue is SLURM's."""
        return 1

    def give(self, ticket: Ticket) -> None:
        """Let a ticket be submitted with the others that are given at this time."""
        self._given.append(ticket)

    def ended(self, seconds: float) -> list[tuple[Ticket, End | None]]:
        """Lines that jobs have written, and what jobs that ended have left; the time is spent where there are none."""
        if self._given:
            self._submit()
        found = [end for job in self._jobs for end in job.ended()]
        self._jobs = [job for job in self._jobs if job.left]
        if not found:
            time.sleep(seconds)
        return found

    def close(self) -> None:
        """Cancel every job."""
        for job in self._jobs:
            with suppress(OSError, RuntimeError):
                job.job.cancel(check=False)
        self._jobs.clear()

    def _submit(self) -> None:
        """One array of what was given, as equal runs of tickets."""
        size = -(-len(self._given) // self._most_jobs)
        runs = [self._given[first : first + size] for first in range(0, len(self._given), size)]
        self._given = []
        files = [str(self._folder / f"{secrets.token_hex(8)}.receipts") for _ in runs]
        batches = [Batch(self._work, tuple(run), file, self._threads) for run, file in zip(runs, files, strict=True)]
        for job, batch in zip(self._executor.submit_array(batches), batches, strict=True):
            self._jobs.append(_Job(job, batch, dict(enumerate(batch.tickets)), self._here))


@dataclass(frozen=True)
class Batch:
    """What one job does; submitit calls it, and ``checkpoint`` when the job is about to be preempted."""

    work: Work
    tickets: tuple[Ticket, ...]
    receipts: str
    threads: int = 1

    def __call__(self) -> list[str]:
        """Run the tickets in their order; the lines that were written, ``[place, end]``.

        After a refusal or an unforeseen error the rest is not begun.
        """
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))  # torch is not imported yet
        lines: list[str] = []
        with Path(self.receipts).open("a", encoding="utf-8") as file:
            for place, ticket in enumerate(self.tickets):
                end, spoilt = _attempted(self.work, ticket)
                lines.append(json.dumps([place, end_text(end)]))
                file.write(f"{lines[-1]}\n")
                file.flush()
                if spoilt:
                    break
        return lines

    def checkpoint(self) -> Any:
        """The same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(eq=False)
class _Job:
    """A job, its tickets that have not ended by their places, and how many bytes of its lines were read.

    ``here``: it runs on this machine, where what it leaves is seen at once.
    """

    job: Any
    batch: Batch
    left: dict[int, Ticket]
    here: bool = False
    read: int = 0

    def ended(self) -> list[tuple[Ticket, End | None]]:
        """Tickets that have ended since; all that are left where the job is no more."""
        over = bool(self.job.done())
        found = self._take(self._lines())
        if not over:
            return found
        if self.left and not (died := self._died()):  # lines that a shared file system shows late
            found += self._take(self.job.result())
        if self.left and died:
            first = min(self.left)
            reason = f"its job {self.job.job_id} ended without an answer ({self.job.state})"
            found.append((self.left.pop(first), Crash(reason)))
        found += [(ticket, None) for ticket in self.left.values()]
        self.left.clear()
        return found

    def _died(self) -> bool:
        """Whether the job has left no result; for one that is only seen late submitit waits 15 s."""
        if self.here and not self.job.paths.result_pickle.exists():
            return True
        return self.job.exception() is not None

    def _take(self, lines: Sequence[str]) -> list[tuple[Ticket, End | None]]:
        """What lines say of tickets that had not ended; a job that began again says some things twice."""
        found: list[tuple[Ticket, End | None]] = []
        for place, end in map(json.loads, lines):
            if place in self.left:
                found.append((self.left.pop(place), read_end(end)))
        return found

    def _lines(self) -> list[str]:
        """Whole lines that were written since."""
        try:
            content = Path(self.batch.receipts).read_bytes()[self.read :]
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self.read += len(whole)
        return whole.decode().splitlines()


def _attempted(work: Work, ticket: Ticket) -> tuple[End, bool]:
    """How a ticket ended, and whether this process must not be used again."""
    try:
        end = work.attempt(ticket)
    except Exception as error:
        return Crash(told(error)), True
    return end, isinstance(end, Refused)


def start_slurm(engine: Engine, work: Work, *, folder: Path, tickets: int, gpus: float) -> SlurmPool:
    """A pool that submits to the SLURM of this machine; ``folder`` must be one that every node sees.

    Raises:
        ProbeError: submitit is not installed, there is no SLURM here, or it does not know a parameter.
    """
    submitit = require_submitit()
    parameters = dict(engine.slurm)
    cluster = str(parameters.pop(SCHEDULER, "slurm"))
    workers = engine.workers or 1
    folder.mkdir(parents=True, exist_ok=True)
    try:
        executor = submitit.AutoExecutor(folder=folder.absolute(), cluster=cluster)
        settings = {"name": "probe", "timeout_min": TIMEOUT_MINUTES, **_resources(engine, gpus), **parameters}
        executor.update_parameters(**settings, **_array(cluster, workers))
    except (RuntimeError, ValueError, TypeError, NameError, AssertionError) as error:
        raise ProbeError(f"SLURM cannot be used as asked: {told(error)}") from error
    jobs = workers if cluster != "slurm" else min(JOBS_PER_WORKER * workers, LARGEST_ARRAY)
    return SlurmPool(
        executor,
        work,
        folder.absolute(),
        workers=workers,
        jobs=min(jobs, max(tickets, 1)),
        threads=engine.threads,
        here=cluster == "local",
    )


def require_submitit() -> Any:
    """The library.

    Raises:
        ProbeError: it is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise ProbeError('submitit is not installed; run: pip install "persona-probe[slurm]"') from error
    return submitit


def _resources(engine: Engine, gpus: float) -> dict[str, int]:
    if gpus != int(gpus):
        raise ProbeError(f"SLURM gives whole devices, found --gpus-per-worker {gpus}")
    return {"cpus_per_task": engine.cpus, **({"gpus_per_node": int(gpus)} if gpus else {})}


def _array(cluster: str, workers: int) -> Mapping[str, Any]:
    return {"slurm_array_parallelism": workers} if cluster == "slurm" else {}
