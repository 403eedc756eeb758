"""Two Ray nodes run a study while workers, a node and the driver are killed; the store is that of one process."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import probe
from probe.engines import Engine, RunRefused, Ticket, Work, supervise
from probe.engines.ray_cluster import start_ray
from tests.engines.engine_listener import Heard
from tests.engines.engine_tasks import attempts
from tests.engines.study_driver import HELD, content, environment, finished, run, said, started, study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]
ray = pytest.importorskip("ray")
NOTE = "tests.engines.engine_tasks:note"
SOON = 600.0
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_worker_niceness": "0",  # by default workers give way to whatever else the machine does
}


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes with a core each, on this machine."""
    from ray.cluster_utils import Cluster

    for name, value in environment(**RAY_SETTINGS).items():
        monkeypatch.setenv(name, value)
    nodes = Cluster()
    try:
        nodes.add_node(num_cpus=1, include_dashboard=False)
        nodes.add_node(num_cpus=1)
        yield nodes
    finally:
        if ray.is_initialized():
            ray.shutdown()
        nodes.shutdown()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("alone") / "store"
    assert run(store, Engine()).exit_status == 0
    return store


def shards(store: Path) -> int:
    return len(list((store / "shards").glob("*.safetensors")))


def workers_of(store: Path) -> list[int]:
    """The processes that have committed something, by the records that they keep."""
    records = [json.loads(file.read_text("utf-8")) for file in (store / "runs").glob("*.json")]
    return [int(record["pid"]) for record in records if "part_of" in record and record["shards"]]


def test_a_killed_worker_a_lost_node_and_a_killed_driver_leave_every_row_once_and_bit_for_bit(
    cluster: Any, alone: Path, tmp_path: Path
) -> None:
    store, engine = tmp_path / "store", {"name": "ray", "workers": 2, "address": cluster.address}
    hold = tmp_path / "hold"
    hold.touch()
    with started(store, engine) as driver:
        until(lambda: shards(store) >= 4)
        os.kill(workers_of(store)[0], signal.SIGKILL)
        until(lambda: len(list(tmp_path.glob("held-*"))) == 2)  # a shard is in flight on either node
        before = shards(store)
        assert HELD - 1 <= before <= HELD  # the shard of the dead comes after those that are fresh
        assert said(store).count("it is run again (1 of 3)") == 1
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
        until(lambda: said(store).count("it is run again (1 of 3)") == 2)
        hold.unlink()
        until(lambda: shards(store) >= before + 4)
        assert driver.poll() is None
        driver.kill()
    assert shards(store) < 40
    assert finished(store, engine) == 0
    assert content(store) == content(alone)
    opened = probe.open_store(store)
    assert opened.coverage().committed == 160
    assert opened.verify() == []


def test_a_case_that_always_kills_its_worker_is_on_record_and_the_rest_is_captured(
    cluster: Any, tmp_path: Path
) -> None:
    poison = study(8).cases[5].id
    (tmp_path / "poison").write_text(poison)
    engine = {"name": "ray", "workers": 2, "address": cluster.address}
    assert finished(tmp_path / "store", engine, 8) == 3
    opened = probe.open_store(tmp_path / "store", warn=False)
    assert (opened.coverage().committed, opened.coverage().failed) == (14, 2)
    failures = opened.failures()
    assert set(failures["case"]) == {poison}
    assert set(failures["kind"]) == {"WorkerDied"}


def test_the_pool_replaces_its_dead_and_finds_the_row_that_kills(cluster: Any, tmp_path: Path) -> None:
    heard, given = (
        Heard(),
        [Ticket(0, ("a", "die", "b")), Ticket(1, ("once:x", "c")), *(Ticket(k, (f"{k}",)) for k in range(2, 9))],
    )
    pool = start_ray(
        Engine("ray", address=cluster.address), Work(NOTE, str(tmp_path)), tickets=9, gpus=0, check=lambda: ""
    )
    try:
        supervise(pool, given, heard.listener)
    finally:
        pool.close()
    assert sorted([*heard.rows, "die"]) == sorted(row for ticket in given for row in ticket.rows)
    assert [ticket.rows for ticket, _, _ in heard.lost] == [("die",)]
    assert len({pid for pid, _, _ in attempts(tmp_path)}) > 2
    assert not ray.is_initialized()


def test_a_node_that_does_not_see_the_store_and_a_cluster_without_room_are_refused(
    cluster: Any, tmp_path: Path
) -> None:
    engine, work = Engine("ray", address=cluster.address), Work(NOTE, str(tmp_path))
    with pytest.raises(RunRefused, match=r"node .*: does not see it"):
        start_ray(engine, work, tickets=1, gpus=0, check=lambda: "does not see it")
    with pytest.raises(
        probe.ProbeError, match="a worker needs 1 CPUs and 1 GPUs on one node, and the Ray cluster has 2 CPUs and 0"
    ):
        start_ray(engine, work, tickets=1, gpus=1, check=lambda: "")
    with pytest.raises(probe.ProbeError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        start_ray(Engine("ray", address="127.0.0.1:1"), work, tickets=1, gpus=0, check=lambda: "")
