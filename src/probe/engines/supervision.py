"""Tickets over processes that may die. Knows tries, halves and when to give up; knows no engine and no shard."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from probe.engines.work import Crash, End, Receipt, Refused, Ticket
from probe.values import ProbeError

RETRIES = 3
"""How often a shard whose process died is run again before it is divided."""

LAST_TRIES = 2
"""Tries of a row that stands alone after its shard was divided: one death may be bad luck, as when a node goes."""

HOPELESS = 12
"""Deaths, beside one of each worker, after which a run in which no shard has ended gives up."""

WAIT_SECONDS = 0.5

PATIENCE_SECONDS = 60
"""How long no worker may be there before that is told; a cluster may be busy, or has to grow."""


class RunRefused(ProbeError):
    """A worker refused the work; the message is the worker's."""

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class Pool(Protocol):
    """Processes, here or elsewhere, that run tickets."""

    @property
    def workers(self) -> int:
        """How many there are at a time."""
        ...

    @property
    def room(self) -> int:
        """How many more tickets may be given now, so that what is in flight stays bounded."""
        ...

    def give(self, ticket: Ticket) -> None:
        """Run a ticket."""
        ...

    def ended(self, seconds: float) -> Sequence[tuple[Ticket, End | None]]:
        """Tickets that have ended since, waiting so long for the first; None for one that was never begun.

        Raises:
            ProbeError: the engine itself fails, or no process can be started.
        """
        ...

    def close(self) -> None:
        """End every process at once; what they have not committed is lost."""
        ...


@dataclass
class _Attempt:
    """A ticket with its deaths: those of this very ticket, and those of the whole that it is a part of."""

    ticket: Ticket
    limit: int
    deaths: int = 0
    before: int = 0

    def parts(self) -> Iterator[_Attempt]:
        for half in self.ticket.halves():
            yield _Attempt(half, LAST_TRIES if len(half.rows) == 1 else 1, before=self.before + self.deaths)


class _Queue:
    """What is still to be run: fresh tickets in their order, made when their turn comes, then those that came back."""

    def __init__(self, tickets: Iterable[Ticket]) -> None:
        self._fresh = iter(tickets)
        self._head: deque[_Attempt] = deque()
        self.again: deque[_Attempt] = deque()

    def __bool__(self) -> bool:
        if not self._head and (ticket := next(self._fresh, None)) is not None:
            self._head.append(_Attempt(ticket, 1 + RETRIES))
        return bool(self._head or self.again)

    def pop(self) -> _Attempt:
        return (self._head or self.again).popleft()


@dataclass(frozen=True)
class Listener:
    """Who is told: of each ticket that has ended with its receipt, of a row that always ended its process (ticket,
    deaths, last reason), and in a sentence of what else happens."""

    receipt: Callable[[Ticket, Receipt], None]
    lost: Callable[[Ticket, int, str], None]
    notice: Callable[[str], None]


def supervise(pool: Pool, tickets: Iterable[Ticket], listener: Listener) -> None:
    """Run every ticket to a receipt, as many at a time as the pool has room for; the caller closes the pool.

    A ticket whose process died is run again ``RETRIES`` times, after the tickets that are still fresh. Then it is
    divided, and divided again, so that the one row that ends its process is found and the others are captured.

    Raises:
        RunRefused: a worker refused the work; the rest is not begun.
        ProbeError: process after process died and no ticket has ended.
    """
    queue, running = _Queue(tickets), dict[Ticket, _Attempt]()
    deaths, any_ended = 0, False
    told_at = time.monotonic() + PATIENCE_SECONDS
    while queue or running:
        while pool.room > 0 and queue:
            attempt = queue.pop()
            running[attempt.ticket] = attempt
            pool.give(attempt.ticket)
        if not running and time.monotonic() > told_at:
            listener.notice("no worker is ready yet; the run waits until the engine has room for one")
            told_at = math.inf
        for ticket, end in pool.ended(WAIT_SECONDS):
            attempt = running.pop(ticket)
            if isinstance(end, Refused):
                raise RunRefused(end.message, end.exit_status)
            if isinstance(end, Receipt):
                any_ended = True
                listener.receipt(ticket, end)
            elif end is None:
                queue.again.append(attempt)
            else:
                deaths += 1
                if deaths >= HOPELESS + pool.workers and not any_ended:
                    raise ProbeError(f"{deaths} workers died and no shard has ended; the last said: {end.reason}")
                queue.again.extend(_after_death(attempt, end, listener))


def _after_death(attempt: _Attempt, crash: Crash, listener: Listener) -> Iterator[_Attempt]:
    """What is still to be tried of a ticket whose process died."""
    attempt.deaths += 1
    ticket, rows = attempt.ticket, len(attempt.ticket.rows)
    what = f"shard {ticket.shard}" if not attempt.before else f"{rows} row{'s' * (rows > 1)} of shard {ticket.shard}"
    if attempt.deaths < attempt.limit:
        listener.notice(f"{what}: {crash.reason}; it is run again ({attempt.deaths} of {attempt.limit - 1})")
        yield attempt
    elif rows > 1:
        listener.notice(f"{what}: {crash.reason}; it is divided, to find the row that does it")
        yield from attempt.parts()
    else:
        listener.lost(ticket, attempt.before + attempt.deaths, crash.reason)
