"""Where a store's bytes stand: a local folder, or a prefix of an object store. Knows names, not what they hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit
from urllib.request import url2pathname

from probe.store.files import Bytes, Entry, fsync_directory, write_durably

FOLDERS = ("plan", "shards", "failures", "runs", "tmp")
"""The folders that a writer needs; ``quarantine`` is made when something is moved there."""


@runtime_checkable
class Place(Protocol):
    """Files by relative names with ``/`` between folder and file; every byte of a store goes through one of these."""

    @property
    def url(self) -> str:
        """How messages name the place."""
        ...

    def list(self, folder: str) -> dict[str, Entry]:
        """Files directly in ``folder`` (``""`` is the top) by base name; none where there is no such folder."""
        ...

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            OSError: it cannot be read; FileNotFoundError where there is none.
        """
        ...

    def ranges(self, name: str, spans: Sequence[tuple[int, memoryview]], expect: Entry | None = None) -> None:
        """Fill each buffer with the bytes that begin at its offset; the file is opened once.

        Raises:
            EOFError: the file ends before a span does.
            OSError: it cannot be read.
            StoreChanged: a remote file is no longer the ``expect``-ed version.
        """
        ...

    def write(self, name: str, parts: Sequence[Bytes], *, replace: bool = True) -> None:
        """Write a whole file; when this returns, it survives kill -9 and power loss.

        Raises:
            FileExistsError: the file is there and ``replace`` is false.
            OSError: the write was refused; the old file, if any, is untouched.
        """
        ...

    def move(self, name: str, to: str) -> None:
        """Rename a file, durably."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file."""
        ...

    def make(self) -> None:
        """Create what must exist before the first write."""
        ...


@dataclass(frozen=True)
class LocalPlace:
    """A folder of this machine; files are written in ``scratch`` before they get their name."""

    path: Path
    scratch: str = "tmp"

    @property
    def url(self) -> str:
        """The path as it was given."""
        return str(self.path)

    def list(self, folder: str) -> dict[str, Entry]:
        """Files directly in ``folder`` by base name."""
        found = {}
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.path / folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # it was moved away meanwhile; the others are still there
                    if entry.is_file():
                        found[entry.name] = _entry(entry.stat())
        return found

    def read(self, name: str) -> bytes:
        """A whole file."""
        return (self.path / name).read_bytes()

    def ranges(self, name: str, spans: Sequence[tuple[int, memoryview]], expect: Entry | None = None) -> None:
        """Fill each buffer from its offset. ``expect`` is not asked: checksums notice what a local copy changed."""
        descriptor = os.open(os.path.join(self.path, name), os.O_RDONLY)  # noqa: PTH118  # a row costs little more
        try:
            for start, target in spans:
                count = os.preadv(descriptor, (target,), start) if target else 0
                if count < len(target):
                    _fill(descriptor, start + count, target[count:])
        finally:
            os.close(descriptor)

    def announce(self, name: str, spans: Sequence[tuple[int, int]]) -> None:
        """Say that (start, size) of a file are read soon; a hint, which changes nothing that is read.

        Raises:
            OSError: the file cannot be opened.
        """
        if not hasattr(os, "posix_fadvise"):  # macOS
            return
        descriptor = os.open(self.path / name, os.O_RDONLY)
        try:
            for start, size in spans:
                os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)

    def write(self, name: str, parts: Sequence[Bytes], *, replace: bool = True) -> None:
        """Write a file through ``tmp/``, fsync, rename and fsync of its folder.

        A scratch folder of its own may be removed by the next writer, who takes it for a dead one's: it is made again.
        """
        scratch = self.path / self.scratch
        try:
            write_durably(self.path / name, parts, temp_dir=scratch, replace=replace)
        except FileNotFoundError:
            if self.scratch == "tmp" or not scratch.parent.is_dir():
                raise
            scratch.mkdir(exist_ok=True)
            write_durably(self.path / name, parts, temp_dir=scratch, replace=replace)

    def move(self, name: str, to: str) -> None:
        """Rename a file, making the folder it goes to; both folders are durable when this returns."""
        source, target = self.path / name, self.path / to
        target.parent.mkdir(exist_ok=True)
        source.replace(target)
        for folder in {target.parent, source.parent, self.path}:
            fsync_directory(folder)

    def remove(self, name: str) -> None:
        """Delete a file, durably."""
        (self.path / name).unlink()
        fsync_directory((self.path / name).parent)

    def make(self) -> None:
        """Create the store's folders."""
        for folder in (*FOLDERS, self.scratch):
            (self.path / folder).mkdir(parents=True, exist_ok=True)


def open_place(path: str | Path | Place) -> Place:
    """A place by its path or URL; without ``scheme://``, or with ``file://``, it is local.

    Raises:
        StoreError: the scheme is not known, or the package that serves it is not installed.
    """
    if isinstance(path, str) and "://" in path:
        if not path.startswith("file://"):
            from probe.store.places_remote import open_remote  # fsspec: only where it is asked for

            return open_remote(path)
        path = url2pathname(urlsplit(path).path)
    return LocalPlace(Path(path)) if isinstance(path, str | Path) else path


def _entry(status: os.stat_result) -> Entry:
    return Entry(status.st_size, f"{status.st_mtime_ns}.{status.st_ino}.{status.st_size}")


def _fill(descriptor: int, start: int, target: memoryview) -> None:
    while target:
        count = os.preadv(descriptor, [target], start)
        if not count:
            raise EOFError(f"the file ends at byte {start}")
        start, target = start + count, target[count:]
