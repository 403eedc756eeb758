"""One study in three models of different families: a store each, one page, and a model that fails costs only itself."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from probe.cli import app
from probe.stages.across import across, named_models
from probe.store import open_store
from probe.study import Study
from probe.values import ProbeError, StudyError
from tests.capture import architectures

FAMILIES = ("llama", "gpt2", "gemma2")


def study_file(folder: Path, models: list[object]) -> Path:
    settings = {
        "name": "many",
        "model": models,
        "personas": [
            {"id": "none", "text": None},
            {"id": "nurse", "text": "You are a nurse."},
            {"id": "clerk", "text": "You are a clerk."},
            {"id": "physician", "text": "You are a physician."},
        ],
        "task": {"id": "t", "instruction": "{case} {options}", "options": {"A": "home", "B": "care", "C": "ED"}},
        "cases": [
            {"id": f"c{i}", "input": f"fever aged {20 + 3 * i} years", "target": "ABC"[i % 3]} for i in range(12)
        ],
        "capture": {"layers": [0]},
        "generation": {"max_new_tokens": 3},
        "analyses": ["metrics"],
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def test_every_model_has_its_store_and_one_page_compares_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = study_file(tmp_path, [str(architectures.folder_of(name)) for name in FAMILIES])
    names = [study.name for study in Study.load_all(path)]
    assert len(set(names)) == 3
    assert all(name.startswith("many.") for name in names)
    ran = CliRunner().invoke(app, ["run", str(path)])
    assert ran.exit_code == 0, ran.output
    stores = [open_store(tmp_path / "cache" / name) for name in names]
    assert {store.coverage().committed for store in stores} == {48}
    page = (tmp_path / "figures" / "many" / "across.html").read_text(encoding="utf-8")
    assert page.count("<img") >= 2
    table = pd.read_csv(tmp_path / "figures" / "many" / "across_models.csv")
    assert len(table) == 3
    told = pd.read_csv(tmp_path / "figures" / "many" / "across_summary.csv")
    assert set(told.loc[told["metric"] == "expected_urgency_latent", "persona"]) == {"nurse", "clerk", "physician"}
    assert (told["models"] == 3).all()
    again = CliRunner().invoke(
        app, ["across", *(str(store.place.url) for store in stores), "--out", str(tmp_path / "x")]
    )
    assert again.exit_code == 0, again.output
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "x" / "across_summary.csv"), told)
    own = across(named_models(stores)).effects
    one = own[(own["stratum"] == "all") & (own["metric"] == "expected_urgency_latent")]
    assert sorted(one.loc[one["model"] == one["model"].iloc[0], "rank"]) == [1, 2, 3]


def test_a_model_that_cannot_be_run_is_told_and_the_others_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = [str(architectures.folder_of(name)) for name in FAMILIES[:2]]
    empty = tmp_path / "empty"
    empty.mkdir()
    ran = CliRunner().invoke(app, ["run", str(study_file(tmp_path, [here[0], str(empty), here[1]]))])
    assert ran.exit_code == 1
    assert str(empty) in ran.output
    assert len(pd.read_csv(tmp_path / "figures" / "many" / "across_models.csv")) == 2


def test_a_list_of_models_is_refused_where_one_is_meant_and_its_errors_name_the_line(tmp_path: Path) -> None:
    folder = str(architectures.folder_of("llama"))
    path = study_file(tmp_path, [folder, {"id": folder, "dtype": "float32"}])
    assert [study.name.endswith(end) for study, end in zip(Study.load_all(path), ("", "-2"), strict=True)] == [
        True,
        True,
    ]
    with pytest.raises(StudyError, match="names 2 models"):
        Study.load(path)
    assert Study.load(path, overrides=[f"model.id={folder}"]).name == "many"
    with pytest.raises(StudyError, match=r"study\.yaml:\d+:\d+: .*dtyp"):
        Study.load_all(study_file(tmp_path, [folder, {"id": folder, "dtyp": "float32"}]))
    with pytest.raises(StudyError, match="empty list"):
        Study.load_all(study_file(tmp_path, []))
    ran = CliRunner().invoke(app, ["run", str(study_file(tmp_path, [folder, folder])), "--store", str(tmp_path / "s")])
    assert ran.exit_code == 1
    assert isinstance(ran.exception, ProbeError | SystemExit)


def test_one_model_or_models_of_other_cases_are_no_comparison() -> None:
    table = pd.DataFrame({"case": ["a"], "persona": ["none"], "target": ["A"], "y_gen": ["A"]})
    table.attrs["options"] = ["A", "B"]
    with pytest.raises(ProbeError, match="two or more"):
        across({"m": table})
    with pytest.raises(ProbeError, match="no case in common"):
        across({"m": table, "n": table.assign(case="b")})
