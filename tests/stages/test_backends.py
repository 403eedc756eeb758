"""A study gives the same whichever backend reads the model; the run says which one did."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import probe
from probe.cli_options import StudyOptions
from probe.stages.demo import demo_study
from probe.store import Store
from probe.study import Study

LOGP = 1e-4
OTHERS: tuple[tuple[str, bool | str], ...] = (("transformer-lens", False), ("nnsight", False), ("nnsight", "local"))


def study(backend: str, remote: bool | str = False) -> Study:
    return Study.from_mapping(
        {
            "name": "backends",
            "model": {"id": "organism", "backend": backend, "remote": remote},
            "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": "You are a registered nurse."}],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "generation": {"max_new_tokens": 24},
            "capture": {"batch_size": 4, "positions": ["prompt_end", "case_mean", "answer", "response_mean"]},
            "analyses": ["metrics"],
            "limit": 4,
        }
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return probe.run(study("hf"), store=tmp_path_factory.mktemp("hf") / "store")


@pytest.mark.parametrize(("backend", "remote"), OTHERS)
def test_the_organism_gives_the_same_rows_and_metrics_through_every_backend(
    plain: Store, tmp_path: Path, backend: str, remote: bool | str
) -> None:
    store = probe.run(study(backend, remote), store=tmp_path / "store")
    ours, theirs = store.table(), plain.table()
    assert len(theirs) == 8
    assert len(set(theirs["y_latent"])) > 1  # there is something to agree on
    pd.testing.assert_frame_equal(ours, theirs, check_exact=False, rtol=0, atol=LOGP)
    pd.testing.assert_frame_equal(probe.metrics(store), probe.metrics(plain), check_exact=False, rtol=0, atol=LOGP)
    assert store.runs()[-1]["readout"]
    for position in ("prompt_end", "case_mean", "answer", "response_mean"):
        for layer in (0, 2, 4):
            one, two = (
                np.asarray(opened.select().resid(layer=layer, position=position, missing="drop"))
                for opened in (store, plain)
            )
            assert abs(one - two).max() <= 1e-5 * abs(two).max()


def test_the_backend_is_on_record_with_its_version_and_another_may_continue_the_store(
    plain: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plain.runs()[-1]["backend"] == "hf"
    assert not {"nnsight", "transformer-lens"} & set(plain.runs()[-1]["versions"])
    store = tmp_path / "store"
    probe.run(study("hf").limited(2), store=store)
    capsys.readouterr()
    record = probe.run(study("nnsight"), store=store).runs()[-1]
    assert (record["backend"], record["versions"]["nnsight"]) == ("nnsight", version("nnsight"))
    assert "backend was hf, is nnsight" in capsys.readouterr().err
    pd.testing.assert_frame_equal(probe.open_store(store).table(), plain.table(), check_exact=False, rtol=0, atol=LOGP)


def test_the_option_of_the_command_line_goes_before_the_study_file(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: n\nmodel: {id: organism}\npersonas: builtin:persona-paradox\n"
        "task: builtin:triage\ncases: builtin:triage\n"
    )
    assert StudyOptions(file).load().model.backend == "hf"
    assert StudyOptions(file, backend="transformer-lens").load().model.backend == "transformer-lens"
    assert demo_study("nnsight").model.backend == "nnsight"
    hosted = StudyOptions(file, backend="nnsight", remote=True, set_=["model.id=someone/model"]).load().model
    assert (hosted.remote, StudyOptions(file).load().model.remote) == (True, False)
    with pytest.raises(probe.ProbeError, match="only nnsight runs a model elsewhere, and the backend is 'hf'"):
        StudyOptions(file, remote=True, set_=["model.id=someone/model"]).load()
    with pytest.raises(probe.ProbeError, match="The nearest known backend is 'nnsight'"):
        StudyOptions(file, backend="nnsigh").load()
