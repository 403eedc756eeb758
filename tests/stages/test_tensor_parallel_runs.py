"""A study whose model two processes hold together leaves the rows of one process, whoever dies and wherever it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import probe
from probe.engines import Engine, RunRefused
from probe.stages.capture import capture
from probe.stages.direction_files import save_directions
from probe.stages.elsewhere import device_of
from probe.stages.policy import CaptureOutcome, CapturePolicy
from probe.store import Store
from probe.study import Study
from probe.values import Direction, ModelError, ProbeError, Site, StoreMismatch
from tests.tiny_models import save_tiny_model

ROOT = Path(__file__).parents[2]
CLOSE = 1e-4
"""max|a - b| <= CLOSE max|b|, for residuals; and how far log-probabilities may lie apart."""
STREAMS = ("resid", "attn_out", "resid_mid", "mlp_out")
POSITIONS = ("prompt_end", "persona_end", "case_mean", "answer", "response_mean")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probe.stages.preparation.SHARD_ROWS", 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four heads that share two of keys and values."""
    return save_tiny_model(tmp_path_factory.mktemp("model"), "llama", scale=3.0)


def study(model: str | Path = "organism", processes: int | None = None, **settings: Any) -> Study:
    mapping = {
        "name": "together",
        "model": {"id": str(model), "tensor_parallel": processes},
        "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": "You are a nurse."}],
        "task": "builtin:triage",
        "cases": "builtin:triage",
        "limit": 6,
        "capture": {"batch_size": 3, "streams": list(STREAMS), "positions": list(POSITIONS)},
        "generation": {"max_new_tokens": 4},
        **settings,
    }
    mapping["model"] = {key: value for key, value in mapping["model"].items() if value is not None}
    return Study.from_mapping(mapping, directory=ROOT if model == "organism" else Path(model))


def run(asked: Study, store: Path, **policy: Any) -> CaptureOutcome:
    return capture(asked, store=store, policy=CapturePolicy(**policy))


def require_same_rows(one: Store, two: Store) -> None:
    """The same rows, once each, with the same tokens; numbers but for rounding."""
    assert two.verify() == []
    assert two.coverage() == one.coverage()
    a, b = one.select(), two.select()
    names = ["row_id", "persona", "case", "intervention", "y_gen", "status"]
    assert a.table()[names].equals(b.table()[names])
    assert [x.tolist() for x in a.gen_tokens()] == [x.tolist() for x in b.gen_tokens()]
    assert np.abs(a.label_logp() - b.label_logp()).max() <= CLOSE
    for stream in STREAMS:
        for position in POSITIONS:
            x, y = (view.stack(position=position, stream=stream, missing="nan") for view in (a, b))
            assert np.array_equal(np.isnan(x), np.isnan(y))
            largest = np.nanmax(np.abs(x), initial=0.0, axis=(0, 2))[None, :, None]
            assert np.nanmax(np.abs(x - y) - CLOSE * largest, initial=0.0) <= 0


