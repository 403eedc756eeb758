"""Stores in object stores: in memory, and behind a local server that speaks S3."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import store_samples as samples
from conftest import Write
from object_store import served

from probe.store import StoreLock, open_store, open_writer
from probe.store import places_remote as remote
from probe.store.files import Entry
from probe.store.places import LocalPlace, Place, open_place
from probe.store.places_remote import RemotePlace, open_remote
from probe.values import StoreChanged, StoreError

pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of a bucket; the server lives as long as the module."""
    with served() as bucket:
        yield bucket


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest) -> str:
    """A new prefix of an object store."""
    base = request.getfixturevalue("s3") if request.param == "s3" else "memory://captures"
    return f"{base}/{secrets.token_hex(4)}"


def fill(path: str | Path | Place) -> None:
    plan = samples.plan()
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        for shard in sorted({row.shard for row in plan.rows}):
            writer.commit([samples.record(row) for row in plan.rows if row.shard == shard])


def content(place: Place) -> dict[str, bytes]:
    folders = ("", "plan", "shards", "failures")
    names = [f"{folder}/{name}".lstrip("/") for folder in folders for name in place.list(folder)]
    return {name: place.read(name) for name in names if not name.startswith(".")}


def test_a_remote_store_holds_the_bytes_of_a_local_one_and_reads_alike(url: str, tmp_path: Path) -> None:
    fill(url)
    fill(tmp_path / "local")
    ours, theirs = content(open_place(url)), content(LocalPlace(tmp_path / "local"))
    assert len([name for name in ours if name.startswith("shards/")]) == 3
    assert ours == theirs
    remote_store, local = open_store(url), open_store(tmp_path / "local")
    assert remote_store.table().equals(local.table())
    assert remote_store.verify("full" if url.startswith("memory") else "quick") == []
    view, other = (store.select(persona="nurse", where="margin > 0") for store in (remote_store, local))
    for layer, resid in view.iter_layers(position="answer"):
        assert np.array_equal(resid.numpy(), other.resid(layer=layer, position="answer").numpy())


def test_a_second_run_continues_a_remote_store_and_another_identity_is_refused(url: str) -> None:
    plan = samples.plan()
    with StoreLock.acquire(url) as lock:
        writer = open_writer(url, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        writer.commit([samples.record(row) for row in plan.rows if row.shard == 0])
    with StoreLock.acquire(url) as lock:
        writer = open_writer(url, samples.manifest(), lock=lock)
        assert writer.add_plan(plan).committed == 4
        assert len(writer.pending()) == 8
        with pytest.raises(StoreError, match=r"tokenizer_sha256|tokenizer"):
            open_writer(url, samples.manifest() | {"tokenizer_sha256": "33" * 32}, lock=lock)
    fill(url)
    assert str(open_store(url).coverage()).startswith("12 of 12")


def test_a_place_lists_reads_writes_moves_and_removes_alike_everywhere(url: str, tmp_path: Path) -> None:
    local = LocalPlace(tmp_path)
    local.make()
    for place in (local, open_place(url)):
        place.make()
        assert place.list("shards") == {}
        place.write("shards/a", [b"abc", memoryview(b"def")], replace=False)
        place.write("top", [b""])
        with pytest.raises(FileExistsError):
            place.write("shards/a", [b"other"], replace=False)
        assert place.read("shards/a") == b"abcdef"
        assert {name: entry.size for name, entry in place.list("shards").items()} == {"a": 6}
        assert [name for name in place.list("") if name[0] != "."] == ["top"]
        first, second = bytearray(2), bytearray(3)
        place.ranges("shards/a", [(4, memoryview(first)), (0, memoryview(second))], place.list("shards")["a"])
        assert (bytes(first), bytes(second)) == (b"ef", b"abc")
        with pytest.raises(EOFError):
            place.ranges("shards/a", [(4, memoryview(bytearray(9)))])
        with pytest.raises(FileNotFoundError):
            place.read("shards/b")
        place.write("shards/a", [b"new"])
        place.move("shards/a", "quarantine/a")
        assert (place.list("shards"), set(place.list("quarantine"))) == ({}, {"a"})
        place.remove("quarantine/a")
        assert place.list("quarantine") == {}


def test_an_object_that_changed_between_two_reads_is_refused_and_the_unchanged_one_reads(url: str) -> None:
    place = open_place(url)
    place.write("shards/a", [b"0123456789"])
    entry = place.list("shards")["a"]
    half = bytearray(5)
    place.ranges("shards/a", [(0, memoryview(half))], entry)
    assert bytes(half) == b"01234"
    for changed in (b"abcdefghij", b"abc"):  # as long as before, and shorter
        place.write("shards/a", [changed])
        with pytest.raises(StoreChanged, match=r"shards/a changed while it was read"):
            place.ranges("shards/a", [(5, memoryview(half))], entry)
        place.ranges("shards/a", [(0, memoryview(half)[:3])], place.list("shards")["a"])
        assert bytes(half[:3]) == b"abc"


def test_a_shard_that_is_replaced_under_an_open_store_never_gives_a_mixed_array(url: str) -> None:
    fill(url)
    store, place = open_store(url), open_place(url)
    before = store.select().resid(layer=0, position="answer").numpy()
    names = sorted(place.list("shards"))
    assert np.array_equal(before, store.select().resid(layer=0, position="answer").numpy())
    place.write(f"shards/{names[0]}", [place.read(f"shards/{names[1]}")])
    with pytest.raises(StoreChanged):
        store.select().resid(layer=1, position="answer").numpy()


class Failing:
    """A file system that fails some times before it answers; ``calls`` counts what it was asked."""

    def __init__(self, inner: Any, error: Exception, times: int) -> None:
        self.inner, self.error, self.left, self.calls = inner, error, times, 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)

        def call(*args: Any, **options: Any) -> Any:
            self.calls += 1
            if self.left:
                self.left -= 1
                raise self.error
            return method(*args, **options)

        return call


