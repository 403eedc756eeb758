"""Groups of processes: all run every ticket, the first one answers, and none goes on where another has ended."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from probe.engines import Engine, Listener, Receipt, RunRefused, Ticket, Work, supervise
from probe.engines.groups import rank, together
from probe.engines.processes import Processes, environments
from probe.values import ProbeError
from tests.engines.engine_listener import Heard
from tests.engines.group_tasks import attempts

HERE = Path(__file__).parents[2]
SOON = 60.0


@contextmanager
def one_group(folder: Path) -> Iterator[Processes]:
    """A pool of one worker, which is two processes."""
    work = together(Work("tests.engines.group_tasks:note", str(folder)), 2, threads=1)
    pool = Processes(work, [{"PYTHONPATH": os.pathsep.join(map(str, (HERE, *sys.path))), "RANK": "7"}])
    try:
        yield pool
    finally:
        pool.close()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text("utf-8")


def pids(folder: Path) -> set[int]:
    return {pid for k in (0, 1) for pid, _ in attempts(folder, k)}


def test_every_process_runs_every_ticket_and_what_the_first_says_is_the_receipt(tmp_path: Path) -> None:
    heard, told = Heard(), list[Receipt]()
    listener = Listener(lambda ticket, receipt: told.append(receipt), heard.listener.lost, heard.listener.notice)
    with one_group(tmp_path) as pool:
        supervise(pool, [Ticket(k, ("row",)) for k in range(3)], listener)
        mine = attempts(tmp_path, 0)
    assert [shard for _, shard in mine] == [shard for _, shard in attempts(tmp_path, 1)] == [0, 1, 2]
    assert len(pids(tmp_path)) == 2
    # Nothing that the engine's own variables say makes a process a part of a group: RANK was 7.
    expected = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    assert [receipt.facts for receipt in told] == [expected] * 3
    until(lambda: not any(alive(pid) for pid in pids(tmp_path)))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("die:1:x", "process 1 of the group: its process was ended by SIGKILL"),
        pytest.param("die:0:x", "its process was ended by SIGKILL", marks=pytest.mark.slow),
        ("raise:1:x", "process 1 of the group: ValueError: this row cannot be added up"),
        pytest.param("raise:0:x", "ValueError: this row cannot be added up", marks=pytest.mark.slow),
        pytest.param("store:0:x", "StoreError: the service failed 4 times", marks=pytest.mark.slow),
        pytest.param("refuse:1:x", "process 1 of the group: the disk is full", marks=pytest.mark.slow),
    ],
)
def test_where_one_process_ends_all_do_and_a_new_group_runs_the_ticket_again(
    tmp_path: Path, row: str, reason: str
) -> None:
    heard = Heard()
    with one_group(tmp_path) as pool:
        supervise(pool, [Ticket(0, ("a",)), Ticket(1, ("b", row)), Ticket(2, ("c",))], heard.listener)
        first = {attempts(tmp_path, k)[0][0] for k in (0, 1)}
        until(lambda: not any(alive(pid) for pid in first))
    assert heard.rows == sorted(["a", "b", "c", row])
    assert reason in heard.notices[0]
    assert len(heard.notices) == 1
    assert len(pids(tmp_path)) == 4


def test_a_process_that_waits_for_a_dead_one_is_ended(tmp_path: Path) -> None:
    heard = Heard()
    with one_group(tmp_path) as pool:
        supervise(pool, [Ticket(0, ("sleep:0:x", "die:1:y"))], heard.listener)
    assert len(pids(tmp_path)) == 4
    assert "exit status 70" in heard.notices[0]


def test_what_all_processes_refuse_ends_the_run(tmp_path: Path) -> None:
    with one_group(tmp_path) as pool, pytest.raises(RunRefused, match="the disk is full"):
        supervise(pool, [Ticket(0, ("refuse:0", "refuse:1")), Ticket(1, ("a",))], Heard().listener)
    assert {shard for _, shard in attempts(tmp_path, 0)} == {0}


def test_a_group_of_one_is_the_work_itself_and_this_process_is_in_none() -> None:
    work = Work("a:b", "c")
    assert together(work, 1) is work
    assert together(work, 2) != work
    assert rank() == 0


def test_a_worker_that_is_a_group_gets_a_device_and_a_part_of_the_cores_for_each_process() -> None:
    plain, four = Engine(), Engine(group=4)
    assert (plain.in_process, four.in_process) == (True, False)
    assert (plain.gpus(True), four.gpus(True), four.gpus(False)) == (1, 4, 0)
    assert (plain.cpus, plain.threads, four.cpus, four.threads) == (1, 1, 4, 1)
    eight = Engine("slurm", cpus_per_worker=8, group=4)
    assert (eight.cpus, eight.threads) == (8, 2)
    with pytest.raises(ProbeError, match="--tensor-parallel is a whole number from 1, found 0"):
        Engine(group=0)


def test_local_groups_share_cores_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = environments(2, gpus=2, cpus=8, devices=4, group=2)
    assert [each["OMP_NUM_THREADS"] for each in found] == ["4", "4"]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["0,1", "2,3"]
