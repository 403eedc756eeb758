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


@contextmanager
def terminable() -> Iterator[None]:
    """Treat SIGTERM as an interrupt; a second signal ends the process at once."""

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise KeyboardInterrupt("SIGTERM")  # what it says tells it from Ctrl-C

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, terminate), signal.signal(signal.SIGINT, interrupt)
    except ValueError:  # not in the main thread: signals are the caller's affair
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous[0])
        signal.signal(signal.SIGINT, previous[1])