@pytest.mark.slow
def test_two_processes_leave_the_rows_of_one_with_edits_and_drawn_tokens(llama: Path, tmp_path: Path) -> None:
    vector = np.random.default_rng(0).normal(size=32).astype(np.float32)
    site = Site(2, "prompt_end")
    drawn = Direction(site, vector, "nurse", "none", 2, frozenset({"f0", "f1"}), maker="drawn")
    save_directions(llama / "d.safetensors", [drawn])
    entry = {"name": "push", "direction": "nurse", "layers": [2], "add": "d.safetensors", "strength": 2.0}
    settings = {
        "interventions": [{**entry, "positions": "all"}],
        "generation": {"max_new_tokens": 4, "temperature": 0.8, "seeds": 1},
    }
    alone, store = tmp_path / "alone", tmp_path / "store"
    assert run(study(llama, **settings), alone).exit_status == 0
    assert run(study(llama, 2, **settings), store).exit_status == 0
    one, two = probe.open_store(alone), probe.open_store(store)
    require_same_rows(one, two)
    plain, pushed = (two.select(intervention=name).label_logp() for name in ("", "push"))
    assert np.abs(plain - pushed).max() > 0.01
    for ours, theirs in zip(one.readout()[0].values(), two.readout()[0].values(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    (worker,) = [record for record in two.runs() if "part_of" in record]
    assert (worker["tensor_parallel"], worker["device"]) == (2, "cpu")
    with pytest.raises(StoreMismatch, match="tensor_parallel was 2, is None"):
        run(study(llama, **{**settings, "limit": 8}), store, strict_numerics=True)
    assert run(study(llama, **{**settings, "limit": 8}), store).exit_status == 0  # it is no part of what a row is


@pytest.mark.slow
def test_a_process_that_is_killed_in_a_shard_costs_no_row_and_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(study(processes=2), tmp_path / "whole").exit_status == 0
    assert run(study(), tmp_path / "alone").exit_status == 0
    monkeypatch.setattr("probe.stages.elsewhere.TASK", "tests.stages.group_shards:dying")
    store = tmp_path / "killed" / "store"
    store.parent.mkdir()
    assert run(study(processes=2), store).exit_status == 0
    assert store.with_name("died").exists()
    assert "process 1 of the group: its process was ended by SIGKILL" in capfd.readouterr().err
    files = [sorted((folder / "shards").glob("*.safetensors")) for folder in (tmp_path / "whole", store)]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    require_same_rows(probe.open_store(tmp_path / "alone"), probe.open_store(store))


@pytest.mark.slow
def test_processes_that_compute_different_bits_are_told_and_nothing_of_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probe.stages.elsewhere.TASK", "tests.stages.group_shards:differing")
    with pytest.raises(RunRefused, match=r"the 2 processes .* have not found the same in shard 1"):
        run(study(processes=2), tmp_path / "store")
    kept = probe.open_store(tmp_path / "store", warn=False)
    assert [record["shard"] for run in kept.runs() for record in run.get("shards", ())] == [0]
    assert kept.verify() == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("library", "engine"),
    [
        ("submitit", Engine("slurm", workers=1, slurm={"cluster": "local"})),
        ("ray", Engine("ray", workers=1, address="local")),
    ],
)
def test_a_worker_of_any_engine_can_be_such_a_group(library: str, engine: Engine, tmp_path: Path) -> None:
    pytest.importorskip(library)
    small = {"limit": 2}
    assert run(study(**small), tmp_path / "alone").exit_status == 0
    assert run(study(processes=2, **small), tmp_path / "store", engine=engine).exit_status == 0
    require_same_rows(probe.open_store(tmp_path / "alone"), probe.open_store(tmp_path / "store"))


@pytest.mark.slow
def test_heads_that_are_divided_are_no_stream(tmp_path: Path) -> None:
    with pytest.raises(RunRefused, match="no stream 'head_out': its heads are divided between 2 processes"):
        run(study(processes=2, capture={"streams": ["resid", "head_out"]}), tmp_path / "store")


def test_a_model_that_cannot_be_divided_is_refused_before_there_is_a_store(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="4 heads, which 3 processes cannot share evenly"):
        run(study(llama, 3), tmp_path / "store")
    gpt2 = save_tiny_model(tmp_path / "gpt2", "gpt2")
    with pytest.raises(ModelError, match="no plan to divide the blocks of GPT2LMHeadModel"):
        run(study(gpt2, 2), tmp_path / "store")
    assert not list((tmp_path / "store").glob("*.json"))


def test_a_group_takes_a_device_for_each_process() -> None:
    asked = study(processes=2)
    for gpus in (0.5, 1, 4):
        with pytest.raises(ProbeError, match="tensor_parallel: 2 takes 2 devices for each worker"):
            device_of(Engine(gpus_per_worker=gpus), asked)
    assert device_of(Engine(gpus_per_worker=2), asked) == "cuda"
    assert device_of(Engine(gpus_per_worker=0), asked) == "cpu"