def failing(url: str, error: Exception, times: int) -> tuple[RemotePlace, Failing]:
    place = open_remote(url)
    files = Failing(place.files, error, times)
    return RemotePlace(place.url, files, place.root, pause=0.0), files  # type: ignore[arg-type]


TRANSIENT = (OSError(remote._REMOTE_IO, "500"), TimeoutError("timed out"), ConnectionResetError("reset"))


@pytest.mark.parametrize("error", TRANSIENT, ids=["500", "timeout", "reset"])
def test_a_service_that_fails_is_asked_again_but_not_for_ever(error: Exception) -> None:
    url = f"memory://faults/{secrets.token_hex(4)}"
    open_place(url).write("a", [b"abc"])
    for times in range(remote.TRIES):
        place, _ = failing(url, error, times)
        assert place.read("a") == b"abc"
    place, files = failing(url, error, 100)
    with pytest.raises(StoreError, match=f"failed {remote.TRIES} times"):
        place.read("a")
    assert files.calls == remote.TRIES
    for verb in (lambda: place.list(""), lambda: place.write("b", [b"x"]), lambda: place.remove("a")):
        with pytest.raises(StoreError, match=f"failed {remote.TRIES} times"):
            verb()
    assert set(open_place(url).list("")) == {"a"}


@pytest.mark.parametrize("error", [PermissionError("Access Denied"), OSError(22, "bad request")])
def test_a_service_that_refuses_is_asked_once(error: Exception) -> None:
    url = f"memory://faults/{secrets.token_hex(4)}"
    open_place(url).write("a", [b"abc"])
    place, files = failing(url, error, 1)
    with pytest.raises(StoreError, match=r"refuses to read .*credentials|cannot read .*bad request"):
        place.read("a")
    assert files.calls == 1
    assert place.read("a") == b"abc"


def test_a_conditional_write_whose_answer_was_lost_is_found_to_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    place = open_remote(f"memory://faults/{secrets.token_hex(4)}")
    write, lost = place.files.pipe_file, [True]

    def answer_lost(*args: Any, **options: Any) -> None:
        write(*args, **options)
        if lost.pop() if lost else False:
            raise TimeoutError("no answer")

    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(place.files, "pipe_file", answer_lost)
    quick = RemotePlace(place.url, place.files, place.root, pause=0.0)
    quick.write("a", [b"abc"], replace=False)
    assert quick.read("a") == b"abc"
    with pytest.raises(FileExistsError):
        quick.write("a", [b"abc"], replace=False)


