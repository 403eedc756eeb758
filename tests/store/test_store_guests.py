"""Guests write beside the holder of the lock: the same bytes, no row twice, and nothing into a store of another run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import store_samples as samples

from probe.store import Plan, StoreLock, open_guest, open_store, open_writer
from probe.store.places_remote import open_remote
from probe.values import StoreError, StoreMismatch


def shard_bytes(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (path / "shards").iterdir()}


def fill(path: Path, plan: Plan) -> None:
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        for shard in sorted({row.shard for row in plan.rows}):
            writer.commit([samples.record(row) for row in plan.rows if row.shard == shard])


def test_guests_leave_the_bytes_of_the_holder_and_find_what_others_have_committed(tmp_path: Path) -> None:
    plan = samples.plan()
    fill(tmp_path / "alone", plan)
    with StoreLock.acquire(tmp_path / "s") as lock:
        holder = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
        holder.add_plan(plan)
        guests = [open_guest(tmp_path / "s", samples.manifest()) for _ in range(2)]
        for shard in sorted({row.shard for row in plan.rows}):
            rows = [row for row in plan.rows if row.shard == shard]
            first, second = guests[shard % 2], guests[1 - shard % 2]
            assert first.follow(rows) == tuple(rows)
            name = first.commit([samples.record(row) for row in rows])
            assert second.follow(rows) == ()
            assert second.commit([samples.record(row) for row in rows]) == name  # late, and nothing changes
        assert holder.coverage().committed == 0
        holder.refresh()
        assert holder.coverage().pending == 0
    assert shard_bytes(tmp_path / "s") == shard_bytes(tmp_path / "alone")
    assert open_store(tmp_path / "s").verify() == []


def test_a_guest_commits_only_what_it_follows(tmp_path: Path) -> None:
    plan = samples.plan()
    with StoreLock.acquire(tmp_path / "s") as lock:
        open_writer(tmp_path / "s", samples.manifest(), lock=lock).add_plan(plan)
        guest = open_guest(tmp_path / "s", samples.manifest())
        guest.follow(plan.rows[:4])
        with pytest.raises(StoreError, match="rows of the latest plan"):
            guest.commit([samples.record(plan.rows[4])])
        guest.commit([samples.record(row) for row in plan.rows[:4]])


def test_a_guest_with_another_identity_or_without_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no store"):
        open_guest(tmp_path / "s", samples.manifest())
    assert not (tmp_path / "s").exists()
    fill(tmp_path / "s", samples.plan())
    with pytest.raises(StoreMismatch, match=r"capture\.dtype"):
        open_guest(tmp_path / "s", samples.manifest(dtype="bfloat16"))


def test_a_store_that_was_begun_anew_takes_nothing_from_a_guest_of_before(tmp_path: Path) -> None:
    plan, path = samples.plan(), tmp_path / "s"
    fill(path, plan)
    guest = open_guest(path, samples.manifest())
    guest.follow(plan.rows)
    manifest = json.loads((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_text(json.dumps(manifest | {"prompt_builder": "another"}))
    before = shard_bytes(path)
    with pytest.raises(StoreError, match="was released, or taken over"):
        guest.commit([samples.record(row) for row in plan.rows[1:3]])
    (path / "manifest.json").unlink()
    with pytest.raises(StoreError, match="was released, or taken over"):
        guest.fail(plan.rows[0].cell, "WorkerDied", "why")
    assert shard_bytes(path) == before


def test_a_guest_whose_scratch_folder_a_successor_has_cleared_writes_all_the_same(tmp_path: Path) -> None:
    plan, path = samples.plan(), tmp_path / "s"
    with StoreLock.acquire(path) as lock:
        open_writer(path, samples.manifest(), lock=lock).add_plan(plan)
        guest = open_guest(path, samples.manifest())
    with StoreLock.acquire(path) as lock:  # the driver died; this is the repeated command
        open_writer(path, samples.manifest(), lock=lock).add_plan(plan)
        assert not list((path / "tmp").iterdir())
        guest.follow(plan.rows[:4])
        guest.commit([samples.record(row) for row in plan.rows[:4]])
        lock.clear_temps()
    assert not list((path / "tmp").iterdir())
    assert open_store(path, warn=False).coverage().committed == 4


def test_the_record_of_a_guest_says_that_its_work_so_far_is_done(tmp_path: Path) -> None:
    plan, path = samples.plan(), tmp_path / "s"
    with StoreLock.acquire(path) as lock:
        open_writer(path, samples.manifest(), lock=lock).add_plan(plan)
        guest = open_guest(path, samples.manifest())
        guest.start_run({"plan": plan.hash, "part_of": "x"})
        (begun,) = guest.runs()
        assert "ended" not in begun
        guest.follow(plan.rows[:4])
        guest.commit([samples.record(row) for row in plan.rows[:4]])
        guest.pause_run()
        (paused,) = guest.runs()
    assert (paused["plan"], paused["part_of"], paused["exit_status"]) == (plan.hash, "x", 0)
    assert paused["ended"] and len(paused["shards"]) == 1


def test_guests_fill_an_object_store(tmp_path: Path) -> None:
    plan, place = samples.plan(), open_remote(f"memory://guests-{tmp_path.name}")
    fill(tmp_path / "alone", plan)
    with StoreLock.acquire(place) as lock:
        open_writer(place, samples.manifest(), lock=lock).add_plan(plan)
        for shard in sorted({row.shard for row in plan.rows}):
            guest = open_guest(place, samples.manifest())
            rows = guest.follow(row for row in plan.rows if row.shard == shard)
            guest.commit([samples.record(row) for row in rows])
    assert {name: place.read(f"shards/{name}") for name in place.list("shards")} == shard_bytes(tmp_path / "alone")
