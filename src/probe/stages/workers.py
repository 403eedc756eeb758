"""One shard of a study, in whatever process an engine has put it. Knows how a worker opens what the run prepared.

A worker finds the study and the run's settings in a file of the store, so it sees the store or says that it does not.
It checks the identity of the store against its own files of the model, renders the prompts of its rows anew, compares
their hashes with the plan's, and commits beside the writer that holds the lock. The names of rows come in and a receipt
goes out; a shard that is run twice is committed under one name. Where several processes hold the model together, all
do the same and the first of them commits.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from probe.store import GuestWriter, open_guest
from probe.store.places import open_place
from probe.store.plans import cell_of
from probe.values import Cell, PlannedRow, ProbeError

if TYPE_CHECKING:
    from probe.capture import Job, JobPlanner
    from probe.capture.planning import Planned
    from probe.engines import Ticket
    from probe.models.tensor_parallel import Ranks
    from probe.stages.shard_runs import ShardRunner

TASK = f"{__name__}:run_shard"


@dataclass(frozen=True)
class Opening:
    """Where a worker finds its work: the store, the file in it, and the sha256 of that file."""

    store: str
    file: str
    sha256: str

    @property
    def text(self) -> str:
        """The opening on one line."""
        return json.dumps(vars(self))

    def read(self) -> dict[str, Any]:
        """The work.

        Raises:
            ProbeError: this machine does not see the store as the run does.
        """
        place = open_place(self.store)
        try:
            content = place.read(self.file)
        except OSError:
            content = b""
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ProbeError(
                f"the worker on {socket.gethostname()} does not see the store at {self.store}, or not the one of this "
                "run; --store must be a folder that every worker sees under the same path, or a URL (s3://...)"
            )
        found: dict[str, Any] = json.loads(content)
        return found


def sees_store(opening: str) -> str:
    """What keeps this machine from being a worker's; empty where nothing does."""
    try:
        Opening(**json.loads(opening)).read()
    except ProbeError as error:
        return str(error)
    return ""


def row_text(row: PlannedRow) -> str:
    """A planned row as a ticket has it."""
    cell = row.cell
    return json.dumps([cell.persona, cell.case, cell.condition.changed, row.prompt_sha])


def read_row(text: str) -> tuple[Cell, str]:
    """The cell of such a text, and the hash of its prompt."""
    persona, case, condition, prompt_sha = json.loads(text)
    return cell_of({"persona": persona, "case": case, "condition": condition}), prompt_sha


def run_shard(opening: str, ticket: Ticket) -> Mapping[str, Any]:
    """Capture the rows of a ticket that nobody has committed yet; the facts of its receipt.

    Raises:
        ProbeError: the store cannot be seen or written, or the model here is not that of the run.
    """
    return _worker(opening).run(ticket)


@lru_cache(maxsize=1)
def _worker(opening: str) -> Worker:
    """The worker of this process: the model is loaded once."""
    return Worker.open(Opening(**json.loads(opening)))


@dataclass(frozen=True, eq=False)
class Worker:
    """A loaded model over a store. Without a writer it is a part of the model, and another process commits."""

    planner: JobPlanner
    planned: Planned
    keep_text: bool
    writer: GuestWriter | None
    runner: ShardRunner
    ranks: Ranks

    @classmethod
    def open(cls, opening: Opening) -> Worker:
        """Load the model and open the store as the run's file says.

        Raises:
            ProbeError: the store is not seen, or has another identity than what is found here.
        """
        from probe.engines.groups import rank
        from probe.models.readout import find_readout
        from probe.models.tensor_parallel import Ranks, own_device
        from probe.stages.preparation import manifest_of, planned_of, planner_of
        from probe.stages.resolution import resolve
        from probe.stages.running import capturer_of, facts_of, load_model, set_threads
        from probe.stages.shard_runs import ShardRunner
        from probe.study import Study

        work = opening.read()
        study = Study.from_mapping(work["study"])
        study = replace(study, model=replace(study.model, device=work["device"]))
        if (study.model.tensor_parallel or 1) > 1:
            own_device(work["device"])
        resolved = replace(resolve(study), batch_size=work["batch_size"])
        writer = open_guest(opening.store, manifest_of(resolved)) if rank() == 0 else None
        backend = load_model(resolved)
        set_threads(resolved)
        label_tokens = tuple(work["label_tokens"])
        if writer is not None:
            facts = facts_of(resolved, backend, writer, label_tokens, strict=work["strict_numerics"])
            writer.start_run({**facts, **work["told"], "host": socket.gethostname()})
        else:
            find_readout(backend, label_tokens)  # the first process does, and its forwards are those of all
        capturer = capturer_of(resolved, backend, allow_nonfinite=work["allow_nonfinite"])
        runner = ShardRunner(capturer, writer)
        ranks = Ranks(backend.facts.tensor_parallel, backend.facts.device)
        return cls(planner_of(resolved), planned_of(resolved), study.capture.keep_text, writer, runner, ranks)

    def run(self, ticket: Ticket) -> Mapping[str, Any]:
        """Capture and commit what is left of a ticket's rows."""
        jobs = self._left([self._job(text, ticket.shard) for text in ticket.rows])
        if not jobs:
            return {}
        computed = self.runner.compute(jobs, lambda rows: None)
        if self.ranks.count > 1:
            self.ranks.require_same(computed.digest, f"shard {ticket.shard}")
        if self.writer is None:
            return {}
        facts = self.runner.commit(computed)
        self.writer.pause_run()
        return facts

    def _left(self, jobs: list[Job]) -> list[Job]:
        """The jobs whose rows nobody has committed; of several processes the first one says so for all."""
        rows = [] if self.writer is None else self.writer.follow(job.row for job in jobs)
        left = {row.cell.row_id for row in rows}
        wanted = self.ranks.first_says([job.row.cell.row_id in left for job in jobs])
        return [job for job, run in zip(jobs, wanted, strict=True) if run]

    def _job(self, text: str, shard: int) -> Job:
        cell, prompt_sha = read_row(text)
        job = self.planner.job(cell, shard, planned=self.planned, keep_text=self.keep_text)
        if job.row.prompt_sha != prompt_sha:
            raise ProbeError(
                f"the worker on {socket.gethostname()} renders another prompt for {cell.persona}/{cell.case} than the "
                "plan has; install the same versions of persona-probe, transformers and tokenizers on every node"
            )
        return job
