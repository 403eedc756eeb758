"""Workers on a Ray cluster. Knows actors and nodes; knows nothing of what the work does. The one file that imports ray.

A worker is an actor that Ray never restarts: a dead one is replaced by a new one, which waits until the cluster has
room for it, while tickets go to those that are alive. So a model is loaded once per worker, a device belongs to one
process for good (idle processes of stateless tasks would keep theirs), and the loss of a node leaves nothing hanging.
Only tickets and receipts travel through Ray.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from probe.engines.specs import Engine
from probe.engines.supervision import RunRefused
from probe.engines.work import Crash, End, Receipt, Refused, Ticket, Work, told
from probe.values import ProbeError

STARTS = 6
"""How many workers may die before they are ready, one after the other, until a run gives up."""

ANSWER_SECONDS = 20
"""How long a cluster with a given address may take to answer."""


class RayPool:
    """A :class:`~probe.engines.supervision.Pool` of Ray actors; made by :func:`start_ray`."""

    def __init__(self, ray: Any, work: Work, workers: int, resources: Mapping[str, float], *, stop: bool) -> None:
        self._ray = ray
        self._work = ray.put(work)
        self.workers = workers
        self._resources = resources
        self._stop = stop
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, Ticket]] = {}
        self._failed_starts = 0
        self._fill()

    @property
    def room(self) -> int:
        """Workers that are alive and have no ticket."""
        return len(self._idle)

    def give(self, ticket: Ticket) -> None:
        """Run a ticket on a worker that is alive."""
        worker = self._idle.pop()
        self._running[worker.run.remote(self._work, ticket)] = (worker, ticket)

    def ended(self, seconds: float) -> list[tuple[Ticket, End | None]]:
        """Answers and deaths; workers that have become ready have room now."""
        asked = [*self._running, *self._starting]
        done, _ = self._ray.wait(asked, num_returns=len(asked), timeout=0)
        if not done:
            done, _ = self._ray.wait(asked, num_returns=1, timeout=seconds)
        found: list[tuple[Ticket, End | None]] = []
        for answer in done:
            if answer in self._starting:
                self._started(answer)
                continue
            worker, ticket = self._running.pop(answer)
            end = self._end(answer)
            found.append((ticket, end))
            if isinstance(end, Crash):
                self._ray.kill(worker)
            else:
                self._idle.append(worker)
        self._fill()
        return found

    def close(self) -> None:
        """Kill every worker, and what was started of Ray for this run."""
        workers = [*self._starting.values(), *self._idle, *(worker for worker, _ in self._running.values())]
        for worker in workers:
            with suppress(self._ray.exceptions.RayError):
                self._ray.kill(worker)
        if self._stop:
            self._ray.shutdown()

    def _fill(self) -> None:
        """Start as many workers as are missing."""
        while len(self._starting) + len(self._idle) + len(self._running) < self.workers:
            kind = self._ray.remote(_Worker).options(
                max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD", **self._resources
            )
            worker = kind.remote()
            self._starting[worker.ready.remote()] = worker

    def _started(self, answer: Any) -> None:
        worker = self._starting.pop(answer)
        try:
            self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                raise ProbeError(
                    f"{STARTS} workers died one after the other before they were ready; persona-probe must be "
                    f"installed on every node. The last said: {_said(error)}"
                ) from error
        else:
            self._failed_starts = 0
            self._idle.append(worker)

    def _end(self, answer: Any) -> Receipt | Refused | Crash:
        try:
            end: Receipt | Refused | Crash = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            return Crash(_said(error))
        return end


class _Worker:
    """What runs in a worker's process."""

    def ready(self) -> str:
        """Its machine."""
        return socket.gethostname()

    def run(self, work: Work, ticket: Ticket) -> Receipt | Refused | Crash:
        """One ticket; after an unforeseen error the process is not used again."""
        try:
            return work.attempt(ticket)
        except Exception as error:
            return Crash(told(error))


def start_ray(engine: Engine, work: Work, *, tickets: int, gpus: float, check: Callable[[], str]) -> RayPool:
    """Connect to a cluster, or start one on this machine, let every node run ``check``, and start the workers.

    ``check`` returns an empty string, or what is wrong on its node.

    Raises:
        ProbeError: Ray is not installed, the cluster cannot be reached, started in time or has no room for a single
            worker, or a node fails the check.
    """
    ray = require_ray()
    resources: dict[str, float] = {"num_cpus": engine.cpus, "num_gpus": gpus}
    stop = not ray.is_initialized()
    if stop:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        _connect(ray, engine.address)
    try:
        _check_nodes(ray, check)
        # A worker lies on one node: two devices on two nodes are none for a worker that takes two.
        fit = sum(_fit(node["Resources"], resources) for node in ray.nodes() if node["Alive"])
        if fit == 0 and engine.workers is None:
            there = _size(_all(ray.cluster_resources()))
            raise ProbeError(
                f"a worker needs {_size(resources)} on one node, and the Ray cluster has {there} in all its nodes"
            )
        workers = min(engine.workers or fit, max(tickets, 1))
        return RayPool(ray, work, workers, resources, stop=stop)
    except BaseException:
        if stop:
            ray.shutdown()
        raise


def require_ray() -> Any:
    """The library.

    Raises:
        ProbeError: it is not installed.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ProbeError('Ray is not installed; run: pip install "persona-probe[ray]"') from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    """Connect to the cluster at an address, or to one that is found, or start one on this machine."""
    named = address or os.environ.get("RAY_ADDRESS", "")
    _require_answer(named)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="WARNING", configure_logging=False)
    except Exception as error:  # Ray raises bare ones, such as that its own processes did not start in time
        if named and named != "local":
            raise ProbeError(f"no Ray cluster answers at {named}: {told(error)}") from error
        raise ProbeError(
            f"Ray did not start on this machine ({told(error)}); where other work keeps it busy run the same command "
            "again later, or name a cluster that runs (--address)"
        ) from error


def _require_answer(address: str) -> None:
    """Refuse ``HOST:PORT`` where nothing listens; Ray itself would knock for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ProbeError(f"no Ray cluster answers at {address}: {error}") from error


def _check_nodes(ray: Any, check: Callable[[], str]) -> None:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def checked() -> str:
        return check()

    nodes = [node for node in ray.nodes() if node["Alive"]]
    task = ray.remote(checked)
    asked = [
        task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in nodes
    ]
    for node, answer in zip(nodes, asked, strict=True):
        try:
            wrong = ray.get(answer)
        except ray.exceptions.RayError as error:
            wrong = f"persona-probe must be installed on every node; it said: {_said(error)}"
        if wrong:
            raise RunRefused(f"node {node.get('NodeManagerHostname', node['NodeID'])}: {wrong}")


def _fit(there: Mapping[str, float], resources: Mapping[str, float]) -> int:
    """How many workers a node has room for in all."""
    rooms = [there.get("CPU", 0.0) / resources["num_cpus"]]
    if resources["num_gpus"]:
        rooms.append(there.get("GPU", 0.0) / resources["num_gpus"])
    return int(min(rooms))


def _all(there: Mapping[str, float]) -> dict[str, float]:
    return {"num_cpus": there.get("CPU", 0.0), "num_gpus": there.get("GPU", 0.0)}


def _size(resources: Mapping[str, float]) -> str:
    return f"{resources['num_cpus']:g} CPUs and {resources['num_gpus']:g} GPUs"


def _said(error: Exception) -> str:
    """The line of Ray's message that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if type(error).__name__ == "RayTaskError" and lines else (lines[0] if lines else repr(error))
