"""A run in a process of its own, for tests that kill it. Knows small shards, and a case that ends whoever runs it.

python -m tests.engines.study_driver STORE '{"name": "ray", "workers": 2}' CASES
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probe.engines import Engine, Ticket
from probe.stages import elsewhere, preparation, workers
from probe.stages.capture import capture
from probe.stages.policy import CaptureOutcome, CapturePolicy
from probe.stages.workers import read_row
from probe.study import Study
from probe.values import ProbeError

ROOT = Path(__file__).parents[2]
ROWS = 4
"""Rows of a shard."""

HELD = 20
"""The first shard that waits while a file ``hold`` stands beside the store."""


def study(cases: int = 80) -> Study:
    """Two personas: ``cases / 2`` shards."""
    return Study.from_mapping(
        {
            "name": "engines",
            "model": {"id": "organism"},
            "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": "You are a nurse."}],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "limit": cases,
            "capture": {"batch_size": 4},
            "generation": {"max_new_tokens": 8},
        }
    )


def run(store: Path | str, engine: Engine, cases: int = 80) -> CaptureOutcome:
    """The study in small shards."""
    before, preparation.SHARD_ROWS = preparation.SHARD_ROWS, ROWS
    try:
        return capture(study(cases), store=store, policy=CapturePolicy(engine=engine))
    finally:
        preparation.SHARD_ROWS = before


def troubled(opening: str, ticket: Ticket) -> Mapping[str, Any]:
    """A shard; unless a file ``poison`` beside the store names a case of it, or a file ``hold`` keeps late shards."""
    beside = Path(json.loads(opening)["store"]).parent
    poison, hold = beside / "poison", beside / "hold"
    if poison.exists() and any(read_row(row)[0].case == poison.read_text("utf-8") for row in ticket.rows):
        os.kill(os.getpid(), signal.SIGKILL)
    if ticket.shard >= HELD and hold.exists():
        (beside / f"held-{os.getpid()}").touch()
        while hold.exists():
            time.sleep(0.01)
    return workers.run_shard(opening, ticket)


def environment(**more: str) -> dict[str, str]:
    """Of a process that can import the package under test and its tests, with one thread."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", **more}


@contextmanager
def started(store: Path, engine: Mapping[str, Any], cases: int = 80) -> Iterator[subprocess.Popen[bytes]]:
    """The run in another process, which ends with the block at the latest; ``said`` has what it says."""
    command = [sys.executable, "-m", "tests.engines.study_driver", str(store), json.dumps(engine), str(cases)]
    with store.with_name("said").open("wb") as file:
        run = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=file)
    try:
        yield run
    finally:
        run.kill()
        run.wait()


def said(store: Path) -> str:
    """What the last run in another process has said."""
    return store.with_name("said").read_text("utf-8")


def finished(store: Path, engine: Mapping[str, Any], cases: int = 80) -> int:
    """The exit status of a whole run in another process."""
    with started(store, engine, cases) as run:
        return run.wait(600)


def content(store: Path) -> dict[str, bytes]:
    """Every byte of a store but the records of its runs, its lock and its index."""
    files = [file for file in store.rglob("*") if file.is_file() and file.name not in (".lock", "index.parquet")]
    return {str(f.relative_to(store)): f.read_bytes() for f in files if f.parent.name != "runs"}


def main() -> int:
    elsewhere.TASK = "tests.engines.study_driver:troubled"
    store, engine, cases = sys.argv[1:]
    try:
        return run(Path(store), Engine(**json.loads(engine)), int(cases)).exit_status
    except ProbeError as error:
        print(f"probe: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
