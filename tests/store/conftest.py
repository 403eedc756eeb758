"""A written store of twelve rows, and a way to write others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import store_samples as samples

from probe.store import Plan, StoreLock, open_writer

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a whole plan, shard by shard, and return the store's path."""

    def write_store(name: str = "store", dtype: str = "float32", plan: Plan | None = None, absent: str = "") -> Path:
        path, plan = tmp_path / name, plan or samples.plan()
        with StoreLock.acquire(path) as lock:
            writer = open_writer(path, samples.manifest(dtype), lock=lock)
            writer.add_plan(plan)
            for shard in sorted({row.shard for row in plan.rows}):
                rows = [row for row in plan.rows if row.shard == shard]
                writer.commit([samples.record(row, dtype=dtype, answer=row.cell.case != absent) for row in rows])
        return path

    return write_store
