"""Work for engines under test. Knows rows that die, raise or refuse; every attempt leaves a line in a file."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from probe.engines import Ticket
from probe.values import DiskFull, StoreError


def note(opening: str, ticket: Ticket) -> Mapping[str, object]:
    """Write the rows of a ticket down, or do what a row says."""
    folder = Path(opening)
    with (folder / "attempts").open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {ticket.shard} {' '.join(ticket.rows)}\n")
    for row in ticket.rows:
        verb, _, rest = row.partition(":")
        if verb == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if verb == "once" and not (folder / rest).exists():
            (folder / rest).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if verb == "raise":
            raise ValueError("this row cannot be added up")
        if verb == "refuse":
            raise DiskFull("the disk is full")
        if verb == "store":
            raise StoreError("the service failed 4 times")
        if verb == "print":
            print("a library that prints")
        if verb == "sleep":
            time.sleep(float(rest))
        if verb == "wait":
            while not (folder / rest).exists():
                time.sleep(0.005)
    return {"shard": ticket.shard, "n": len(ticket.rows), "threads": os.environ.get("OMP_NUM_THREADS")}


def attempts(folder: Path) -> list[tuple[int, int, list[str]]]:
    """Process, shard and rows of every attempt so far."""
    file = folder / "attempts"
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    return [(int(pid), int(shard), rows) for pid, shard, *rows in map(str.split, lines)]
