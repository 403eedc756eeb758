"""A study as jobs of submitit's local executor, and what is made of jobs that die, wait or begin again."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import probe
from probe.engines import Engine, Receipt, Ticket, Work, supervise
from probe.engines.slurm import Batch, SlurmPool, start_slurm
from probe.engines.work import Crash, Refused, end_text
from probe.values import ProbeError
from tests.engines.engine_listener import Heard
from tests.engines.engine_tasks import attempts
from tests.engines.study_driver import content, environment, finished, run, started, study

NOTE = "tests.engines.engine_tasks:note"


@dataclass
class FakeJob:
    """A job that has written some lines and then ended, or not."""

    batch: Batch
    lines: int
    over: bool = True
    error: Exception | None = None
    job_id: str = "7_0"
    state: str = "NODE_FAIL"
    cancelled: bool = False

    def done(self) -> bool:
        return self.over

    def exception(self) -> Exception | None:
        return self.error

    def result(self) -> list[str]:
        return [json.dumps([place, end_text(Receipt())]) for place in range(len(self.batch.tickets))]

    def cancel(self, check: bool = True) -> None:
        self.cancelled = True

    def write(self, repeat: int = 1) -> None:
        lines = self.result()[: self.lines]
        with Path(self.batch.receipts).open("a", encoding="utf-8") as file:
            for _ in range(repeat):
                file.writelines(f"{line}\n" for line in lines)


@dataclass
class FakeExecutor:
    jobs: list[FakeJob]
    arrays: list[int]
    fate: dict[str, Any]

    def submit_array(self, batches: list[Batch]) -> list[FakeJob]:
        self.arrays.append(len(batches))
        made = [FakeJob(batch, **self.fate) for batch in batches]
        self.jobs += made
        return made


def pool(folder: Path, jobs: int = 2, **fate: Any) -> tuple[SlurmPool, FakeExecutor]:
    executor = FakeExecutor([], [], fate)
    return SlurmPool(executor, Work(NOTE, str(folder)), folder, workers=2, jobs=jobs), executor


def tickets(n: int) -> list[Ticket]:
    return [Ticket(k, (f"{k}",)) for k in range(n)]


def test_what_is_given_is_one_array_of_equal_runs_and_lines_count_while_jobs_still_work(tmp_path: Path) -> None:
    some, executor = pool(tmp_path, jobs=3, lines=1, over=False)
    for ticket in tickets(8):
        some.give(ticket)
    assert some.ended(0) == []
    assert executor.arrays == [3]
    assert [len(job.batch.tickets) for job in executor.jobs] == [3, 3, 2]
    executor.jobs[1].write(repeat=2)  # put into the queue again, it says the same once more
    assert some.ended(0) == [(tickets(8)[3], Receipt())]
    assert some.ended(0) == []
    some.close()
    assert all(job.cancelled for job in executor.jobs)


def test_a_job_that_dies_costs_its_next_ticket_a_try_and_the_others_none(tmp_path: Path) -> None:
    some, executor = pool(tmp_path, jobs=1, lines=2, error=RuntimeError("gone"))
    for ticket in tickets(5):
        some.give(ticket)
    some._submit()
    executor.jobs[0].write()
    ended = some.ended(0)
    crash = Crash("its job 7_0 ended without an answer (NODE_FAIL)")
    assert [end for _, end in ended] == [Receipt(), Receipt(), crash, None, None]
    assert [ticket for ticket, _ in ended] == tickets(5)


def test_lines_that_a_shared_folder_shows_late_are_taken_from_the_result(tmp_path: Path) -> None:
    some, executor = pool(tmp_path, jobs=1, lines=1)
    for ticket in tickets(3):
        some.give(ticket)
    some._submit()
    executor.jobs[0].write()
    assert some.ended(0) == [(ticket, Receipt()) for ticket in tickets(3)]


@pytest.mark.parametrize(("row", "end"), [("raise", Crash), ("refuse", Refused)])
def test_a_job_writes_a_line_for_each_ticket_and_begins_nothing_after_one_that_spoils_it(
    tmp_path: Path, row: str, end: type
) -> None:
    given = (Ticket(0, ("a",)), Ticket(1, (row,)), Ticket(2, ("b",)))
    batch = Batch(Work(NOTE, str(tmp_path)), given, str(tmp_path / "lines"))
    lines = batch()
    assert lines == (tmp_path / "lines").read_text("utf-8").splitlines()
    kinds = [json.loads(json.loads(line)[1])[0] for line in lines]
    assert kinds == ["receipt", end.__name__.lower()]
    assert [rows for _, _, rows in attempts(tmp_path)] == [["a"], [row]]


def test_parameters_that_submitit_does_not_know_and_parts_of_devices_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    work = Work(NOTE, str(tmp_path))
    for parameters, gpus, said in (
        ({"cluster": "local", "slurm_partitoin": "gpu"}, 0.0, "SLURM cannot be used as asked: .*slurm_partitoin"),
        ({"cluster": "nowhere"}, 0.0, "SLURM cannot be used as asked: .*nowhere"),
        ({"cluster": "local"}, 0.5, "SLURM gives whole devices"),
    ):
        engine = Engine("slurm", slurm=parameters)
        with pytest.raises(ProbeError, match=said):
            start_slurm(engine, work, folder=tmp_path / "jobs", tickets=1, gpus=gpus)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_jobs_of_submitit_run_tickets_and_a_row_that_kills_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    heard, given = Heard(), [Ticket(0, ("a",)), Ticket(1, ("b", "die")), Ticket(2, ("c",)), Ticket(3, ("d",))]
    engine = Engine("slurm", workers=2, slurm={"cluster": "local"})
    some = start_slurm(engine, Work(NOTE, str(tmp_path)), folder=tmp_path / "jobs", tickets=4, gpus=0)
    try:
        supervise(some, given, heard.listener)
    finally:
        some.close()
    assert heard.rows == ["a", "b", "c", "d"]
    assert [ticket.rows for ticket, _, _ in heard.lost] == [("die",)]


@pytest.mark.slow
def test_a_study_run_as_jobs_leaves_the_store_of_one_process_and_a_killed_driver_changes_nothing(
    tmp_path: Path,
) -> None:
    pytest.importorskip("submitit")
    assert run(tmp_path / "alone", Engine(), 20).exit_status == 0
    store, engine = tmp_path / "store", {"name": "slurm", "workers": 2, "slurm": {"cluster": "local"}}
    with started(store, engine, 20) as driver:
        while not list((store / "shards").glob("*.safetensors")) and driver.poll() is None:
            time.sleep(0.01)
        driver.kill()
    assert finished(store, engine, 20) == 0
    assert content(store) == content(tmp_path / "alone")
    assert probe.open_store(store).verify() == []


@pytest.mark.slow
def test_a_poison_case_is_on_record_after_its_jobs_have_died(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    (tmp_path / "poison").write_text(study(4).cases[1].id)
    engine = {"name": "slurm", "workers": 1, "slurm": {"cluster": "local"}}
    assert finished(tmp_path / "s", engine, 4) == 3
    opened = probe.open_store(tmp_path / "s", warn=False)
    assert (opened.coverage().committed, opened.coverage().failed) == (6, 2)
