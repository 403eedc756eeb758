"""A local place: what is listed, read and written is what stands in the folder."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from probe.store.places import LocalPlace, Place, open_place


@pytest.fixture
def place(tmp_path):
    place = LocalPlace(tmp_path / "a store")
    place.make()
    place.write("shards/x", [b"0123456789", memoryview(b"abc")])
    return place


def test_a_listing_names_files_with_their_size_and_a_version_that_follows_the_content(place):
    before = place.list("shards")
    assert {name: entry.size for name, entry in before.items()} == {"x": 13}
    assert place.list("") == {}  # folders are no files
    assert place.list("nowhere") == place.list("shards/x") == {}
    place.write("shards/x", [b"0123456789abd"])
    assert place.list("shards")["x"].version != before["x"].version


def test_a_file_that_goes_while_the_folder_is_listed_hides_no_other(place, monkeypatch):
    place.write("shards/y", [b"y"])
    scandir = os.scandir

    @contextmanager
    def slow(folder):
        with scandir(folder) as entries:
            seen = list(entries)
        (place.path / "shards" / "x").unlink()
        yield seen

    assert sorted(place.list("shards")) == ["x", "y"]
    monkeypatch.setattr(os, "scandir", slow)
    assert list(place.list("shards")) == ["y"]


def test_ranges_fill_every_buffer_with_one_opening_and_a_short_file_is_an_error(place, monkeypatch):
    opened, real = [], __import__("os").open
    monkeypatch.setattr("os.open", lambda *arguments: opened.append(arguments) or real(*arguments))
    first, second = bytearray(3), bytearray(2)
    place.ranges("shards/x", [(10, memoryview(first)), (0, memoryview(second)), (13, memoryview(b""))])
    assert (bytes(first), bytes(second), len(opened)) == (b"abc", b"01", 1)
    with pytest.raises(EOFError):
        place.ranges("shards/x", [(11, memoryview(first))])
    with pytest.raises(FileNotFoundError):
        place.ranges("shards/y", [(0, memoryview(first))])


def test_a_write_replaces_only_where_it_may_and_leaves_no_temp(place):
    with pytest.raises(FileExistsError):
        place.write("shards/x", [b"other"], replace=False)
    assert place.read("shards/x") == b"0123456789abc"
    place.write("shards/x", [b"other"])
    assert place.read("shards/x") == b"other"
    assert place.list("tmp") == {}


def test_where_there_are_no_links_a_new_file_gets_its_name_and_an_old_one_keeps_its_content(place, monkeypatch):
    def refuse(source, target):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    place.write("shards/y", [b"new"], replace=False)
    assert place.read("shards/y") == b"new"
    with pytest.raises(FileExistsError):
        place.write("shards/x", [b"other"], replace=False)
    assert place.read("shards/x") == b"0123456789abc"
    assert place.list("tmp") == {}


def test_a_file_is_moved_to_a_folder_that_is_made_for_it_and_removed(place):
    place.move("shards/x", "quarantine/x")
    assert (place.list("shards"), list(place.list("quarantine"))) == ({}, ["x"])
    place.remove("quarantine/x")
    assert place.list("quarantine") == {}
    with pytest.raises(FileNotFoundError):
        place.read("quarantine/x")


def test_a_path_a_file_url_and_a_place_open_the_same_folder(tmp_path):
    folder = tmp_path / "a store"
    for given in (folder, str(folder), folder.as_uri(), LocalPlace(folder)):
        opened = open_place(given)
        assert isinstance(opened, Place)
        assert opened == LocalPlace(folder)
    assert open_place(Path("cache/x")).url == "cache/x"
