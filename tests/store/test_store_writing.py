"""A row reported as saved is saved: kills, full disks, two writers, a reader beside them."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import store_samples as samples
from store_processes import HERE, end, start_writer

from probe.store import StoreLock, open_store, open_writer
from probe.store.places import LocalPlace
from probe.values import (
    DiskFull,
    StoreBusy,
    StoreError,
)

DIES = """
import os, pathlib, signal, sys
import store_writer
from probe.store.places import LocalPlace

write = LocalPlace.write

def dies(place, name, parts, **options):
    if not name.startswith("shards/"):
        return write(place, name, parts, **options)
    if sys.argv[2] == "after":
        write(place, name, parts, **options)
    os.kill(os.getpid(), signal.SIGKILL)

LocalPlace.write = dies
store_writer.main(pathlib.Path(sys.argv[1]), 4, 0.0, print)
"""
"""A writer that is killed right before or right after its first shard stands."""


def test_a_writer_killed_at_any_moment_and_run_again_ends_with_the_bytes_of_an_undisturbed_one(tmp_path):
    n_cases, path, moments = 300, tmp_path / "killed", random.Random(1)
    acknowledged, interrupted = set(), 0
    for _ in range(8):
        writer = start_writer(path, n_cases)
        assert writer.stdout is not None
        acknowledged |= {writer.stdout.readline().strip() for _ in range(moments.randrange(9))}
        time.sleep(moments.uniform(0.0, 0.01))
        writer.kill()
        acknowledged |= set(writer.communicate()[0].split())
        interrupted += writer.returncode == -signal.SIGKILL
        store = open_store(path)
        assert acknowledged <= {shard.path.stem for shard in store.shards}
        assert store.verify() == []
    before = len(open_store(path).shards)
    for final in (path, tmp_path / "whole"):
        assert end(start_writer(final, n_cases)) == 0
    assert interrupted >= 6
    assert 0 < before < n_cases // 2
    assert not list((path / "tmp").iterdir())
    shards = [{file.name: file.read_bytes() for file in (p / "shards").iterdir()} for p in (path, tmp_path / "whole")]
    assert shards[0] == shards[1]
    assert len(shards[0]) == n_cases // 2
    assert open_store(path).coverage().committed == n_cases


def test_a_second_writer_is_refused_by_name_and_the_first_is_not_disturbed(tmp_path):
    first = start_writer(tmp_path / "s", 40, 0.02)
    with pytest.raises(StoreBusy, match=f"pid {first.pid} on ") as caught:
        StoreLock.acquire(tmp_path / "s")
    assert caught.value.exit_status == 5
    assert end(first) == 0
    assert open_store(tmp_path / "s").coverage().committed == 40
    with StoreLock.acquire(tmp_path / "s"):
        pass


def test_a_released_lock_writes_no_more(tmp_path):
    plan = samples.plan()
    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
        writer.add_plan(plan)
    with pytest.raises(StoreError, match="released"):
        writer.commit([samples.record(plan.rows[0])])
    with pytest.raises(StoreError, match="StoreLock"):
        open_writer(tmp_path / "s", samples.manifest(), lock=lock)


def test_a_full_disk_leaves_no_partial_file_and_the_same_commit_succeeds_once_there_is_space(tmp_path, monkeypatch):
    plan, real = samples.plan(), os.write
    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
        writer.add_plan(plan)
        writer.commit([samples.record(row) for row in plan.rows[:4]])
        before, written = samples.content(tmp_path / "s"), []

        def full(descriptor: int, part: memoryview) -> int:
            if len(written) > 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(part)
            return real(descriptor, part[:1000])  # short writes are legal

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(
                DiskFull, match=r"needs ~.* free at .*; 4 rows are safe; .* run the same command"
            ) as caught:
                writer.commit([samples.record(row) for row in plan.rows[4:8]])
        assert caught.value.exit_status == 4
        assert len(written) == 4
        assert samples.content(tmp_path / "s") == before
        writer.commit([samples.record(row) for row in plan.rows[4:8]])
    assert open_store(tmp_path / "s").verify() == []
    assert len(open_store(tmp_path / "s", warn=False).table()) == 8


def test_a_write_that_the_kernel_cuts_short_is_refused_like_a_full_disk(tmp_path):
    plan, (soft, hard) = samples.plan(), resource.getrlimit(resource.RLIMIT_FSIZE)
    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
        writer.add_plan(plan)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        try:
            with pytest.raises(DiskFull, match="0 rows are safe"):
                writer.commit([samples.record(row) for row in plan.rows])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not [*(tmp_path / "s" / "shards").iterdir(), *(tmp_path / "s" / "tmp").iterdir()]


def test_a_commit_is_file_fsync_then_rename_then_directory_fsync(tmp_path, monkeypatch):
    plan, calls = samples.plan(), []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        calls.append(("fsync directory" if stat.S_ISDIR(status.st_mode) else "fsync file", status.st_ino))
        fsync(descriptor)

    def traced_replace(source: Path, target: Path) -> None:
        calls.append(("rename", source.stat().st_ino))
        replace(source, target)

    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
        writer.add_plan(plan)
        monkeypatch.setattr(os, "fsync", traced_fsync)
        monkeypatch.setattr(os, "replace", traced_replace)
        name = writer.commit([samples.record(row) for row in plan.rows])
    shards = tmp_path / "s" / "shards"
    file = (shards / f"{name}.safetensors").stat().st_ino
    assert calls == [("fsync file", file), ("rename", file), ("fsync directory", shards.stat().st_ino)]


def test_names_that_a_killed_writer_left_are_made_durable_before_they_count(tmp_path, monkeypatch):
    path, plan = tmp_path / "s", samples.plan()
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        with monkeypatch.context() as patch:
            patch.setattr("probe.store.files.fsync_directory", lambda folder: None)  # it is killed before that
            writer.commit([samples.record(row) for row in plan.rows])
    synced, fsync = set(), os.fsync

    def traced(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    with StoreLock.acquire(path) as lock:
        monkeypatch.setattr(os, "fsync", traced)
        writer = open_writer(path, samples.manifest(), lock=lock)
        before = set(synced)
        assert writer.add_plan(plan).committed == len(plan.rows)
    assert {(path / name).stat().st_ino for name in ("shards", "plan", "failures", "runs", ".")} <= before


def test_files_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        with StoreLock.acquire(tmp_path / "s") as lock:
            writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
            writer.add_plan(samples.plan())
            writer.commit([samples.record(samples.plan().rows[0])])
            writer.start_run({})
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "s").rglob("*") if file.is_file()}
    assert modes == {0o640}


def test_a_reader_beside_a_writer_sees_only_whole_rows_and_their_number_only_grows(tmp_path):
    path = tmp_path / "s"
    writer, counts = start_writer(path, 120, 0.005), [0]
    planned = {row.cell.row_id: row for row in samples.plan(("nurse",), 120).rows}
    while writer.poll() is None:
        view = open_store(path, warn=False).select()
        counts.append(len(view))
        resid = view.resid(layer=1, position="prompt_end").numpy() if len(view) else np.empty((0, 2048))
        for row_id, found in list(zip(view.table().row_id, resid, strict=True))[-4:]:
            record = samples.record(planned[row_id], layers=3, d_model=2048)
            np.testing.assert_array_equal(found, record.resid["prompt_end"][1])
    assert end(writer) == 0
    assert counts == sorted(counts)
    assert len(set(counts)) >= 4
    assert len(open_store(path).table()) == 120


def test_an_open_store_is_a_snapshot_until_it_is_refreshed(tmp_path):
    plan = samples.plan()
    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
        writer.add_plan(plan)
        writer.commit([samples.record(row) for row in plan.rows[:4]])
        store = open_store(tmp_path / "s", warn=False)
        writer.commit([samples.record(row) for row in plan.rows[4:]])
    assert len(store.table()) == 4
    assert len(store.refresh().table()) == 12


def test_a_run_record_tells_what_an_invocation_committed_also_when_it_was_killed(tmp_path):
    writer = start_writer(tmp_path / "s", 60, 0.01)
    assert writer.stdout is not None
    first = writer.stdout.readline().strip()
    writer.kill()
    end(writer)
    assert end(start_writer(tmp_path / "s", 60)) == 0
    killed, ended = open_store(tmp_path / "s").runs()
    assert "ended" not in killed
    assert killed["shards"][0]["name"] == first
    assert ended["exit_status"] == 0
    assert ended["started"] < ended["ended"]
    named = {shard["name"] for run in (killed, ended) for shard in run["shards"]}
    assert {shard.path.stem for shard in open_store(tmp_path / "s").shards} <= named


@pytest.mark.parametrize(("moment", "standing", "made_by"), [("before", 0, 2), ("after", 1, 1)])
def test_a_shard_stands_under_the_run_that_made_it_whenever_its_writer_is_killed(tmp_path, moment, standing, made_by):
    writer = subprocess.run([sys.executable, "-c", DIES, tmp_path / "s", moment], cwd=HERE, check=False, timeout=60)
    assert writer.returncode == -signal.SIGKILL
    store = open_store(tmp_path / "s", warn=False)
    (killed,) = store.runs()
    (told,) = killed["shards"]
    assert [shard.path.stem for shard in store.shards] == [told["name"]] * standing
    assert list(store.provenance()["runs"]) == [(killed["id"],)] * 2 * standing
    assert end(start_writer(tmp_path / "s", 4)) == 0
    runs = open_store(tmp_path / "s").provenance()["runs"]
    assert [len(of) for of in runs] == [made_by, made_by, 1, 1]  # killed before, it is made once more


def test_a_shard_that_could_not_be_written_is_not_in_the_record_of_its_run(tmp_path, monkeypatch):
    plan, write = samples.plan(), LocalPlace.write

    def full(place, name, parts, **options):
        if name.startswith("shards/"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(place, name, parts, **options)

    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
        writer.add_plan(plan)
        writer.start_run({})
        first = writer.commit([samples.record(row) for row in plan.rows[:4]])
        with monkeypatch.context() as patch, pytest.raises(DiskFull):
            patch.setattr(LocalPlace, "write", full)
            writer.commit([samples.record(row) for row in plan.rows[4:8]])
        writer.finish_run(4)
        assert [shard["name"] for shard in writer.runs()[0]["shards"]] == [first]
