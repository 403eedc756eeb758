"""A torch-free writer process for the tests: commits a plan shard by shard and prints each name once it is durable.

python store_writer.py STORE N_CASES [PAUSE_SECONDS]
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import store_samples as samples

from probe.store import Share, StoreLock, open_writer

WIDTH = {"layers": 3, "d_model": 2048}


def main(path: Path, n_cases: int, pause: float, say: Callable[[str], None], share: str = "") -> None:
    with StoreLock.acquire(path, Share.parse(share) if share else None) as lock:
        writer = open_writer(path, samples.manifest(**WIDTH), lock=lock)
        writer.add_plan(samples.plan(("nurse",), n_cases, per_shard=2))
        writer.start_run({"argv": sys.argv})
        say("ready")
        for _, rows in groupby(writer.pending(), key=lambda row: row.shard):
            say(writer.commit([samples.record(row, **WIDTH) for row in rows]))
            time.sleep(pause)
        writer.finish_run(0)


if __name__ == "__main__":
    assert "torch" not in sys.modules
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]),
        float(sys.argv[3]) if len(sys.argv) > 3 else 0.0,
        functools.partial(print, flush=True),
    )
