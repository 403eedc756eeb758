"""How many rows run at a time where the study leaves it open: by memory, once, and then by the store's plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import probe
from probe.models.spread import DeviceMap
from probe.stages import batch_size
from probe.stages.capture import capture
from probe.stages.costs import memory_bytes
from probe.stages.preparation import Preparation, prepare
from probe.stages.resolution import Resolved
from probe.stages.running import capturer_of, load_model
from probe.store.places import LocalPlace
from probe.study import Study

MIB = 2**20


def study(**settings: Any) -> Study:
    return Study.from_mapping(
        {
            "name": "batch",
            "model": {"id": "organism"},
            "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": "You are a nurse."}],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "limit": 6,
            "generation": {"max_new_tokens": 2},
            **settings,
        }
    )


@pytest.fixture(scope="module")
def prepared() -> Preparation:
    return prepare(study())


def plan_of(store: Path) -> int | None:
    return batch_size.planned_batch(LocalPlace(store))


def test_the_size_is_halved_until_the_estimate_fits(prepared: Preparation) -> None:
    twenty = batch_size.with_batch(prepared, 8)
    needed = {
        size: memory_bytes(batch_size.with_batch(prepared, size).resolved, prepared.cells.jobs, 0, process=0).on_device
        for size in (1, 2, 4, 8)
    }
    assert batch_size.fitting_batch(twenty, 10 * needed[8]) == 8
    assert batch_size.fitting_batch(twenty, int(needed[4] / 0.8) + 1) == 4
    assert batch_size.fitting_batch(twenty, int(needed[2] / 0.8) + 1) == 2
    assert batch_size.fitting_batch(twenty, 0) == 1


@dataclass
class FakeMeter:
    """Devices on which a pass holds ``fixed`` bytes and ``row`` for each of its rows."""

    free_bytes: tuple[int, ...]
    fixed: int
    row: tuple[int, ...]
    shares: tuple[float, ...] = (1.0,)
    seen: list[int] = field(default_factory=list)

    def free(self) -> tuple[int, ...]:
        return self.free_bytes

    def peak(self, work: Callable[[], Any]) -> tuple[int, ...]:
        rows = len(work().records)
        self.seen.append(rows)
        return tuple(self.fixed + rows * row for row in self.row)


@pytest.mark.parametrize(("free", "expected"), [(100 * MIB, 64), (51 * MIB, 32), (4 * MIB, 2), (1, 1), (10**12, 128)])
def test_on_a_device_the_size_is_what_fits_by_the_bytes_that_a_pass_was_measured_to_hold(
    prepared: Preparation, free: int, expected: int
) -> None:
    capturer = capturer_of(prepared.resolved, load_model(prepared.resolved))
    answer = 2 * prepared.resolved.footprint.cached * 4
    meter = FakeMeter((free,), fixed=MIB, row=(MIB - answer,))
    size = batch_size.measured_batch(prepared, capturer, meter)
    assert meter.seen == [2, 8]  # few rows, then more: the difference is what a row holds
    assert size == expected
    held = MIB + size * MIB
    assert held <= 0.8 * free or size == 1
    assert held + size * MIB > 0.8 * free or size == batch_size.MOST


def test_of_several_devices_the_one_that_holds_fewest_rows_decides(prepared: Preparation) -> None:
    """Each holds the keys and values of its own blocks: three quarters of them on the first, a quarter on the other."""
    capturer = capturer_of(prepared.resolved, load_model(prepared.resolved))
    answer = 2 * prepared.resolved.footprint.cached * 4
    shares = (0.75, 0.25)
    row = tuple(MIB - round(share * answer) for share in shares)
    for free, expected in (((51, 500), 32), ((500, 51), 32), ((100, 51), 32), ((100, 100), 64)):
        meter = FakeMeter((free[0] * MIB, free[1] * MIB), MIB, row, shares)
        assert batch_size.measured_batch(prepared, capturer, meter) == expected


def test_the_memory_of_every_device_that_computes_is_metered() -> None:
    laid = DeviceMap(("cuda:0", "cuda:1", "cuda:1", "cpu"), {"cpu": 8})
    facts = SimpleNamespace(device=torch.device("cuda:0"), device_map=laid)
    meter = batch_size.CudaMeter.of(facts)  # type: ignore[arg-type]
    assert meter == batch_size.CudaMeter((torch.device("cuda:0"), torch.device("cuda:1")), (0.5, 0.5))
    facts.device_map = None
    assert batch_size.CudaMeter.of(facts) == batch_size.CudaMeter((torch.device("cuda:0"),), (1.0,))  # type: ignore[arg-type]


def test_a_store_is_continued_with_the_size_of_its_plan_and_another_one_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probe.stages.capture.free_bytes", lambda: 0)  # a machine without room
    capture(study(limit=2), store=tmp_path / "s")
    assert plan_of(tmp_path / "s") == 1
    monkeypatch.undo()
    capture(study(limit=4), store=tmp_path / "s")
    assert plan_of(tmp_path / "s") == 1
    runs = probe.open_store(tmp_path / "s").runs()
    assert [run["batch_size"] for run in runs] == [1, 1]
    assert runs[1]["numerics_moved"] == []
    capture(study(limit=6, capture={"batch_size": 4}), store=tmp_path / "s")
    assert plan_of(tmp_path / "s") == 4
    capture(study(limit=2), store=tmp_path / "fresh")  # the control
    assert plan_of(tmp_path / "fresh") == 64


def test_rows_that_do_not_fit_together_run_in_halves_none_is_lost_and_the_next_shard_begins_with_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("probe.stages.preparation.SHARD_ROWS", 8)
    capture(study(limit=8), store=tmp_path / "whole")
    sizes: list[int] = []

    def load(resolved: Resolved) -> Any:
        backend: Any = load_model(resolved)  # checked with all its memory
        usual = backend.forward

        def forward(ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            sizes.append(len(ids))
            if len(ids) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return usual(ids, *args, **kwargs)

        backend.forward = forward
        return backend

    monkeypatch.setattr("probe.stages.capture.load_model", load)
    outcome = capture(study(limit=8), store=tmp_path / "halved")
    assert max(sizes) > 3  # else nothing was tested
    assert (outcome.committed, outcome.failed) == (outcome.planned, 0) == (16, 0)
    said = capsys.readouterr().err
    assert "out of memory with batches of 8; the rest of the shard ran with 2, and the next begins with 4" in said
    (run,) = probe.open_store(tmp_path / "halved").runs()
    assert [shard["batches"] for shard in run["shards"]] == [[8, 4, 2], [4, 2]]
    (run,) = probe.open_store(tmp_path / "whole").runs()
    assert [shard["batches"] for shard in run["shards"]] == [[8], [8]]  # the control
    whole, halved = (_answers(tmp_path / name) for name in ("whole", "halved"))
    assert halved == whole


def _answers(path: Path) -> Sequence[tuple[str, str, str]]:
    table = probe.open_store(path).table()
    return sorted(zip(table["persona"], table["case"], table["y_latent"], strict=True))
