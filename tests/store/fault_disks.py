"""A file system that fills up, and one whose power is cut. Needs root: a small tmpfs and a loop-mounted ext4.

The cut is ``EXT4_IOC_SHUTDOWN`` without flushing the journal: what was not made durable before it is gone after it.
"""

from __future__ import annotations

import fcntl
import os
import random
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fault_kills as kills
import store_writer

from probe.store import open_store
from probe.values import DiskFull

_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = struct.pack("I", 2)


@dataclass
class Cuts:
    """Power cuts, shards acknowledged before them, and plain files (renamed, never fsynced) that they cost."""

    cuts: int = 0
    acknowledged: int = 0
    plain_files: int = 0
    plain_lost: int = 0


@dataclass
class Fillings:
    """Times that the disk ran full, and rows that were safe each time."""

    full: int = 0
    safe_rows: int = 0


def why_not(folder: Path, kind: str) -> str:
    """Why a file system of this kind cannot be mounted here; empty where it can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "not root"
    try:
        with _mounted(folder, kind, "1m" if kind == "tmpfs" else "8m"):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no {kind} can be mounted here ({error})"


def fill(folder: Path, seed: int, times: int, *, n_cases: int = 60) -> Fillings:
    """Write until the disk is full, ``times`` times with a little more space each time; then to the end."""
    rng, counts = random.Random(seed), Fillings()
    whole = folder / "whole"
    _write(whole, n_cases)
    size = 300
    with _mounted(folder, "tmpfs", f"{size}k") as mount:
        for _ in range(times):
            before = {file.name for file in (mount / "store" / "shards").glob("*")}
            try:
                _write(mount / "store", n_cases)
                raise AssertionError("the disk never ran full")
            except DiskFull as full:
                assert full.exit_status == 4
                safe = open_store(mount / "store").coverage().committed
                assert f"{safe} rows are safe" in str(full), str(full)
                assert "free at" in str(full)
            after = {file.name for file in (mount / "store" / "shards").glob("*")}
            assert before <= after
            assert not list((mount / "store" / "tmp").iterdir())
            assert open_store(mount / "store").verify() == []
            counts.full, counts.safe_rows = counts.full + 1, counts.safe_rows + safe
            size += rng.randrange(100, 300)
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(mount)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "remount,size=64m", str(mount)], check=True, capture_output=True)
        _write(mount / "store", n_cases)
        assert _shards(mount / "store") == _shards(whole)
    return counts


def cut_power(folder: Path, seed: int, cuts: int, *, n_cases: int = 60) -> Cuts:
    """Cut the power under a writer at random moments; every acknowledged shard is there and right afterwards."""
    rng, counts = random.Random(seed), Cuts()
    whole = folder / "whole"
    _write(whole, n_cases)
    for number in range(cuts):
        image = folder / f"disk-{number}"
        _make_ext4(image, "32m")
        with _mounted(folder, "ext4", "32m", image) as mount:
            writer = kills.Writer(_writing(mount / "store", n_cases), quiet=True)
            lines = [writer.line() for _ in range(1 + rng.randrange(12))]
            time.sleep(rng.uniform(0.0, 0.01))
            (mount / "plain.part").write_bytes(bytes([1]) * 100_000)  # what is only written and renamed
            (mount / "plain.part").rename(mount / "plain")
            _cut(mount)
            assert writer.end() != 0, "a writer went on without a disk"
            lines += writer.rest()
        acknowledged = {line for line in lines if line and line != "ready"}
        with _mounted(folder, "ext4", "32m", image) as mount:
            found, expected = _shards(mount / "store"), _shards(whole)
            for name in acknowledged:
                assert found.get(name) == expected[name], f"seed {seed}, cut {number}: {name} was reported and lost"
            assert open_store(mount / "store").verify() == []
            plain = mount / "plain"
            counts.plain_files += 1
            counts.plain_lost += not (plain.exists() and plain.read_bytes() == bytes([1]) * 100_000)
            _write(mount / "store", n_cases)
            assert _shards(mount / "store") == expected
        image.unlink()
        counts.cuts, counts.acknowledged = counts.cuts + 1, counts.acknowledged + len(acknowledged)
    return counts


def _writing(path: Path, n_cases: int) -> Callable[[Callable[[str], None]], None]:
    return lambda say: store_writer.main(path, n_cases, 0.0, say)


def _write(path: Path, n_cases: int) -> None:
    store_writer.main(path, n_cases, 0.0, lambda _: None)


def _shards(path: Path) -> dict[str, bytes]:
    return {file.stem: file.read_bytes() for file in (path / "shards").glob("*.safetensors")}


def _cut(mount: Path) -> None:
    descriptor = os.open(mount, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, _NO_LOG_FLUSH)
    finally:
        os.close(descriptor)


def _make_ext4(image: Path, size: str) -> None:
    with image.open("wb") as file:
        file.truncate(int(size.removesuffix("m")) * 2**20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, capture_output=True)


@contextmanager
def _mounted(folder: Path, kind: str, size: str, image: Path | None = None) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    mount = folder / "mount"
    mount.mkdir(exist_ok=True)
    made = None
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount)]
    else:
        if image is None:
            image = made = folder / "try"
            _make_ext4(image, size)
        command = ["mount", "-o", "loop", str(image), str(mount)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield mount
    finally:
        _unmount(mount)
        if made is not None:
            made.unlink()


def _unmount(mount: Path) -> None:
    for _ in range(50):
        if subprocess.run(["umount", str(mount)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.05)
    raise AssertionError(f"{mount} cannot be unmounted")
