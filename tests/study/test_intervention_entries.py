"""Interventions of a study: read with their places, crossed with their personas, written back as the same arms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from probe.study import GateSpec, GivenSpec, RecipeSpec, Study
from probe.values import (
    EDIT_POSITIONS,
    OPERATORS,
    Condition,
    Gate,
    GivenText,
    Intervention,
    PerCase,
    Recipe,
    StudyError,
    canonical_json,
)
from probe.values.recipes import UNITS

V = np.array([0.1, 1 / 3, -2.0], np.float32)
PUSH = Recipe("push", (Intervention(1, "add", V, position="newest"),), ("none",), frozenset({"f"}), {"strength": 1.0})
OWN = PerCase(2, "set", {("c1", 0, 0): V[:1], ("c2", 0, 1): V[1:2]}, np.eye(3, dtype=np.float32)[:1])
SWAP = Recipe("swap", (OWN, Intervention(1, "add", V, relative=True, gate=Gate(V, 0.5))), source="a store")
ADD = {"name": "push", "add": "d.safetensors", "direction": "nurse", "layers": [4], "personas": ["none"]}
ABLATE = {"name": "less", "ablate": "d.safetensors", "direction": "nurse", "layers": "all", "value": "zero"}


@pytest.fixture
def study(write: Callable[..., Path]) -> Study:
    (write().parent / "d.safetensors").write_bytes(b"")
    return Study.load(write())


@pytest.fixture
def entries(write: Callable[..., Path]) -> Callable[..., Study]:
    """The study of a file with these interventions, each changed as asked; ``None`` leaves a key out."""

    def load(entry: dict[str, object] = ADD, **changes: object) -> Study:
        own = {key: value for key, value in {**entry, **changes}.items() if value is not None}
        path = write()
        (path.parent / "d.safetensors").write_bytes(b"")
        path.write_text(path.read_text() + yaml.safe_dump({"interventions": [own]}))
        return Study.load(path)

    return load


def conditions(study: Study, persona: str, case: str) -> list[Condition]:
    return [cell.condition for cell in study.cells() if (cell.persona, cell.case) == (persona, case)]


def test_an_intervention_runs_its_own_personas_again_and_leaves_every_other_cell(study: Study) -> None:
    asked = replace(study, interventions=(PUSH, SWAP))
    pushed, swapped = Condition(intervention=PUSH.sha256), Condition(intervention=SWAP.sha256)
    for case in ("c1", "c2"):
        assert conditions(asked, "none", case) == [Condition(), pushed, swapped]
        assert conditions(asked, "nurse", case) == [Condition(), swapped]
    assert [cell for cell in asked.cells() if not cell.condition.intervention] == list(study.cells())
    assert Condition().changed == {}
    assert pushed.name == f"system/intervention={PUSH.sha256[:8]}"


def test_given_texts_are_read_under_an_intervention_too(study: Study) -> None:
    text = GivenText("c1", "expert", "Refer now.")
    asked = replace(study, interventions=(PUSH,), given=GivenSpec((text,), only=True))
    given = Condition(given="expert")
    assert conditions(asked, "none", "c1") == [given, replace(given, intervention=PUSH.sha256)]
    assert conditions(asked, "nurse", "c1") == [given]


def test_recipes_with_their_arrays_are_written_and_read_back_as_equal_ones(study: Study) -> None:
    asked = replace(study, interventions=(PUSH, SWAP))
    mapping = yaml.safe_load(canonical_json(asked.to_mapping()))
    assert Study.from_mapping(mapping) == replace(asked, source=None)
    again = Study.from_mapping(mapping).interventions[1]
    assert isinstance(again, Recipe)
    assert again.on(asked.cells()[0])[0].sha256 == SWAP.on(asked.cells()[0])[0].sha256
    mapping["interventions"][0]["edits"][0]["vector"][0] = 0.2
    assert Study.from_mapping(mapping) != replace(asked, source=None)
    record = asked.to_mapping(cases=False)["interventions"]
    assert [one["sha256"] for one in record] == [PUSH.sha256, SWAP.sha256]
    assert "vector" not in canonical_json(record)


def test_an_entry_of_a_file_is_read_with_its_defaults_and_written_back(entries: Callable[..., Study]) -> None:
    asked = entries(gate={"path": "d.safetensors", "direction": "nurse", "below": 0.5}, strength=2)
    (spec,) = asked.interventions
    assert isinstance(spec, RecipeSpec)
    assert (spec.operator, spec.position, spec.layers, spec.strength) == ("add", "newest", (4,), 2.0)
    assert Path(spec.path).is_file()
    assert Study.from_mapping(asked.to_mapping()).interventions == asked.interventions
    with pytest.raises(StudyError, match="'push' is not read yet"):
        asked.cells()


@pytest.mark.parametrize(
    ("positions", "during", "acts_at"),
    [
        ("newest", "both", "newest"),
        ("newest", "prefill", "prompt_end"),
        ("newest", "decoding", "response"),
        ("all", "prefill", "prompt"),
        ("all", "decoding", "response"),
        ("response", "decoding", "response"),
        ("case", "prefill", "case"),
    ],
)
def test_a_phase_narrows_a_position_rule(
    entries: Callable[..., Study], positions: str, during: str, acts_at: str
) -> None:
    (spec,) = entries(positions=positions, during=during).interventions
    assert isinstance(spec, RecipeSpec)
    assert spec.position == acts_at


@pytest.mark.parametrize(
    ("entry", "changes", "words"),
    [
        (ADD, {"strenght": 2}, "unknown key 'strenght'. The nearest known key is 'strength'"),
        (ADD, {"add": "e.safetensors"}, "there is no file 'e.safetensors'"),
        (ADD, {"add": "organism:drect"}, "'organism:drect' is not planted"),
        (ADD, {"add": None}, "one of the operators add, ablate, set, cap, swap, patch, found none"),
        (ADD, {"ablate": "d.safetensors"}, "found add and ablate"),
        (ADD, {"direction": None}, "`add` names what it takes from the file by `direction`"),
        (ADD, {"layers": None}, "the key 'layers' is missing"),
        (ADD, {"layers": [-1]}, "whole numbers from 0"),
        (ADD, {"positions": "newst"}, "The nearest known position is 'newest'"),
        (ADD, {"unit": "residul"}, "The nearest known unit is 'residual'"),
        (ADD, {"stream": "mlp"}, "which is no stream"),
        (ADD, {"personas": ["nurs"]}, "'nurs', which is not among the personas"),
        (ADD, {"to": 1}, "`to` means nothing to `add`, which takes direction, strength, unit"),
        (ADD, {"positions": "case", "during": "decoding"}, "case lies in the prompt"),
        (ADD, {"positions": "response", "during": "prefill"}, "generated tokens are not there during prefill"),
        (ADD, {"gate": {"path": "d.safetensors", "direction": "nurse"}}, "open `above` or `below`"),
        (ADD, {"gate": {"path": "d.safetensors", "direction": "nurse", "above": "x"}}, "must be a number"),
        (ABLATE, {"value": None}, "reads the value of the same case in a `store`"),
        (ABLATE, {"store": "s"}, "with `value: zero` nothing is read from a store"),
        (ABLATE, {"direction": None}, "`direction` or `directions`"),
        ({**ADD, "add": None, "set": "d.safetensors"}, {}, "`set` needs `to`"),
        ({**ADD, "add": None, "cap": "d.safetensors"}, {"at_most": 1, "at_least": 0}, "`at_most` or `at_least`"),
        ({**ADD, "add": None, "cap": "d.safetensors"}, {"at_most": 1, "unit": "residual"}, "no unit residual"),
        ({**ADD, "add": None, "swap": "d.safetensors"}, {"donor": "nurse"}, "in a `store`"),
        ({"name": "p", "patch": "s", "layers": [1]}, {}, "`patch` needs `donor`"),
        ({"name": "p", "patch": "s", "layers": [1], "donor": "nurse"}, {"positions": "case"}, "case is none"),
    ],
)
def test_what_an_entry_may_not_say_is_refused_in_a_sentence_at_its_place(
    entries: Callable[..., Study], entry: dict[str, object], changes: dict[str, object], words: str
) -> None:
    with pytest.raises(StudyError) as refused:
        entries(entry, **changes)
    assert words in str(refused.value)
    assert "study.yaml:" in str(refused.value)


def test_two_arms_have_two_names_and_do_two_things(study: Study) -> None:
    same = replace(PUSH, name="again")
    with pytest.raises(StudyError, match="'push' and 'again' do the same"):
        replace(study, interventions=(PUSH, same))
    with pytest.raises(StudyError, match="two interventions are called 'push'"):
        replace(study, interventions=(PUSH, replace(SWAP, name="push")))
    assert len(replace(study, interventions=(PUSH, SWAP)).interventions) == 2


def test_every_key_and_position_stands_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "interventions.md").read_text(encoding="utf-8")
    for spec in (RecipeSpec, GateSpec):
        for field in dataclasses.fields(spec):
            assert f"`{field.name}`" in page or f"{field.name}: " in page, field.name
    for name in (*EDIT_POSITIONS, *UNITS, *(operator for operator in OPERATORS)):
        assert f"`{name}`" in page, name


def test_a_study_without_interventions_says_nothing_of_them(study: Study) -> None:
    assert study.to_mapping()["interventions"] is None
    assert study.interventions == ()
    assert Study.from_mapping(study.to_mapping() | {"interventions": []}).interventions == ()
