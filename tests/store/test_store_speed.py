"""Reading keeps within loose multiples of bare formats: a slip by a factor shows, the noise of a machine does not.

Processor time, the least of several interleaved rounds; `benchmarks/store.py` measures, and states the targets.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import store_samples as samples
from safetensors import safe_open

from probe.store import StoreLock, View, open_store, open_writer

BF16 = np.dtype(ml_dtypes.bfloat16)
LAYERS, D_MODEL = 8, 4096


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    path, plan = tmp_path_factory.mktemp("speed") / "s", samples.plan(("nurse",), 512, per_shard=256)
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest("bfloat16", LAYERS, D_MODEL), lock=lock)
        writer.add_plan(plan)
        for shard in (0, 1):
            rows = [row for row in plan.rows if row.shard == shard]
            made = [samples.record(row, dtype="bfloat16", layers=LAYERS, d_model=D_MODEL, answer=False) for row in rows]
            writer.commit(made)
    return open_store(path).select()


def ratio(ours: Callable[[], object], other: Callable[[], object]) -> float:
    """Processor time of ours over that of the other, each the least of fifteen, interleaved."""
    seconds: dict[Callable[[], object], list[float]] = {ours: [], other: []}
    for _ in range(15):
        for work, found in seconds.items():
            started = time.process_time()
            work()
            found.append(time.process_time() - started)
    return min(seconds[ours]) / max(min(seconds[other]), 1e-5)


def test_a_layer_is_read_within_four_times_a_bare_copy_with_its_checksums(view: View, tmp_path: Path) -> None:
    layer = view.resid(layer=3, position="prompt_end").numpy(BF16)
    np.save(tmp_path / "bare.npy", layer.view(np.uint16))
    bare = np.load(tmp_path / "bare.npy", mmap_mode="r")

    def checked_copy() -> None:
        for row in np.array(bare):
            zlib.crc32(row)

    assert ratio(lambda: view.resid(layer=3, position="prompt_end").numpy(BF16), checked_copy) < 4


def test_a_row_at_all_layers_is_read_within_ten_times_a_slice_of_safetensors(view: View) -> None:
    row = view.select(case="case-0007")
    file, place = row.rows[0].located.shard.path, row.rows[0].located.row
    with safe_open(file, framework="numpy") as shard:

        def slices() -> np.ndarray:
            return np.concatenate(
                [shard.get_slice(f"resid.prompt_end.L{k:02d}")[place : place + 1] for k in range(LAYERS)]
            )

        np.testing.assert_array_equal(row.stack(position="prompt_end", dtype=BF16)[0], slices())
        assert ratio(lambda: row.stack(position="prompt_end", dtype=BF16), slices) < 10
