"""A study on two processes of this machine, while one of them and the driver are killed; the store is that of one."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import probe
from probe.engines import Engine
from probe.store.places import open_place
from tests.engines.study_driver import content, finished, run, said, started, study
from tests.store.object_store import served

pytestmark = pytest.mark.slow
TWO = {"workers": 2}
SOON = 600.0


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def shards(store: Path) -> int:
    return len(list((store / "shards").glob("*.safetensors")))


def test_a_killed_worker_and_a_killed_driver_leave_every_row_once_and_bit_for_bit(tmp_path: Path) -> None:
    assert run(tmp_path / "alone", Engine(), 40).exit_status == 0
    store = tmp_path / "store"
    with started(store, TWO, 40) as driver:
        until(lambda: shards(store) >= 3)
        records = [json.loads(file.read_text("utf-8")) for file in (store / "runs").glob("*.json")]
        worker = next(record for record in records if "part_of" in record and record["shards"])
        os.kill(worker["pid"], signal.SIGKILL)
        before = shards(store)
        until(lambda: shards(store) >= before + 3)
        assert driver.poll() is None
        driver.kill()
    assert "ended by SIGKILL" in said(store)
    assert shards(store) < 20
    assert finished(store, TWO, 40) == 0
    assert content(store) == content(tmp_path / "alone")
    assert probe.open_store(store).verify() == []


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_every_process_and_tells_how_to_go_on(tmp_path: Path, sent: signal.Signals, status: int) -> None:
    store = tmp_path / "store"
    with started(store, TWO, 40) as driver:
        until(lambda: shards(store) >= 1)
        driver.send_signal(sent)
        assert driver.wait(SOON) == status
    saved = probe.open_store(store, warn=False).coverage().committed
    assert f"interrupted: {saved} of 80 rows are saved" in said(store)
    assert not list((store / "tmp").iterdir())
    records = [json.loads(file.read_text("utf-8")) for file in (store / "runs").glob("*.json")]
    for record in records:
        until(lambda pid=record["pid"]: not Path(f"/proc/{pid}").exists())


def test_a_case_that_always_kills_its_process_is_on_record_and_the_rest_is_captured(tmp_path: Path) -> None:
    (tmp_path / "poison").write_text(study(8).cases[5].id)
    assert finished(tmp_path / "s", TWO, 8) == 3
    opened = probe.open_store(tmp_path / "s", warn=False)
    assert (opened.coverage().committed, opened.coverage().failed) == (14, 2)
    assert set(opened.failures()["kind"]) == {"WorkerDied"}
    (tmp_path / "poison").unlink()
    assert finished(tmp_path / "s", TWO, 8) == 3  # for good, and nothing is tried again
    assert opened.verify() == []


def test_two_processes_fill_an_object_store_with_the_bytes_of_a_lone_process(tmp_path: Path) -> None:
    assert run(tmp_path / "alone", Engine(), 8).exit_status == 0
    with served() as bucket:
        url = f"{bucket}/two"
        assert run(url, Engine(**TWO), 8).exit_status == 0
        place = open_place(url)
        names = [f"{folder}/{name}".lstrip("/") for folder in ("", "plan", "shards") for name in place.list(folder)]
        found = {name: place.read(name) for name in names if name != "index.parquet"}
        assert found == content(tmp_path / "alone")
        assert not place.list("tmp")
        opened = probe.open_store(url)
        assert opened.verify() == []
        workers = [run for run in opened.runs() if "part_of" in run and run["shards"]]
        assert len(workers) == 2
        again = run(url, Engine(**TWO), 8)
        assert (again.resumed, again.committed, again.exit_status) == (16, 16, 0)
