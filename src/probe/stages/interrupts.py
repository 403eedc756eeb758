"""Signals as interrupts. Knows SIGINT and SIGTERM; knows nothing of what they interrupt."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from probe.values import ProbeError


class Interrupted(ProbeError):
    """A run was interrupted; every committed shard is safe."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class Interrupts:
    """The first signal interrupts, outside of what is shielded; the second ends the process at once."""

    def __init__(self) -> None:
        self._shields = 0
        self._waiting: KeyboardInterrupt | None = None

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Let the block end before a signal interrupts: a commit is reported if it is made, and made if it is begun."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        if self._waiting and not self._shields:
            raise self._waiting

    def terminate(self, _signal: int, _frame: FrameType | None) -> None:
        """The handler of SIGTERM."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._raise(KeyboardInterrupt("SIGTERM"))  # what it says tells it from Ctrl-C

    def interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        """The handler of SIGINT."""
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        self._raise(KeyboardInterrupt())

    def _raise(self, interrupt: KeyboardInterrupt) -> None:
        self._waiting = interrupt
        if not self._shields:
            raise interrupt


@contextmanager
def terminable() -> Iterator[Interrupts]:
    """Treat SIGTERM as an interrupt; a second signal ends the process at once."""
    interrupts = Interrupts()
    try:
        previous = (
            signal.signal(signal.SIGTERM, interrupts.terminate),
            signal.signal(signal.SIGINT, interrupts.interrupt),
        )
    except ValueError:  # not in the main thread: signals are the caller's affair
        yield interrupts
        return
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGTERM, previous[0])
        signal.signal(signal.SIGINT, previous[1])
