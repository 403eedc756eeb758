"""The order in which a writer makes bytes durable, from its own calls to the kernel; traces `os`, needs no strace."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import store_samples as samples

from probe.store import Plan, StoreLock, open_writer

Event = tuple[str, int]


@contextmanager
def traced() -> Iterator[list[Event]]:
    """Every fsync and rename, as ``("fsync file" | "fsync folder" | "rename", inode)``, in order."""
    events: list[Event] = []
    fsync, replace, link = os.fsync, os.replace, os.link

    def watched_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        fsync(descriptor)
        events.append(("fsync folder" if stat.S_ISDIR(status.st_mode) else "fsync file", status.st_ino))

    def watched(call: Callable[..., None]) -> Callable[..., None]:
        def moved(source: Any, target: Any, **options: Any) -> None:
            inode = os.stat(source).st_ino  # noqa: PTH116
            call(source, target, **options)
            events.append(("rename", inode))

        return moved

    os.fsync, os.replace, os.link = watched_fsync, watched(replace), watched(link)
    try:
        yield events
    finally:
        os.fsync, os.replace, os.link = fsync, replace, link


def check(path: Path, plan: Plan) -> int:
    """Write a plan one row at a time; when a commit returns, its file, then its name, then its folder are durable."""
    with traced() as events, StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        folder = (path / "shards").stat().st_ino
        for row in plan.rows:
            before = len(events)
            name = writer.commit([samples.record(row)])
            file = (path / "shards" / f"{name}.safetensors").stat().st_ino
            assert events[before : before + 3] == [("fsync file", file), ("rename", file), ("fsync folder", folder)]
    files = {inode for kind, inode in events if kind == "rename"}
    for inode in files:
        first = [kind for kind, of in events if of == inode]
        assert first[0] == "fsync file", "a file got its name before its bytes were durable"
    return sum(kind == "rename" for kind, _ in events)
