"""Writers killed with SIGKILL, at random moments and before each system call, and run again until they are done.

The writers are forks of this process, so that a kill falls into the writing and not into the start of an interpreter.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import store_writer

from probe.store import open_store
from probe.values import ProbeWarning

CALLS = ("open", "write", "fsync", "close", "replace", "link", "unlink", "mkdir", "ftruncate", "pwrite")
"""What a writer asks of the kernel; a kill before each of them is a kill after the one before."""


@dataclass
class Kills:
    """What was done and seen: rows acknowledged before a kill, and temps that dead writers left."""

    kills: int = 0
    idle: int = 0
    chains: int = 0
    acknowledged: int = 0
    temps: int = 0
    lost: list[str] = field(default_factory=list)


class Writer:
    """A fork that writes a store and says each shard's name once it is durable."""

    def __init__(self, main: Callable[[Callable[[str], None]], None], *, quiet: bool = False) -> None:
        assert "torch" not in sys.modules
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            status = 1
            try:
                main(lambda line: _say(write, line))
                status = 0
            except BaseException:
                if not quiet:
                    traceback.print_exc()
            finally:
                os._exit(status)
        os.close(write)
        self._lines = os.fdopen(read)

    def line(self) -> str:
        """The next line; empty at the end."""
        return self._lines.readline().strip()

    def kill(self) -> bool:
        """Kill it as a power button would; whether it was still alive."""
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == -signal.SIGKILL

    def end(self) -> int:
        """Its exit status, once it ends."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def rest(self) -> list[str]:
        """Every line not yet read."""
        with self._lines as lines:
            return lines.read().split()


def chains(folder: Path, seed: int, kills: int, *, n_cases: int = 40, shares: tuple[str, ...] = ("",)) -> Kills:
    """Kill writers until ``kills`` is reached; every time a store is complete, compare it with an undisturbed one.

    ``shares`` are the parts of one plan that writers take at the same time (``0/3``, ...). After every kill the whole
    store is verified and every acknowledged shard must be there.
    """
    rng, counts = random.Random(seed), Kills()
    whole = _shards(_undisturbed(folder / "whole", n_cases))
    while counts.kills < kills:
        path, acknowledged = folder / f"chain-{counts.chains}", set[str]()
        while True:
            writers = [_start(path, n_cases, share) for share in shares]
            _check_start(path, counts, writers)
            chosen = writers if rng.random() < 0.5 else [rng.choice(writers)]
            for _ in range(rng.randrange(4)):
                acknowledged |= {line for writer in chosen if (line := writer.line())}
            time.sleep(rng.uniform(0.0, 0.012))
            for writer in chosen:
                alive = writer.kill()
                counts.kills, counts.idle = counts.kills + alive, counts.idle + (not alive)
            statuses = [writer.end() for writer in writers if writer not in chosen]
            acknowledged |= {line for writer in writers for line in writer.rest()}
            assert not any(statuses), f"a writer failed beside a killed one: {statuses}"
            _check_after_kill(path, acknowledged, counts)
            if len(_shards(path)) == len(whole):
                break
        _finish(path, n_cases, shares, counts)
        assert _shards(path) == whole, f"seed {seed}: {path} differs from an undisturbed run"
        counts.chains += 1
        counts.acknowledged += len(acknowledged)
    return counts


def every_call(folder: Path, *, n_cases: int = 4, step: int = 1) -> Kills:
    """Kill a writer before its ``step``-th, 2 ``step``-th, ... system call until one lives; each is then continued."""
    counts = Kills()
    whole = _shards(_undisturbed(folder / "whole", n_cases))
    number = 0
    while True:
        number += step
        path = folder / f"call-{number}"
        writer = Writer(lambda say, path=path, n=number: _stepped(path, n_cases, n, say))  # type: ignore[misc]
        status = writer.end()
        acknowledged = set(writer.rest()) - {"ready"}
        if status == 0:
            break
        assert status == -signal.SIGKILL, f"call {number}: the writer ended with {status}"
        counts.kills += 1
        if (path / "manifest.json").exists():
            _check_after_kill(path, acknowledged, counts)
        _finish(path, n_cases, ("",), counts)
        assert _shards(path) == whole, f"call {number}: {path} differs from an undisturbed run"
        counts.chains += 1
        counts.acknowledged += len(acknowledged)
    return counts


def _start(path: Path, n_cases: int, share: str) -> Writer:
    return Writer(lambda say: store_writer.main(path, n_cases, 0.0, say, share))


def _stepped(path: Path, n_cases: int, last: int, say: Callable[[str], None]) -> None:
    """Write a store and die before the ``last``-th of the calls that are watched."""
    seen = 0

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted

    speak = os.write
    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))
    store_writer.main(path, n_cases, 0.0, lambda line: _say_by(speak, say, line))


def _say_by(speak: Callable[..., Any], say: Callable[[str], None], line: str) -> None:
    counted, os.write = os.write, speak  # what the test says is no call of the writer
    try:
        say(line)
    finally:
        os.write = counted


def _say(descriptor: int, line: str) -> None:
    os.write(descriptor, f"{line}\n".encode())


def _check_start(path: Path, counts: Kills, writers: list[Writer]) -> None:
    """Wait until every writer is ready; the temps of the dead are then gone."""
    left = _temps(path)
    for writer in writers:
        line = writer.line()
        assert line == "ready", f"a writer did not start: {line!r}"
    counts.temps += len(left)
    assert not left & _temps(path), f"temps of dead writers stay in {path}"


def _check_after_kill(path: Path, acknowledged: set[str], counts: Kills) -> None:
    counts.lost += sorted(acknowledged - _shards(path).keys())
    assert not counts.lost, f"acknowledged and lost: {counts.lost}"
    if (path / "plan" / "latest").exists():
        store = open_store(path)
        problems = store.verify()
        assert not problems, f"{path} after a kill: {[str(problem) for problem in problems]}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ProbeWarning)  # of the rows that are still to come
            rows = store.table().row_id
        named = {shard["name"] for run in store.runs() for shard in run["shards"]}
        assert _shards(path).keys() <= named, f"{path} holds shards of which no run is known to have made them"
        assert rows.is_unique
        assert len(rows) == store.coverage().committed


def _finish(path: Path, n_cases: int, shares: tuple[str, ...], counts: Kills) -> None:
    left = _temps(path)
    writers = [_start(path, n_cases, share) for share in shares]
    for writer in writers:
        assert writer.end() == 0, f"{path} could not be continued"
        writer.rest()
    counts.temps += len(left)
    assert not _temps(path)
    store = open_store(path)
    assert store.verify() == []
    coverage = store.coverage()
    assert (coverage.planned, coverage.committed) == (n_cases, n_cases)


def _undisturbed(path: Path, n_cases: int) -> Path:
    _finish(path, n_cases, ("",), Kills())
    return path


def _shards(path: Path) -> dict[str, bytes]:
    return {file.stem: file.read_bytes() for file in (path / "shards").glob("*.safetensors")}


def _temps(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in (path / "tmp").rglob("*") if file.is_file()}
