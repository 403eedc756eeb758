"""A study of a model that is laid on several places gives the rows of one device, and its record says where it lay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from probe.cli import app
from probe.cli_options import StudyOptions
from probe.engines import Engine
from probe.models import find_model
from probe.models.footprint import read_footprint
from probe.stages import workers
from probe.stages.capture import capture
from probe.stages.elsewhere import device_of
from probe.stages.policy import CapturePolicy
from probe.store import Store, open_store
from probe.study import Study
from probe.values import ProbeError, StoreMismatch
from tests.stages.worker_pools import TWO, work_here

pytest.importorskip("accelerate")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the accelerator has room")

LAID = "cpu x 2 blocks, disk x 4 blocks"


def study(device_map: str | None = "auto", **settings: Any) -> Study:
    return Study.from_mapping(
        {
            "name": "laid",
            "model": {"id": "organism", "device_map": device_map},
            "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": "You are a nurse."}],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "limit": 4,
            "capture": {"batch_size": 4, "positions": ["prompt_end", "case_mean", "answer", "response_mean"]},
            "generation": {"max_new_tokens": 16},
            **settings,
        }
    )


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for a part of the organism, in float32."""
    free = int(0.8 * 4 * read_footprint(find_model("organism")).parameters)
    monkeypatch.setattr("transformers.integrations.accelerate.accelerate_max_memory", lambda given=None: {"cpu": free})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = tmp_path_factory.mktemp("plain") / "store"
    assert capture(study(None), store=store).committed == 8
    return open_store(store)


def same_rows(store: Store, plain: Store) -> None:
    pd.testing.assert_frame_equal(store.table(), plain.table())
    for position in ("prompt_end", "case_mean", "answer", "response_mean"):
        for layer in (0, 2, 4):
            one, two = (
                np.asarray(opened.select().resid(layer=layer, position=position, missing="drop"))
                for opened in (store, plain)
            )
            assert one.tobytes() == two.tobytes()


def test_a_model_half_of_which_is_fetched_from_disk_gives_the_rows_of_a_plain_load(
    plain: Store, tmp_path: Path, little_memory: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capture(study(), store=tmp_path / "s").committed == 8
    said = [line for line in capsys.readouterr().err.splitlines() if "the model lies on" in line]
    assert len(said) == 1 and LAID in said[0] and "GB from disk, which is slow and changes nothing else" in said[0]
    store = open_store(tmp_path / "s")
    same_rows(store, plain)
    assert [run["device_map"] for run in (*store.runs(), *plain.runs())] == [LAID, None]
    assert store.runs()[-1]["readout"]


def test_a_store_is_continued_on_other_devices_and_not_under_strict_numerics(
    tmp_path: Path, little_memory: None, capsys: pytest.CaptureFixture[str]
) -> None:
    capture(study(), store=tmp_path / "s")
    more = study(None, limit=6)
    with pytest.raises(StoreMismatch, match=rf"--strict-numerics: .*device_map was {LAID}, is None"):
        capture(more, store=tmp_path / "s", policy=CapturePolicy(strict_numerics=True))
    capsys.readouterr()
    assert capture(more, store=tmp_path / "s").committed == 12
    assert capsys.readouterr().err.count(f"device_map was {LAID}, is None") == 1


def test_workers_lay_the_model_themselves(
    plain: Store, tmp_path: Path, little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers._worker.cache_clear()
    work_here(monkeypatch)
    assert capture(study(), store=tmp_path / "s", policy=CapturePolicy(engine=TWO)).committed == 8
    workers._worker.cache_clear()
    store = open_store(tmp_path / "s")
    same_rows(store, plain)
    assert [run["device_map"] for run in store.runs() if run.get("part_of")] == [LAID]


def test_it_is_said_how_many_whole_devices_a_worker_of_a_laid_model_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProbeError, match=r"--gpus-per-worker says how many these are; found 0\.5, use 2 or more"):
        device_of(Engine("ray", gpus_per_worker=0.5), study())
    assert device_of(Engine("ray", gpus_per_worker=0.5), study(None)) == "cuda"
    assert device_of(Engine("ray", gpus_per_worker=2), study()) == "cuda"
    assert device_of(Engine("ray", gpus_per_worker=0), study()) == "cpu"
    assert device_of(Engine("ray"), study()) == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ProbeError, match=r"these are; found none, use 2 or more"):
        device_of(Engine("ray"), study())
    assert device_of(Engine("ray"), study(None)) == "cuda"


def test_the_options_of_a_run_are_keys_of_its_study(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: n\nmodel: {id: organism}\npersonas: builtin:persona-paradox\n"
        "task: builtin:triage\ncases: builtin:triage\n"
    )
    one, laid = StudyOptions(file).load().model, StudyOptions(file, device_map="sequential").load().model
    assert (one.device_map, one.tensor_parallel) == (None, None)
    assert (laid.device_map, laid.tensor_parallel) == ("sequential", None)
    assert StudyOptions(file, tensor_parallel=2).load().model.tensor_parallel == 2
    with pytest.raises(ProbeError, match=r"--set model\.device=cpu: `device_map` chooses the devices itself"):
        StudyOptions(file, device="cpu", device_map="auto").load()


def test_a_dry_run_reckons_with_all_devices_for_a_laid_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: n\nmodel: {id: organism}\npersonas: builtin:persona-paradox\n"
        "task: builtin:triage\ncases: builtin:triage\nlimit: 2\n"
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    monkeypatch.chdir(tmp_path)
    for options, devices in (((), "1 x h100"), (("--device-map", "auto"), "4 x h100")):
        found = CliRunner().invoke(app, ["run", str(file), "--dry-run", *options])
        assert found.exit_code == 0, found.output
        assert devices in " ".join(found.output.split())
