"""docs/study-file.md says what the code does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from probe.study import (
    ANALYSES,
    CONFIRMABLE,
    CaptureSpec,
    ConditionSpec,
    GenerationSpec,
    LabelSpec,
    ModelSpec,
    PlannedContrast,
    Study,
)
from probe.study.case_tables import FieldNames
from probe.study.hub_cases import HubSource
from probe.study.located import Located
from probe.study.spec import StudyFile
from probe.study.yaml_marks import parse_yaml
from probe.values import LABEL_SITES, POSITIONS, AbsentSite, GivenText

PAGE = Path(__file__).parents[2] / "docs" / "study-file.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
MINIMAL = {
    "name": "x",
    "model": {"id": "organism"},
    "personas": "builtin:persona-paradox",
    "task": "builtin:triage",
    "cases": "builtin:triage",
}


@pytest.mark.parametrize("text", [text for language, text in BLOCKS if language == "yaml"])
def test_every_yaml_example_loads(text: str, tmp_path: Path) -> None:
    kind = text.splitlines()[0]
    value = parse_yaml(text, kind).value
    if kind == "# study.yaml":
        (tmp_path / "study.yaml").write_text(text)
        Study.load(tmp_path / "study.yaml")
    elif kind == "# personas.yaml":
        (tmp_path / "personas.yaml").write_text(text)
        base = "none"
        assert (
            len(Study.from_mapping(MINIMAL | {"personas": "personas.yaml", "base": base}, directory=tmp_path).personas)
            > 3
        )
    elif kind == "# in study.yaml, beside cases.csv":
        (table,) = [text for language, text in BLOCKS if language == "csv"]
        (tmp_path / "cases.csv").write_text(table)
        cases = Study.from_mapping(MINIMAL | value, directory=tmp_path).cases
        assert [(case.id, case.target, case.stratum, case.choices) for case in cases] == [
            ("1", "C", "emergency", ("rest", "see a doctor", "go to the ED")),
            ("2", "A", "primary_care", ("rest", "see a doctor", "go to the ED")),
        ]
        assert [dict(case.metadata) for case in cases] == [{"year": "2024"}, {"year": "2025"}]
    else:
        assert kind == "# in study.yaml"
        Study.from_mapping(MINIMAL | value)


def test_the_json_example_loads(tmp_path: Path) -> None:
    (text,) = [text for language, text in BLOCKS if language == "json"]
    (tmp_path / "cases.jsonl").write_text(text)
    cases = Study.from_mapping(MINIMAL | {"cases": "cases.jsonl"}, directory=tmp_path).cases
    assert [(case.id, case.family) for case in cases] == [("ed-1", "chest-pain"), ("pc-1", "pc-1")]


def test_the_error_example_is_what_the_code_says() -> None:
    (text,) = [text for language, text in BLOCKS if language == "text"]
    study = "name: x\nmodel: {id: organism}\npersonas: p\ntask: t\ncases: c\ncapture: {layer: all}\n"
    with pytest.raises(Exception) as caught:
        _checked(parse_yaml(study, "study.yaml"))
    assert str(caught.value) == text.strip()


def _checked(document: Located) -> StudyFile:
    from probe.study.checked import checked

    return checked(StudyFile, document)


def test_the_crossing_example_gives_what_the_page_says(tmp_path: Path) -> None:
    text = next(text for language, text in BLOCKS if language == "yaml" and "hour_nurse" in text)
    (tmp_path / "p.yaml").write_text(text)
    personas = Study.from_mapping(MINIMAL | {"personas": "p.yaml"}, directory=tmp_path).personas
    assert [persona.id for persona in personas][4:] == [
        "ed_physician",
        "hour_nurse",
        "bold_ed_physician",
        "cautious_ed_physician",
    ]
    assert personas[5].text() == "You are an hour-long nurse."


def test_every_key_with_its_default_stands_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([^`]+)` \| ([^|]*) \|", page, re.MULTILINE))
    specs = {"": StudyFile, "conditions.": ConditionSpec, "capture.": CaptureSpec, "generation.": GenerationSpec}
    specs |= {"confirm.": PlannedContrast, "labels.": LabelSpec}
    for prefix, spec in specs.items():
        for field in dataclasses.fields(spec):
            name = field.name if prefix == "conditions." else prefix + field.name
            shown = rows[name]
            if isinstance(field.default, str | int | float | tuple):
                default = field.default
                words = default if isinstance(default, str) else str(default).lower()
                words = f"[{', '.join(map(str, default))}]" if isinstance(default, tuple) else words
                words = words.removesuffix(".0")
                assert shown == f"`{words}`", name
    for field in dataclasses.fields(ModelSpec):
        assert field.name in rows
    for name in (*ANALYSES, *POSITIONS, *LABEL_SITES, *CONFIRMABLE):
        assert f"{name}" in page
    for field in dataclasses.fields(GivenText):
        assert f"`{field.name}`" in page
    for name in ("path", "texts", "store", "personas", "only"):
        assert f"given.{name}" in rows
    for name in AbsentSite:
        assert f"`{name}`" in page
    for field in (*dataclasses.fields(HubSource), *dataclasses.fields(FieldNames)):
        assert f"`{field.name}`" in page
    for persona in Study.from_mapping(MINIMAL | {"personas": ["builtin:persona-paradox", "builtin:controls"]}).personas:
        assert f"`{persona.id}`" in page