def test_a_server_that_answers_500_and_403_is_met_like_that(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.core.responses import BaseResponse

    place = RemotePlace(f"{s3}/faults", (inner := open_remote(f"{s3}/faults")).files, inner.root, pause=0.0)
    place.write("a", [b"abc"])
    answers: list[int] = []
    from moto.s3.responses import S3Response

    assert issubclass(S3Response, BaseResponse)
    real = S3Response.get_object
    codes = {500: "InternalError", 403: "AccessDenied"}

    def unwell(self: Any, *args: Any, **options: Any) -> Any:
        if answers:
            status = answers.pop()
            return status, {}, f"<Error><Code>{codes[status]}</Code><Message>{codes[status]}</Message></Error>"
        return real(self, *args, **options)

    monkeypatch.setattr(S3Response, "get_object", unwell)
    answers += [500, 500]
    assert place.read("a") == b"abc"
    assert answers == []
    answers += [500] * 100
    with pytest.raises(StoreError, match=f"failed {remote.TRIES} times"):
        place.read("a")
    answers[:] = [403, 403]
    with pytest.raises(StoreError, match=r"refuses to read s3://captures/faults/a \(AccessDenied\); check the cred"):
        place.read("a")
    assert len(answers) == 1


def test_a_writer_that_dies_at_any_write_is_continued_to_the_bytes_of_an_undisturbed_run(tmp_path: Path) -> None:
    undisturbed = f"memory://deaths/{secrets.token_hex(4)}"
    fill(undisturbed)
    expected, deaths = content(open_place(undisturbed)), 0
    for writes in range(100):
        url = f"memory://deaths/{secrets.token_hex(4)}"
        place = open_remote(url)
        dying = RemotePlace(place.url, Dying(place.files, writes), place.root)  # type: ignore[arg-type]
        try:
            fill(dying)
            break
        except Died:
            deaths += 1
        left = content(open_place(url))
        assert all(expected[name] == found for name, found in left.items() if name.startswith("shards/"))
        fill(url)
        assert content(open_place(url)) == expected
    assert deaths == len(expected)


class Died(BaseException):
    """The process is gone: nothing may catch this."""


class Dying:
    """A file system of which the process dies before write number ``left``."""

    def __init__(self, inner: Any, left: int) -> None:
        self.inner, self.left = inner, left

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def pipe_file(self, *args: Any, **options: Any) -> None:
        if not self.left:
            raise Died
        self.left -= 1
        self.inner.pipe_file(*args, **options)


def test_large_reads_are_asked_for_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "AT_ONCE", 10)
    place = open_remote(f"memory://portions/{secrets.token_hex(4)}")
    content = bytes(range(256))
    place.write("a", [content])
    spans = [(start, memoryview(bytearray(size))) for start, size in ((0, 35), (100, 0), (7, 4), (11, 9), (250, 6))]
    place.ranges("a", spans)
    assert [bytes(target) for _, target in spans] == [content[start : start + len(t)] for start, t in spans]


def test_a_reader_sees_no_half_written_store_and_no_foreign_files(url: str) -> None:
    place = open_place(url)
    place.write("shards-elsewhere/x", [b"1"])
    place.write("shards/deep/er", [b"1"])
    assert place.list("shards") == {}
    with pytest.raises(StoreError, match=r"has none; check the path"):
        open_store(url)
    assert isinstance(place.list("shards/deep")["er"], Entry)


@pytest.mark.parametrize("bad", ["foo://bucket/x", "gs://bucket/x"])
def test_an_unknown_scheme_or_a_missing_package_is_one_sentence(bad: str) -> None:
    with pytest.raises(StoreError, match=r"no URL of a store|not installed"):
        open_store(bad)


def test_a_file_url_is_the_local_folder(write: Write) -> None:
    path = write()
    assert open_store(path.as_uri()).table().equals(open_store(path).table())


def test_a_bucket_that_does_not_exist_is_named(s3: str) -> None:
    with pytest.raises(StoreError, match=r"cannot write s3://nowhere/x/manifest\.json: .*create the bucket"):
        open_remote("s3://nowhere/x").write("manifest.json", [b"{}"])
    with pytest.raises(StoreError, match="check the path"):
        open_store("s3://nowhere/x")
    assert s3
