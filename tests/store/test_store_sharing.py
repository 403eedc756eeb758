"""Several writers fill one store, one writer of each share; where a file system has no locks, leases keep order."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import store_samples as samples
from store_processes import run_python

from probe.store import Plan, Share, StoreLock, locks, open_store, open_writer
from probe.store.leases import STALE_SECONDS, Lease
from probe.store.places_remote import RemotePlace, open_remote
from probe.values import DiskFull, ProbeError, StoreBusy, StoreError


def commit_pending(path: Path, plan: Plan, share: Share | None = None) -> list[str]:
    with StoreLock.acquire(path, share) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        pending = writer.pending()
        shards = sorted({row.shard for row in pending})
        return [writer.commit([samples.record(row) for row in pending if row.shard == shard]) for shard in shards]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_writers_that_share_a_store_leave_the_bytes_of_a_lone_one_and_no_row_twice(tmp_path, count):
    plan = samples.plan(n_cases=10)
    alone = commit_pending(tmp_path / "alone", plan)
    names = [commit_pending(tmp_path / "shared", plan, Share(i, count)) for i in range(count)]
    assert max(map(len, names)) - min(map(len, names)) <= 1
    assert sorted(name for own in names for name in own) == sorted(alone)
    one, other = ({f.name: f.read_bytes() for f in (tmp_path / n / "shards").iterdir()} for n in ("alone", "shared"))
    assert one == other
    assert open_store(tmp_path / "shared").coverage().pending == 0
    assert open_store(tmp_path / "shared").verify() == []


def test_every_share_may_write_beside_the_others_and_none_beside_itself_or_a_lone_writer(tmp_path):
    path = tmp_path / "s"
    with StoreLock.acquire(path, Share(0, 3)), StoreLock.acquire(path, Share(1, 3)) as second:
        with pytest.raises(StoreBusy, match=rf"has a writer 1/3 already \(pid {os.getpid()} on "):
            StoreLock.acquire(path, Share(1, 3))
        with pytest.raises(StoreBusy, match=r"another writer \(pid"):
            StoreLock.acquire(path)
        with pytest.raises(StoreBusy, match=r"another division .*use the same n"):
            StoreLock.acquire(path, Share(0, 2))
        second.release()
        StoreLock.acquire(path, Share(1, 3)).release()
    with StoreLock.acquire(path), pytest.raises(StoreBusy):
        StoreLock.acquire(path, Share(0, 3))
    StoreLock.acquire(path, Share(0, 2)).release()  # all are gone: another division may begin


def test_a_successor_removes_the_temps_of_its_dead_share_and_leaves_those_of_the_living(tmp_path):
    path = tmp_path / "s"
    for share in (Share(0, 2), Share(1, 2)):
        with StoreLock.acquire(path, share) as lock:
            open_writer(path, samples.manifest(), lock=lock)
            (path / "tmp" / share.file / "x.1.left").write_bytes(b"x")
    with StoreLock.acquire(path, Share(0, 2)) as lock:
        open_writer(path, samples.manifest(), lock=lock)
        assert [file.name for file in (path / "tmp").rglob("*left")] == ["x.1.left"]
        assert (path / "tmp" / "1of2" / "x.1.left").exists()
    with StoreLock.acquire(path) as lock:
        open_writer(path, samples.manifest(), lock=lock)
    assert list((path / "tmp").iterdir()) == []


@pytest.mark.parametrize("text", ["2/2", "1", "-1/2", "a/b", "0/0", "1/2/3", " 0/2"])
def test_a_share_that_is_none_is_refused(text):
    with pytest.raises(ProbeError, match="--writer is i/n with 0 <= i < n"):
        Share.parse(text)
    assert Share.parse("0/2") == Share(0, 2)


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_without_kernel_locks_a_lease_refuses_a_second_writer_and_goes_with_its_holder(tmp_path, no_locks):
    path = tmp_path / "s"
    with StoreLock.acquire(path) as lock:
        assert (path / ".lease").exists()
        with pytest.raises(StoreBusy, match=rf"another writer, by a lease .* 120 s .*\(pid {os.getpid()} on "):
            StoreLock.acquire(path)
        with pytest.raises(StoreBusy):
            StoreLock.acquire(path, Share(0, 2))
        open_writer(path, samples.manifest(), lock=lock).add_plan(samples.plan())
    assert not (path / ".lease").exists()
    with StoreLock.acquire(path, Share(0, 2)), StoreLock.acquire(path, Share(1, 2)):
        with pytest.raises(StoreBusy):
            StoreLock.acquire(path)
        with pytest.raises(StoreBusy):
            StoreLock.acquire(path, Share(1, 2))
    assert not list(path.glob(".lease*"))
    assert open_store(path).verify() == []


def test_where_python_has_no_fcntl_the_lease_serves(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_HAS_FLOCK", False)
    with StoreLock.acquire(tmp_path / "s"), pytest.raises(StoreBusy):
        StoreLock.acquire(tmp_path / "s")


def test_a_dead_lease_is_taken_over_and_its_holder_writes_no_more_when_it_wakes(tmp_path, no_locks):
    path, plan = tmp_path / "s", samples.plan()
    asleep = StoreLock.acquire(path)
    writer = open_writer(path, samples.manifest(), lock=asleep)
    writer.add_plan(plan)
    young = time.time() - STALE_SECONDS / 2
    os.utime(path / ".lease", (young, young))
    with pytest.raises(StoreBusy):
        StoreLock.acquire(path)
    old = time.time() - STALE_SECONDS - 1
    os.utime(path / ".lease", (old, old))
    with StoreLock.acquire(path) as lock:
        assert not asleep.held
        with pytest.raises(StoreError, match="taken over by another writer"):
            writer.commit([samples.record(plan.rows[0])])
        open_writer(path, samples.manifest(), lock=lock).add_plan(plan)
        asleep.release()
        assert lock.held
    assert not list(path.glob(".lease*"))


def test_a_lease_is_renewed_while_its_holder_works(tmp_path, monkeypatch):
    monkeypatch.setattr("probe.store.leases.BEAT_SECONDS", 0.01)
    lease = Lease.take(tmp_path / ".lease", ".lease-*", json.dumps({"pid": 1}).encode())
    os.utime(lease.file, (0, 0))
    deadline = time.monotonic() + 10
    while lease.file.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert time.time() - lease.file.stat().st_mtime < STALE_SECONDS
    assert json.loads(lease.file.read_bytes())["pid"] == 1
    lease.release()
    assert not lease.file.exists()


def test_a_share_is_refused_before_anything_heavy_is_imported(tmp_path):
    code = (
        "import sys\nfrom probe.store import Share, StoreLock\nfrom probe.values import StoreBusy\n"
        "try: StoreLock.acquire(sys.argv[1], Share(0, 2))\n"
        "except StoreBusy as busy: print(busy.exit_status, {'torch', 'pandas', 'pyarrow'} & set(sys.modules))\n"
    )
    with StoreLock.acquire(tmp_path / "s"):
        assert run_python(code, tmp_path / "s") == "5 set()\n"


class CountingPlace(RemotePlace):
    """An object store that remembers what was put, and how."""

    def write(self, name: str, parts: Sequence[bytes | memoryview], *, replace: bool = True) -> None:
        vars(self).setdefault("puts", []).append((name.partition("/")[0], replace))
        super().write(name, parts, replace=replace)


def test_an_object_store_gets_each_shard_by_one_conditional_put_and_needs_no_lock(tmp_path):
    opened, plan = open_remote(f"memory://{tmp_path.name}"), samples.plan()
    place = CountingPlace(opened.url, opened.files, opened.root)
    with StoreLock.acquire(place) as lock, StoreLock.acquire(place) as other:
        writer, second = (open_writer(place, samples.manifest(), lock=held) for held in (lock, other))
        for each in (writer, second):
            each.add_plan(plan)
        records = [samples.record(row) for row in plan.rows[:4]]
        assert writer.commit(records) == second.commit(records)
        assert [put for put in vars(place)["puts"] if put[0] == "shards"] == [("shards", False)]
        second.commit([samples.record(row) for row in plan.rows[4:8]])
        writer.refresh()
        assert len(writer.pending()) == 4
    store = open_store(place, warn=False)
    assert len(store.table()) == 8
    assert store.verify() == []
    local = commit_pending(tmp_path / "local", plan)
    assert {shard.name for shard in store.shards} < set(local)


def test_a_disk_that_is_full_before_the_lock_can_say_who_holds_it_is_told_as_that(tmp_path, monkeypatch):
    def full(descriptor: int, content: bytes, at: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(DiskFull, match=r"the disk is full .* free at ") as caught:
            StoreLock.acquire(tmp_path / "s")
    assert caught.value.exit_status == 4
    StoreLock.acquire(tmp_path / "s").release()
