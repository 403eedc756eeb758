"""Texts that personas are made to answer with: read with their places, crossed with every persona and case."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from probe.study import GivenSpec, LabelSpec, Study
from probe.values import Condition, GivenText, StudyError

TEXTS = (
    {"case": "c1", "source": "nurse", "text": "Wait."},
    {"case": "c1", "source": "expert", "text": "Refer now."},
    {"case": "c2", "source": "nurse", "text": "Refer."},
)


@pytest.fixture
def study(write: Callable[..., Path]) -> Study:
    return Study.load(write())


def given(*texts: dict[str, object], **other: object) -> dict[str, object]:
    return {"texts": [dict(text) for text in texts or TEXTS], **other}


def built(study: Study, value: object) -> Study:
    return Study.from_mapping(study.to_mapping() | {"given": value})


def conditions(study: Study, persona: str, case: str) -> list[Condition]:
    return [cell.condition for cell in study.cells() if (cell.persona, cell.case) == (persona, case)]


def test_every_persona_is_given_every_text_of_a_case_beside_its_own_answer(study: Study) -> None:
    asked = built(study, given())
    for persona in ("none", "nurse"):
        assert conditions(asked, persona, "c1") == [
            Condition(),
            Condition(given="nurse"),
            Condition(given="expert"),
        ]
        assert conditions(asked, persona, "c2") == [Condition(), Condition(given="nurse")]
    assert [cell for cell in asked.cells() if not cell.condition.given] == list(study.cells())
    only = built(study, given(only=True))
    assert {cell.condition.given for cell in only.cells()} == {"nurse", "expert"}
    assert len(only.cells()) == len(asked.cells()) - len(study.cells())


def test_a_text_for_some_personas_is_given_to_them_alone(study: Study) -> None:
    asked = built(study, given({**TEXTS[0], "personas": ["none"]}, TEXTS[1]))
    assert conditions(asked, "none", "c1") == [Condition(), Condition(given="nurse"), Condition(given="expert")]
    assert conditions(asked, "nurse", "c1") == [Condition(), Condition(given="expert")]
    assert Study.from_mapping(asked.to_mapping()) == asked


def test_old_row_ids_stay_as_they_were(study: Study) -> None:
    ids = {cell.row_id for cell in study.cells()}
    assert ids < {cell.row_id for cell in built(study, given()).cells()}
    assert Condition().changed == {}


def test_nothing_is_drawn_of_a_given_text_and_rotations_are_matched(study: Study) -> None:
    texts = [
        {"case": "c1", "source": "x", "text": "A", "rotation": 0},
        {"case": "c1", "source": "x", "text": "B", "rotation": 1},
        {"case": "c1", "source": "y", "text": "either"},
    ]
    mapping = study.to_mapping() | {
        "given": given(*texts, only=True),
        "conditions": {"rotations": "all"},
        "generation": {"temperature": 1, "seeds": 3},
    }
    found = [cell.condition for cell in Study.from_mapping(mapping).cells() if cell.persona == "none"]
    assert found == [Condition(rotation=r, given=source) for r in (0, 1) for source in ("x", "y")]


def test_texts_come_from_a_file_beside_the_study(write: Callable[..., Path]) -> None:
    path = write()
    (path.parent / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in TEXTS))
    path.write_text(path.read_text() + "given: {path: texts.jsonl}\n")
    study = Study.load(path)
    assert study.given == GivenSpec(tuple(GivenText(**text) for text in TEXTS))
    assert Study.from_mapping(study.to_mapping()).given == study.given
    assert study.to_mapping(cases=False)["given"]["texts"]["n"] == 3
    limited = study.limited(1)
    assert {cell.condition.given for cell in limited.cells()} == {"", "nurse", "expert"}
    assert Study.from_mapping(limited.to_mapping()) == replace(limited, source=None)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({}, "takes its texts from one of `path`, `texts` and `store`, found none"),
        ({"path": "t.jsonl", "store": "x"}, "found path and store"),
        ({"path": "t.csv"}, r"read from \.jsonl files, found 't\.csv'"),
        ({"path": "t.jsonl"}, "there is no file"),
        ({"texts": []}, "must hold at least one text"),
        ({"texts": "x"}, "`texts` must be a list"),
        ({"texts": [TEXTS[0]], "personas": ["nurse"]}, "`personas` chooses among the answers of a `store`"),
        ({"texts": [TEXTS[0], TEXTS[0]]}, r"two texts of the source 'nurse' answer the case 'c1' \(the first at"),
        ({"texts": [{**TEXTS[0], "case": "c3"}]}, "answers the case 'c3', which is not among the cases.* 'c1'"),
        ({"texts": [{**TEXTS[0], "text": " "}]}, "`text` must not be empty"),
        ({"texts": [{**TEXTS[0], "sorce": "x"}]}, "unknown key 'sorce'. The nearest known key is 'source'"),
        ({"texts": [{**TEXTS[0], "personas": ["nurs"]}]}, "is for the persona 'nurs', which is not among.* 'nurse'"),
        ({"texts": [{**TEXTS[0], "rotation": -1}]}, "`rotation` must be at least 0"),
    ],
)
def test_given_texts_that_break_a_rule_are_refused(study: Study, value: object, found: str) -> None:
    with pytest.raises(StudyError, match=found):
        built(study, value)


def test_a_study_built_in_python_is_checked_too(study: Study) -> None:
    good = GivenSpec((GivenText("c1", "x", "Wait."),))
    assert replace(study, given=good).given == good
    with pytest.raises(StudyError, match="answers the case 'c9'"):
        replace(study, given=GivenSpec((GivenText("c9", "x", "Wait."),)))


def test_the_texts_of_a_store_are_listed_only_once_they_are_read(study: Study, tmp_path: Path) -> None:
    asked = built(study, {"store": "cache/other", "personas": ["nurse"]})
    assert asked.given == GivenSpec(store="cache/other", personas=("nurse",))
    assert Study.from_mapping(asked.to_mapping()) == asked
    with pytest.raises(StudyError, match="the given texts of cache/other are not read yet"):
        asked.cells()
    (tmp_path / "other").mkdir()
    beside = Study.from_mapping(study.to_mapping() | {"given": {"store": "other"}}, directory=tmp_path)
    assert beside.given == GivenSpec(store=str(tmp_path / "other"))


def test_sites_of_labels_are_settings_with_their_own_rules(study: Study) -> None:
    def labelled(**other: object) -> Study:
        return Study.from_mapping(study.to_mapping() | other)

    asked = labelled(labels={"sites": ["forced", "prompt_end"], "forced": "So:", "score": "continuation"})
    assert asked.labels == LabelSpec(("forced", "prompt_end"), "So:", "continuation")
    assert Study.from_mapping(asked.to_mapping()) == asked
    assert study.labels == LabelSpec()
    for wrong, found in (
        ({"labels": {"sites": ["forcd"]}}, "which is no answer site. The nearest known site is 'forced'"),
        ({"labels": {"sites": []}}, "must name at least one"),
        ({"labels": {"sites": ["forced"], "forced": " "}}, "`forced` must not be empty"),
        ({"labels": {"forced": "So:"}}, "`labels.sites` names neither"),
        ({"labels": {"score": "words"}}, "must be 'token' or 'continuation'"),
        ({"capture": {"positions": ["forced"]}}, "`positions` names 'forced'.* Add it to `labels.sites`"),
    ):
        with pytest.raises(StudyError, match=found):
            labelled(**wrong)
    assert labelled(labels={"sites": ["forced"]}, capture={"positions": ["forced"]}).capture.positions == ("forced",)
