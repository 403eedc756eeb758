"""Worker processes of this machine: they answer, die and are replaced; none outlives the one who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from probe.engines import Receipt, RunRefused, Ticket, Work, supervise
from probe.engines.processes import Processes, environments
from tests.engines.engine_listener import Heard
from tests.engines.engine_tasks import attempts

HERE = Path(__file__).parents[2]
SOON = 60.0


@contextmanager
def processes(folder: Path, n: int = 2) -> Iterator[Processes]:
    own = {"PYTHONPATH": os.pathsep.join(map(str, (HERE, *sys.path)))}
    pool = Processes(Work("tests.engines.engine_tasks:note", str(folder)), [own] * n)
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
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text("utf-8")


def test_two_processes_share_the_tickets_and_each_is_kept_for_the_next_one(tmp_path: Path) -> None:
    heard, given = Heard(), [Ticket(k, ("wait:go",) if k < 2 else (f"{k}", "print")) for k in range(8)]
    with processes(tmp_path) as pool:
        for ticket in given[:2]:
            pool.give(ticket)
        assert pool.room == 0
        until(lambda: len(attempts(tmp_path)) == 2)
        (tmp_path / "go").touch()
        ended = []
        while len(ended) < 2:
            ended += pool.ended(1)
        assert all(isinstance(end, Receipt) for _, end in ended)
        supervise(pool, given[2:], heard.listener)
        assert len({pid for pid, _, _ in attempts(tmp_path)}) == 2
    assert len(attempts(tmp_path)) == 8
    assert sorted(ticket.shard for ticket in heard.receipts) == [*range(2, 8)]


def test_a_process_that_is_killed_is_replaced_and_its_ticket_is_run_again(tmp_path: Path) -> None:
    heard = Heard()
    with processes(tmp_path) as pool:
        supervise(pool, [Ticket(0, ("a", "once:x")), Ticket(1, ("b",)), Ticket(2, ("c",))], heard.listener)
    assert heard.rows == ["a", "b", "c", "once:x"]
    assert "SIGKILL" in heard.notices[0]
    assert len({pid for pid, _, _ in attempts(tmp_path)}) in (2, 3)


@pytest.mark.parametrize(("row", "reason"), [("die", "SIGKILL"), ("raise", "ValueError: this row cannot be added up")])
def test_a_row_that_always_ends_its_process_is_lost_alone_with_its_reason(
    tmp_path: Path, row: str, reason: str
) -> None:
    heard = Heard()
    with processes(tmp_path) as pool:
        supervise(pool, [Ticket(0, ("a", row, "b")), Ticket(1, ("c",))], heard.listener)
    assert heard.rows == ["a", "b", "c"]
    ((lost, deaths, said),) = heard.lost
    assert lost.rows == (row,)
    assert deaths == sum(row in rows for _, _, rows in attempts(tmp_path))
    assert reason in said


def test_a_refusal_ends_the_run_and_a_service_that_fails_does_not(tmp_path: Path) -> None:
    with processes(tmp_path) as pool, pytest.raises(RunRefused, match="the disk is full") as refused:
        supervise(pool, [Ticket(0, ("refuse",))], Heard().listener)
    assert refused.value.exit_status == 4
    heard = Heard()
    with processes(tmp_path) as pool:
        supervise(pool, [Ticket(0, ("store",)), Ticket(1, ("a",))], heard.listener)
    assert heard.lost[0][2] == "the service failed 4 times"


def test_closing_ends_processes_at_work(tmp_path: Path) -> None:
    with processes(tmp_path) as pool:
        pool.give(Ticket(0, ("sleep:600",)))
        until(lambda: attempts(tmp_path))
        (pid,) = pool.pids
        assert alive(pid)
    assert not alive(pid)


def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom probe.engines import Ticket, Work\nfrom probe.engines.processes import Processes\n"
        "pool = Processes(Work('tests.engines.engine_tasks:note', sys.argv[1]), [{}])\n"
        "pool.give(Ticket(0, ('sleep:600',)))\n"
        "while True: pool.ended(1)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE, *sys.path)))}
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    until(lambda: attempts(tmp_path))
    ((pid, _, _),) = attempts(tmp_path)
    assert alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not alive(pid))


def test_workers_share_cores_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environments(3, gpus=0, cpus=None, devices=0) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert environments(1, gpus=0, cpus=5, devices=0) == [{"OMP_NUM_THREADS": "5"}]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert environments(2, gpus=0, cpus=None, devices=0) == [{}, {}]

    def visible(workers: int, gpus: float) -> list[str]:
        own = environments(workers, gpus=gpus, cpus=None, devices=4)
        return [variables["CUDA_VISIBLE_DEVICES"] for variables in own]

    assert visible(4, 1) == ["0", "1", "2", "3"]
    assert visible(2, 2) == ["0,1", "2,3"]
    assert visible(4, 0.5) == ["0", "0", "1", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert visible(2, 1) == ["5", "7"]
