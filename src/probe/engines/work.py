"""Work as engines see it: tickets go out, receipts come back. Knows rows as text; knows neither a model nor a store."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from probe.values import ProbeError, StoreError


@dataclass(frozen=True)
class Ticket:
    """One shard of a plan, or a part of one: its number, and its rows, each as the text that its worker reads."""

    shard: int
    rows: tuple[str, ...]

    def halves(self) -> tuple[Ticket, Ticket]:
        """The ticket in two; one of a single row cannot be divided."""
        assert len(self.rows) > 1
        middle = len(self.rows) // 2
        return Ticket(self.shard, self.rows[:middle]), Ticket(self.shard, self.rows[middle:])

    @property
    def text(self) -> str:
        """The ticket on one line."""
        return json.dumps([self.shard, list(self.rows)])

    @classmethod
    def read(cls, text: str) -> Ticket:
        """The ticket of such a line."""
        shard, rows = json.loads(text)
        return cls(shard, tuple(rows))


@dataclass(frozen=True)
class Receipt:
    """Every row of a ticket is committed, or on record as failed. ``facts`` are what is told of it, in JSON values."""

    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """The work itself was refused (a full disk, another model): no other worker would do better, so the run ends."""

    message: str
    exit_status: int = 1


@dataclass(frozen=True)
class Crash:
    """The process of a ticket died, or met an error that nobody foresaw; another process may do better."""

    reason: str


End = Receipt | Refused | Crash
_KINDS: Mapping[str, type[End]] = {"receipt": Receipt, "refused": Refused, "crash": Crash}


def end_text(end: End) -> str:
    """An end on one line."""
    kind = next(name for name, known in _KINDS.items() if isinstance(end, known))
    return json.dumps([kind, vars(end)], default=str)


def read_end(text: str) -> End:
    """The end of such a line."""
    kind, fields = json.loads(text)
    return _KINDS[kind](**fields)


@dataclass(frozen=True)
class Work:
    """What a worker process does with tickets.

    ``task`` is ``package.module:function``; it is called with ``opening``, which is the same for all tickets, and a
    ticket, and returns the facts of the receipt. It keeps what is costly to open (a model) for the next ticket of its
    process. Any ticket may be run twice, anywhere and at any time.
    """

    task: str
    opening: str

    def attempt(self, ticket: Ticket) -> Receipt | Refused | Crash:
        """Run a ticket in this process.

        A refusal is returned, and so is what may pass (a store that does not answer); any other error is raised, for
        it may have spoilt this process.
        """
        try:
            return Receipt(self.run(ticket))
        except ProbeError as error:
            return Crash(str(error)) if type(error) is StoreError else Refused(str(error), error.exit_status)

    def run(self, ticket: Ticket) -> Mapping[str, Any]:
        """The same, raising what the work raises; the facts of the receipt."""
        module, _, name = self.task.partition(":")
        function: Callable[[str, Ticket], Mapping[str, Any]] = getattr(import_module(module), name)
        return function(self.opening, ticket)


def told(error: BaseException) -> str:
    """An unforeseen error in one line: what it says, and where it arose."""
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({frame[0].filename.rpartition('/')[2]}:{frame[0].lineno})" if frame else ""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0] if said else 'without a message'}{where}"
