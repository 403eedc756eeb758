"""Traces that leave the process, from workers of an engine: all of the way to NDIF but the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import probe
from probe.engines import Engine, RunRefused
from probe.models import ModelSource, nnsight
from probe.organism import CHECKPOINT
from probe.stages import workers
from probe.stages.elsewhere import device_of
from probe.store import Store
from probe.study import Study
from probe.values import ProbeError
from tests.stages.worker_pools import TWO, content, work_here

HOSTED = "someone/organism"


class NDIFRefuses(Exception):
    """In place of nnsight's own error, which like it derives from nothing else."""


def study(model: dict[str, Any], **settings: Any) -> Study:
    return Study.from_mapping(
        {
            "name": "remote",
            "model": model,
            "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": "You are a nurse."}],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "limit": 4,
            "capture": {"batch_size": 4},
            "generation": {"max_new_tokens": 3},
            **settings,
        }
    )


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("probe.stages.preparation.SHARD_ROWS", 4)
    workers._worker.cache_clear()
    yield
    workers._worker.cache_clear()


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """The rows of the organism in this process, by plain hooks."""
    return probe.run(study({"id": "organism"}), store=tmp_path / "local")


@pytest.fixture
def hosted(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The organism as a model that NDIF hosts: found by a hub id, its traces run by what NDIF would unpack."""
    organism = ModelSource(str(CHECKPOINT), None, CHECKPOINT)
    monkeypatch.setattr("probe.stages.resolution.find_model", lambda name, *_, **__: {HOSTED: organism}[name])
    opened = nnsight.NDIFBackend.__init__

    def without_the_network(self: Any, source: ModelSource) -> None:
        opened(self, source)
        assert self._traces._remote is True
        self._traces._remote = "local"

    monkeypatch.setattr(nnsight.NDIFBackend, "__init__", without_the_network)


def test_workers_over_a_hosted_model_hold_no_weights_ask_for_no_device_and_capture_the_rows_of_a_local_one(
    local: Store, hosted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("probe.models.loading", "probe.stages.resolution"):  # this machine has a GPU
        monkeypatch.setattr(f"{room}.device_kind", lambda _wanted: "cuda")
    monkeypatch.setattr("probe.models.hf.HFBackend.load", lambda *_, **__: pytest.fail("weights were loaded"))
    pools = work_here(monkeypatch)
    model = {"id": HOSTED, "backend": "nnsight", "remote": True}
    store = probe.run(study(model), store=tmp_path / "s", policy=probe.CapturePolicy(engine=TWO))
    assert [pool.gpus for pool in pools] == [0.0]
    ours, theirs = store.table(), local.table()
    pd.testing.assert_frame_equal(ours, theirs, check_exact=False, rtol=0, atol=1e-4)
    for layer in (0, 4):
        one, two = (x.select().resid(layer=layer, position="prompt_end").numpy() for x in (store, local))
        assert np.abs(one - two).max() <= 1e-5 * np.abs(two).max()
    worker = store.runs()[-1]
    assert (worker["backend"], worker["device"], len(worker["shards"])) == ("nnsight", "cpu", 2)


def test_devices_for_workers_over_a_hosted_model_are_refused() -> None:
    asked = study({"id": HOSTED, "backend": "nnsight", "remote": True})
    for engine in (Engine(workers=4), Engine("ray"), Engine("slurm", gpus_per_worker=0)):
        assert device_of(engine, asked) == "cpu"
    with pytest.raises(ProbeError, match=r"NDIF holds the model .* found --gpus-per-worker 0\.5; leave it out"):
        device_of(Engine("ray", gpus_per_worker=0.5), asked)


@pytest.mark.parametrize("error", [ConnectionRefusedError("nobody listens"), NDIFRefuses("no such\nmodel")])
def test_a_hosted_model_that_ndif_does_not_run_is_one_sentence_from_here_and_from_workers(
    hosted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def unanswered(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(nnsight._Traces, "run", unanswered)
    model = {"id": HOSTED, "backend": "nnsight", "remote": True}
    said = rf"NDIF did not run .*checkpoint \({type(error).__name__}: (nobody listens|model)\); see that the network"
    with pytest.raises(ProbeError, match=said):
        probe.run(study(model), store=tmp_path / "here")
    work_here(monkeypatch)
    with pytest.raises(RunRefused, match=said) as refused:
        probe.run(study(model), store=tmp_path / "s", policy=probe.CapturePolicy(engine=TWO))
    assert refused.value.exit_status == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "ray"])
def test_processes_that_pack_their_traces_up_leave_the_bytes_of_one_that_does(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "ray":
        pytest.importorskip("ray")
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = {"id": "organism", "backend": "nnsight", "remote": "local"}
    probe.run(study(model), store=tmp_path / "here")
    policy = probe.CapturePolicy(engine=Engine(name, workers=2))
    store = probe.run(study(model), store=tmp_path / "s", policy=policy)
    assert content(tmp_path / "s") == content(tmp_path / "here")
    assert sum(len(run["shards"]) for run in store.runs() if run.get("part_of")) == 2
    assert {run["backend"] for run in store.runs() if run.get("part_of")} == {"nnsight"}
