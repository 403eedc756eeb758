from __future__ import annotations

from pathlib import Path

import pytest

from probe import organism
from probe.study import Study, new_study
from probe.study.yaml_marks import read_yaml
from probe.values import StudyError


def test_a_new_study_loads_and_lies_inside_the_organisms_plan(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "my study!"
    written = new_study(directory)
    assert sorted(written) == sorted(directory.iterdir())
    assert {path.name for path in written} == {"study.yaml", "personas.yaml", "cases.jsonl"}
    study = Study.load(directory / "study.yaml")
    assert (study.name, study.model.id, study.base) == ("my-study-", "organism", "none")
    assert [persona.id for persona in study.personas][:3] == ["none", "empty", "helpful_assistant"]
    assert len(study.cases) == 16
    assert [sum(case.stratum == stratum for case in study.cases) for stratum in study.strata] == [8, 8]
    assert len(study.cells()) == 7 * 16
    assert all(organism.planned(p.text(), case) for p in study.personas for case in study.cases)


def test_the_commented_settings_of_a_new_study_are_the_defaults(tmp_path: Path) -> None:
    path = new_study(tmp_path / "x")[0].parent / "study.yaml"
    plain = Study.load(path)
    top, settings = path.read_text().split("# conditions:")
    switched_on = top.replace("\n  # ", "\n  ") + "conditions:" + settings.replace("\n# ", "\n")
    path.write_text(switched_on)
    keys = set(read_yaml(path).value)
    assert keys >= {"conditions", "capture", "generation", "analyses"}
    assert Study.load(path) == plain


def test_the_commented_task_of_a_new_study_loads_with_its_cases(tmp_path: Path) -> None:
    path = new_study(tmp_path / "x")[0].parent / "study.yaml"
    top, own = path.read_text().split("# task:")
    own, rest = own.split("\n\n", 1)
    top = top.replace("task: builtin:triage", "# ")
    path.write_text(top + "task:" + own.replace("\n# ", "\n") + "\n\n" + rest)
    study = Study.load(path)
    assert study.task.option_ids == ("self_care", "routine", "emergency")
    # The cases of a new study are labelled A, B, C, which are the letters of these options.
    assert {case.target for case in study.cases} == set(study.task.option_ids)
    with pytest.raises(StudyError, match="The options are self_care"):
        Study.load(path, overrides=["task.letters=[X, Y, Z]"])


def test_the_personas_file_offers_a_list_that_loads(tmp_path: Path) -> None:
    path = new_study(tmp_path / "x")[0].parent / "study.yaml"
    personas = path.parent / "personas.yaml"
    entries = [line[2:] for line in personas.read_text().splitlines() if line.startswith("# - ")]
    assert len(entries) == 3
    personas.write_text("\n".join(entries) + "\n")
    assert [persona.id for persona in Study.load(path).personas] == ["none", "nurse", "bold_nurse"]


@pytest.mark.parametrize("name", ["study.yaml", "personas.yaml", "cases.jsonl"])
def test_a_file_that_is_there_is_not_overwritten_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(StudyError, match="is there already and is not overwritten"):
        new_study(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / name).unlink()
    assert len(new_study(tmp_path)) == 3


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StudyError, match="cannot be written"):
        new_study(tmp_path / "file")
    with pytest.raises(StudyError, match="cannot be written"):
        new_study(tmp_path / "file" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failure_half_way_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def full(self: Path, *args: str, **kwargs: str) -> object:
        if self.name == "cases.jsonl":
            raise OSError(28, "No space left on device")
        return real(self, *args, **kwargs)  # type: ignore[call-overload]  # passed on as it came

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(StudyError, match="No space left"):
            new_study(tmp_path / "x")
    assert list((tmp_path / "x").iterdir()) == []
    assert len(new_study(tmp_path / "x")) == 3
