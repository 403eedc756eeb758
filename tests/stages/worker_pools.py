"""A pool whose workers are this very process, for tests of what is asked of workers. Knows no other process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from probe.engines import Engine, Ticket, Work
from probe.engines.work import End

TWO = Engine("local", workers=2)
"""Any engine whose workers are not this process."""

Hook = Callable[[Ticket, Callable[[Ticket], End]], End | None]


@dataclass
class Here:
    """Runs each ticket when its end is asked for; ``hook`` may do otherwise."""

    work: Work
    hook: Hook
    gpus: float = 0.0
    room: int = 2
    workers: int = 2
    waiting: list[Ticket] = field(default_factory=list)
    closed: bool = False

    def give(self, ticket: Ticket) -> None:
        self.waiting.append(ticket)
        self.room -= 1

    def ended(self, seconds: float) -> list[tuple[Ticket, End | None]]:
        ticket = self.waiting.pop(0)
        self.room += 1
        return [(ticket, self.hook(ticket, self.work.attempt))]

    def close(self) -> None:
        self.closed = True


def work_here(monkeypatch: pytest.MonkeyPatch, hook: Hook = lambda ticket, attempt: attempt(ticket)) -> list[Here]:
    """Let every engine run its tickets in this process; the pools that were opened."""
    pools: list[Here] = []

    def open_here(engine: Engine, work: Work, *, gpus: float, **_: Any) -> Here:
        pools.append(Here(work, hook, gpus))
        return pools[-1]

    monkeypatch.setattr("probe.stages.elsewhere.open_pool", open_here)
    return pools


def content(store: Path) -> dict[str, bytes]:
    """Every byte of a store but the records of its runs."""
    files = [file for file in store.rglob("*") if file.is_file() and file.name not in (".lock", "index.parquet")]
    return {str(f.relative_to(store)): f.read_bytes() for f in files if f.parent.name != "runs"}
