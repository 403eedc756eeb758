"""Work for groups under test. Knows rows that end, stop or refuse in one process of a group, or in all of them.

A row is ``verb:rank``, or ``verb:rank:mark`` for what happens only until a file of that name is there.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from probe.engines import Ticket, groups
from probe.values import DiskFull, StoreError

groups.GRACE_SECONDS = 1  # who waits for a dead process is ended soon


def note(opening: str, ticket: Ticket) -> Mapping[str, object]:
    """Write down that a process runs a ticket, or do what a row says."""
    folder, rank = Path(opening), groups.rank()
    with (folder / f"attempts-{rank}").open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {ticket.shard}\n")
    for row in ticket.rows:
        verb, _, rest = row.partition(":")
        where, _, mark = rest.partition(":")
        if where != str(rank) or (mark and (folder / mark).exists()):
            continue
        if mark:
            (folder / mark).touch()
        if verb == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if verb == "raise":
            raise ValueError("this row cannot be added up")
        if verb == "refuse":
            raise DiskFull("the disk is full")
        if verb == "store":
            raise StoreError("the service failed 4 times")
        if verb == "sleep":
            time.sleep(600)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    return {name: os.environ.get(name) for name in names}


def attempts(folder: Path, rank: int) -> list[tuple[int, int]]:
    """Process and shard of every attempt of the processes of a rank."""
    file = folder / f"attempts-{rank}"
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    return [(int(pid), int(shard)) for pid, shard in map(str.split, lines)]
