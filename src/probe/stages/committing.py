"""Shards written while the next one computes. Knows order, memory and failure; knows neither a model nor a store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from probe.stages.interrupts import Interrupts


class Committing:
    """One thread that commits what it is given, in that order, and never more than one thing at a time.

    :meth:`give` waits until what was given before is durable, so that memory holds at most the shard that is being
    written beside the one that is being computed. Leaving the ``with`` block waits for the last commit, however it is
    left: what is counted afterwards is what is on disk. A failed commit ends the run at the next :meth:`check`.
    """

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="probe-commit")
        self._begun: Future[None] | None = None

    def __enter__(self) -> Committing:
        return self

    def give(self, commit: Callable[[], None]) -> None:
        """Commit this when everything before it is durable, and return while it is under way.

        A signal waits until it has begun: what was computed by then is not lost.

        Raises:
            ProbeError: what an earlier commit met; this one is not begun.
        """
        with self._interrupts.shielded():
            if self._begun is not None:
                self._begun.result()
            self._begun = self._thread.submit(commit)

    def check(self) -> None:
        """Raise what the last commit met, if it has ended with an error; does not wait."""
        if self._begun is not None and self._begun.done():
            self._begun.result()

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Wait for the commit that is under way; its failure is raised unless something else ends the block."""
        with self._interrupts.shielded():
            self._thread.shutdown(wait=True)
        if kind is None and self._begun is not None:
            self._begun.result()
