"""Bytes that survive a power cut. Knows fsync, rename and a full disk; knows nothing of what the bytes mean."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from probe.values import DiskFull, StoreError

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})

Bytes = bytes | memoryview


@dataclass(frozen=True)
class Entry:
    """What a listing says of one file; ``version`` changes when the content does (an mtime here, an ETag there)."""

    size: int
    version: str


def write_durably(target: Path, parts: Iterable[Bytes], *, temp_dir: Path, replace: bool) -> None:
    """Write ``parts`` under the name ``target``; when this returns, they survive kill -9 and power loss.

    The order is the promise: write a temp on the same file system, fsync it, rename it, fsync the directory. A
    failure at any step leaves no temp and the old ``target``. A failed fsync is never repeated: the kernel may have
    dropped the dirty pages, so that a second fsync would lie. The mode follows the umask.

    Raises:
        FileExistsError: ``target`` exists and ``replace`` is false.
        OSError: the system refused a step.
    """
    temp = temp_dir / f"{target.name}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            for part in parts:
                write_all(descriptor, part)
            _fsync_file(descriptor)
        finally:
            os.close(descriptor)
        if replace:
            os.replace(temp, target)  # noqa: PTH105 - tests trace the calls on `os`
        else:
            _link(temp, target)
        fsync_directory(target.parent)
    finally:
        temp.unlink(missing_ok=True)


def _link(temp: Path, target: Path) -> None:
    """Give a file a name that no other has; FAT and some network file systems know no links, and look first."""
    try:
        os.link(temp, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.replace(temp, target)  # noqa: PTH105 - tests trace the calls on `os`


def write_all(descriptor: int, part: Bytes) -> None:
    """Write every byte of ``part``; the system may take fewer at once than it is given."""
    left = memoryview(part)
    while left:
        left = left[os.write(descriptor, left) :]


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_result(file: Path, parts: Iterable[Bytes]) -> None:
    """Write a file that belongs to no store, with the folders above it, durably; it may replace one.

    Raises:
        StoreError: the system refused to write it.
    """
    whole = list(parts)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_durably(file, whole, temp_dir=file.parent, replace=True)
    except OSError as error:
        raise refusal(error, str(file), sum(map(len, whole)), 0) from error


def refusal(error: OSError, where: str, needed: int, safe_rows: int) -> StoreError:
    """The sentence for a write that the system refused: ``DiskFull`` where space ran out.

    ``where`` is the path or URL of the file, ``needed`` its bytes, ``safe_rows`` how many rows were committed before.
    """
    if error.errno not in _NO_SPACE:
        return StoreError(f"cannot write {where}: {error.strerror or error}; nothing was reported as saved")
    folder = where.rpartition("/")[0]
    try:
        free = f"{size_text(shutil.disk_usage(folder).free)} free"
    except OSError:
        free = "free space unknown"
    return DiskFull(
        f"the disk is full ({error.strerror}): needs ~{size_text(needed)}, {free} at {folder}; {safe_rows} rows are "
        "safe; make space and run the same command again"
    )


def _fsync_file(descriptor: int) -> None:
    if sys.platform == "darwin":  # there, fsync stops at the drive's cache
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def size_text(count: int) -> str:
    """A number of bytes as people read it."""
    value = float(count)
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
