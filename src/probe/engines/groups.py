"""Several processes that are one worker: all run every ticket. Knows ranks, pipes and death; knows nothing of the work.

The first process is the worker that an engine has started, wherever that is. It starts the others beside itself, with
the variables that torch.distributed reads, and gives them each ticket before it begins with it. What they tell each
other on the way is the matter of the work. One that dies would leave the rest waiting for it: then all of them end, and
the engine starts a new worker.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from probe.engines.processes import how_it_ended, start_serving, tell
from probe.engines.serving import ENDED_BY_ITSELF
from probe.engines.work import Crash, End, Receipt, Ticket, Work, read_end, told
from probe.values import ProbeError, StoreError

GRACE_SECONDS = 20
"""How long the first process may need to meet, by itself, what ended another one; then it is ended."""

ANSWER_SECONDS = 600
"""How long the others may need for what is left of a ticket when the first process is done with it."""

_NOTICED_SECONDS = 2
_HOST = "127.0.0.1"
_OWN = "PROBE_GROUP_RANK"  # a name of our own: who started this may have a RANK without such a group


class ProcessLost(RuntimeError):
    """A process of the group ended within a ticket, or said that it failed."""


def together(work: Work, processes: int, *, threads: int | None = None, gpus: float = 0) -> Work:
    """The same work for workers that are groups of so many processes; of one process, the work itself.

    ``threads`` are those of each process, by default as its environment says. Without ``gpus`` no process sees one.
    """
    if processes == 1:
        return work
    own = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    own |= {} if gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return Work(f"{__name__}:run_together", json.dumps([[work.task, work.opening], processes, own]))


def rank() -> int:
    """Which of its group this process is; 0 where there is no group."""
    return int(os.environ.get(_OWN, "0"))


def run_together(opening: str, ticket: Ticket) -> Mapping[str, Any]:
    """Run a ticket in every process of the group; what the first says is the receipt.

    Raises:
        ProbeError: the work was refused.
        ProcessLost: another process has ended; this one must not be used again.
    """
    return _group(opening).run(ticket)


@lru_cache(maxsize=1)
def _group(opening: str) -> Group:
    """The group of this process."""
    work, processes, own = json.loads(opening)
    return Group(Work(*work), processes, own)


class Group:
    """This process, which is the first, and those that it has started."""

    def __init__(self, work: Work, processes: int, own: Mapping[str, str]) -> None:
        os.environ.update(own)  # before torch is imported, which reads it
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it stands in a compiled module

        # Listening before anybody knows the port: between asking for a free one and using it, it could be taken.
        self._meeting = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
        os.environ.update(_variables(0, processes, self._meeting.port))
        self._work = work
        self._others = [_Other(work, k, _variables(k, processes, self._meeting.port)) for k in range(1, processes)]

    def run(self, ticket: Ticket) -> Mapping[str, Any]:
        """See :func:`run_together`."""
        for other in self._others:
            tell(other.process, ticket.text)
        try:
            facts = self._work.run(ticket)
        except Exception as error:
            if isinstance(error, ProbeError) and type(error) is not StoreError:
                raise
            trouble = self._trouble()
            if not trouble and type(error) is not StoreError:
                raise
            # A store that does not answer may do so later, but the others are ahead of this process by then.
            raise ProcessLost("; ".join([*trouble, told(error)])) from error
        for other in self._others:
            other.require_receipt()
        return facts

    def _trouble(self) -> list[str]:
        """What other processes met, which may be what this one has seen of it."""
        until = time.monotonic() + _NOTICED_SECONDS
        while not any(other.trouble for other in self._others) and time.monotonic() < until:
            time.sleep(0.01)
        return [other.trouble for other in self._others if other.trouble]


class _Other:
    """Another process of the group: tickets go to its standard input, and its ends are heard in a thread."""

    def __init__(self, work: Work, k: int, variables: Mapping[str, str]) -> None:
        self._name = f"process {k} of the group"
        self._ends: queue.SimpleQueue[End | None] = queue.SimpleQueue()
        self.trouble = ""
        self.process = start_serving(work, variables)
        threading.Thread(target=self._listen, daemon=True).start()

    def require_receipt(self) -> None:
        """Wait until this process has done the ticket, too.

        Raises:
            ProcessLost: it has not.
        """
        try:
            end = self._ends.get(timeout=ANSWER_SECONDS)
        except queue.Empty as error:
            raise ProcessLost(f"{self._name} does not end a ticket that the first one has ended") from error
        if not isinstance(end, Receipt):
            raise ProcessLost(self.trouble)

    def _listen(self) -> None:
        """Hear receipts; at anything else, or at the end of this process, see to it that the first one ends, too."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            end = read_end(line.decode())
            if not isinstance(end, Receipt):
                self.trouble = f"{self._name}: {end.reason if isinstance(end, Crash) else end.message}"
                break
            self._ends.put(end)
        else:
            self.trouble = f"{self._name}: {how_it_ended(self.process.wait())}"
        self._ends.put(None)
        time.sleep(GRACE_SECONDS)
        sys.stderr.write(f"probe: {self.trouble}; the others end with it\n")
        sys.stderr.flush()
        os._exit(ENDED_BY_ITSELF)


def _variables(k: int, processes: int, port: int) -> dict[str, str]:
    """What torch.distributed reads: all of them, the first included, find each other at a store that stands already."""
    return {
        _OWN: str(k),
        "RANK": str(k),
        "LOCAL_RANK": str(k),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
