"""Shards are written while the next one computes: in order, one at a time, and nothing is lost or hidden by it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import probe
from probe.stages.capture import capture
from probe.stages.committing import Committing
from probe.stages.interrupts import Interrupts
from probe.store import StoreWriter
from probe.study import Study
from probe.values import DiskFull

SOON = 10.0


def test_a_commit_runs_while_its_giver_goes_on_and_the_next_one_waits_for_it() -> None:
    order: list[str] = []
    go_on, waiting = threading.Event(), threading.Event()

    def first() -> None:
        assert go_on.wait(SOON)
        order.append("first")

    def give_second() -> None:
        waiting.set()
        committing.give(lambda: order.append("second"))

    with Committing(Interrupts()) as committing:
        committing.give(first)
        order.append("computed beside it")
        giver = threading.Thread(target=give_second)
        giver.start()
        assert waiting.wait(SOON)
        giver.join(0.05)
        assert giver.is_alive()  # at most one shard waits beside the one that computes
        go_on.set()
        giver.join(SOON)
    assert order == ["computed beside it", "first", "second"]


def test_a_failed_commit_is_raised_at_the_next_check_and_nothing_is_begun_after_it() -> None:
    begun: list[int] = []

    def full() -> None:
        raise DiskFull("the disk is full")

    with pytest.raises(DiskFull), Committing(Interrupts()) as committing:
        committing.give(full)
        with pytest.raises(DiskFull):
            committing.give(lambda: begun.append(1))
        with pytest.raises(DiskFull):
            committing.check()
    assert not begun
    with Committing(Interrupts()) as committing:  # the control
        committing.give(lambda: begun.append(2))
        committing.check()
    assert begun == [2]


def test_whatever_ends_the_run_waits_for_the_commit_that_is_under_way() -> None:
    done: list[int] = []
    go_on = threading.Event()

    def slow() -> None:
        assert go_on.wait(SOON)
        done.append(1)

    with pytest.raises(KeyboardInterrupt), Committing(Interrupts()) as committing:
        committing.give(slow)
        threading.Timer(0.05, go_on.set).start()
        raise KeyboardInterrupt
    assert done == [1]


def study(**settings: Any) -> Study:
    return Study.from_mapping(
        {
            "name": "overlap",
            "model": {"id": "organism"},
            "personas": "builtin:persona-paradox",
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "limit": 8,
            "capture": {"batch_size": 8},
            "generation": {"max_new_tokens": 2},
            **settings,
        }
    )


@pytest.fixture
def shards_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probe.stages.preparation.SHARD_ROWS", 8)


@pytest.mark.usefixtures("shards_of_eight")
def test_a_disk_that_fills_at_the_third_shard_ends_the_run_with_two_shards_safe_and_the_next_run_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, commits = StoreWriter.commit, []

    def commit(self: StoreWriter, records: Any, facts: Any = None) -> str:
        commits.append([record.cell.case for record in records])
        if len(commits) == 3:
            raise DiskFull("the disk is full")
        return usual(self, records, facts)

    monkeypatch.setattr(StoreWriter, "commit", commit)
    with pytest.raises(DiskFull) as ended:
        capture(study(), store=tmp_path / "s")
    assert ended.value.exit_status == 4
    assert len(commits) == 3
    store = probe.open_store(tmp_path / "s", warn=False)
    assert len(store.select()) == 16
    assert store.runs()[-1]["exit_status"] == 4
    monkeypatch.undo()
    monkeypatch.setattr("probe.stages.preparation.SHARD_ROWS", 8)
    done = capture(study(), store=tmp_path / "s")
    assert (done.resumed, done.committed) == (16, done.planned)


@pytest.mark.usefixtures("shards_of_eight")
def test_shards_are_committed_in_the_order_of_the_plan(tmp_path: Path) -> None:
    outcome = capture(study(), store=tmp_path / "s")
    (run,) = probe.open_store(tmp_path / "s").runs()
    numbers = [shard["shard"] for shard in run["shards"]]
    assert numbers == list(range(outcome.planned // 8))
