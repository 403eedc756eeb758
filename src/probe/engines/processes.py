"""Worker processes of this machine. Knows pipes, cores and devices; knows nothing of what the work does."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from probe.engines.work import Crash, End, Ticket, Work, read_end

_CHUNK = 2**16


@dataclass(eq=False)
class _Process:
    """A worker: its process, the ticket that it runs, and what it has said of an answer that is not yet whole."""

    process: subprocess.Popen[bytes]
    ticket: Ticket | None = None
    heard: bytearray = field(default_factory=bytearray)

    def send(self, text: str) -> None:
        tell(self.process, text)


class Processes:
    """A :class:`~probe.engines.supervision.Pool` of processes that are started when there is a ticket for them.

    ``environments`` has one mapping for each process: the variables in which it differs from this one.
    """

    def __init__(self, work: Work, environments: Sequence[Mapping[str, str]]) -> None:
        self.workers = len(environments)
        self._work = work
        self._selector = selectors.DefaultSelector()
        self._places: list[_Process | None] = [None] * len(environments)
        self._environments = environments

    @property
    def room(self) -> int:
        """Processes without a ticket, started or not."""
        return sum(process is None or process.ticket is None for process in self._places)

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the processes that were started and have not been seen to end."""
        return tuple(process.process.pid for process in self._places if process)

    def give(self, ticket: Ticket) -> None:
        """Run a ticket, in a process that has run one before if there is one."""
        free = [k for k, process in enumerate(self._places) if process is None or process.ticket is None]
        place = next((k for k in free if self._places[k] is not None), free[0])
        process = self._places[place] or self._start(place)
        process.ticket = ticket
        process.send(ticket.text)

    def ended(self, seconds: float) -> list[tuple[Ticket, End | None]]:
        """Answers, and deaths of processes that had a ticket."""
        found: list[tuple[Ticket, End | None]] = []
        for key, _ in self._selector.select(seconds):
            place = key.data
            process = self._places[place]
            assert process is not None and process.process.stdout is not None
            said = os.read(process.process.stdout.fileno(), _CHUNK)
            process.heard += said
            if said.endswith(b"\n") and process.ticket is not None:
                end = read_end(process.heard.decode())
                found.append((process.ticket, end))
                process.ticket = None
                process.heard.clear()
                if isinstance(end, Crash):
                    self._bury(place)
            elif not said:
                reason = how_it_ended(self._bury(place))
                if process.ticket is not None:
                    found.append((process.ticket, Crash(reason)))
        return found

    def close(self) -> None:
        """Kill every process."""
        for place, process in enumerate(self._places):
            if process is not None:
                self._bury(place)
        self._selector.close()

    def _start(self, place: int) -> _Process:
        process = start_serving(self._work, self._environments[place])
        found = self._places[place] = _Process(process)
        assert process.stdout is not None
        self._selector.register(process.stdout, selectors.EVENT_READ, place)
        return found

    def _bury(self, place: int) -> int:
        """End a process that is dead, dying or to die, make its place free, and return its exit status."""
        found = self._places[place]
        assert found is not None and found.process.stdin is not None and found.process.stdout is not None
        self._selector.unregister(found.process.stdout)
        found.process.stdout.close()
        with suppress(OSError):  # what it did not read any more
            found.process.stdin.close()
        found.process.kill()
        self._places[place] = None
        return found.process.wait()


def environments(workers: int, *, gpus: float, cpus: int | None, devices: int, group: int = 1) -> list[dict[str, str]]:
    """For each worker its devices and its threads: an equal part of the cores, unless ``cpus`` says how many.

    ``devices`` is how many the machine has; the ``group`` processes of a worker share its cores. Where
    ``OMP_NUM_THREADS`` is set and ``cpus`` is not, it stays.
    """
    settled = cpus is None and "OMP_NUM_THREADS" in os.environ
    threads = {} if settled else {"OMP_NUM_THREADS": str(max((cpus or _part(workers)) // group, 1))}
    found = []
    for k in range(workers):
        own = dict(threads)
        if gpus > 0:
            first = int(k * gpus)
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = visible.split(",") if visible else [str(device) for device in range(devices)]
            own["CUDA_VISIBLE_DEVICES"] = ",".join(names[first : first + max(int(gpus), 1)])
        found.append(own)
    return found


def start_serving(work: Work, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A process that has been told its work and takes tickets; ``environment`` is in what its own differs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "probe.engines.serving"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": _module_path(), **environment},
    )
    tell(process, json.dumps([work.task, work.opening]))
    return process


def tell(process: subprocess.Popen[bytes], text: str) -> None:
    """Send one line to such a process."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it died; the end of its answers says so
        process.stdin.write(f"{text}\n".encode())
        process.stdin.flush()


def _module_path() -> str:
    """Where modules are found, the package that runs here first: workers run the same code."""
    return os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])


def _part(workers: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // workers, 1)


def how_it_ended(status: int) -> str:
    """How a process ended, by its exit status, in a sentence."""
    if status >= 0:
        return f"its process ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    memory = " (as the system does where memory runs out)" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{memory}"
