"""The built-in wordings are plain sentences, none twice, and their controls are what the file says they are."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from probe.organism import parse_persona
from probe.study import Study
from probe.values import Persona, StudyError

BOTH = "personas=['builtin:persona-paradox', 'builtin:controls']"


@pytest.fixture
def study(write: Callable[..., Path]) -> Study:
    return Study.load(write(), overrides=[BOTH])


def texts(personas: tuple[Persona, ...]) -> list[str]:
    return [text for persona in personas for text in persona.wordings if text is not None]


def test_two_sets_stand_in_their_order_with_their_wordings_counted(study: Study) -> None:
    assert {persona.id: len(persona.wordings) for persona in study.personas} == {
        "none": 1,
        "helpful_assistant": 5,
        "ed_physician": 5,
        "ed_nurse": 5,
        "bold_ed_physician": 5,
        "cautious_ed_physician": 5,
        "helpful_paraphrases": 30,
        "nonsense": 5,
        "neutral_text": 5,
        "shuffled_words": 5,
    }
    assert [persona.id for persona in study.personas if persona.role == "control"] == ["helpful_paraphrases"]


def test_every_wording_is_one_short_sentence_and_none_stands_twice(study: Study) -> None:
    found = texts(study.personas)
    folded = [text.casefold() for text in found]
    assert len(set(folded)) == len(folded)
    for text in found:
        assert text == " ".join(text.split())
        assert text.endswith(".")
        assert text.count(".") == 1
        assert text.isascii()
        assert 3 <= len(text.split()) <= 10


def test_wordings_of_a_persona_differ_in_their_frame_and_say_the_same_words(study: Study) -> None:
    frames = {"You are", "Act as", "You are acting as", "Take the role of", "Answer as"}
    for persona in study.personas:
        if persona.id in ("none", "helpful_paraphrases", "neutral_text", "shuffled_words"):
            continue
        parts = [re.fullmatch(r"(.+?) (an? .+)\.", text or "") for text in persona.wordings]
        assert {part[1] for part in parts if part} == frames, persona.id
        assert len({part[2] for part in parts if part}) == 1, persona.id


def test_paraphrases_call_the_assistant_helpful_and_ask_for_nothing_else(study: Study) -> None:
    words = {
        word.strip(".,").casefold() for text in texts((study.persona("helpful_paraphrases"),)) for word in text.split()
    }
    for text in texts((study.persona("helpful_paraphrases"),)):
        assert "assistant" in text
        assert "help" in text
    # The whole vocabulary, so that a wording that adds an instruction or a competence cannot slip in unseen.
    assert " ".join(sorted(words)) == (
        "a act ai an and are as assistant assume be behave consider conversation digital from have helpful helps here "
        "imagine in is job now of on part people play please reply respond role serve speak take that the think this "
        "to user's virtual who work you your yourself"
    )


def test_controls_are_matched_to_the_physicians_wordings_as_the_file_says(study: Study) -> None:
    physician = texts((study.persona("ed_physician"),))
    for text, neutral in zip(physician, texts((study.persona("neutral_text"),)), strict=True):
        assert (len(text.split()), len(text)) == (len(neutral.split()), len(neutral))
        assert not set(text.casefold().strip(".").split()) & set(neutral.casefold().strip(".").split()) - {"the"}
    for text, shuffled in zip(physician, texts((study.persona("shuffled_words"),)), strict=True):
        words = text.removesuffix(".").split()
        assert shuffled == " ".join(sorted(words, key=lambda word: hashlib.sha256(word.encode()).hexdigest())) + "."
        assert shuffled != text


def test_the_organism_has_a_plan_for_every_wording_and_to_a_placebo_it_is_that_of_no_persona(study: Study) -> None:
    for persona in study.personas:
        plans = [parse_persona(text) for text in persona.wordings]
        if persona.role == "placebo":
            assert plans == [parse_persona(None)] * 5
        elif persona.role != "control":
            assert None not in plans
            assert len({plan.cell for plan in plans if plan}) == 1, persona.id


def test_wordings_cross_as_the_condition_says(study: Study) -> None:
    def n_cells(**wordings: object) -> dict[str, int]:
        chosen = wordings.get("wordings", wordings)
        spec = dataclasses.replace(study.conditions, wordings=chosen)
        cells = dataclasses.replace(study, conditions=spec, cases=study.cases[:1]).cells()
        return {p.id: sum(cell.persona == p.id for cell in cells) for p in study.personas}

    assert set(n_cells(wordings="first").values()) == {1}
    assert n_cells(wordings="all") == {persona.id: len(persona.wordings) for persona in study.personas}
    assert n_cells(wordings=3) == {persona.id: min(3, len(persona.wordings)) for persona in study.personas}
    mixed = n_cells(helpful_paraphrases="all", nonsense=2, default=5)
    assert (mixed["helpful_paraphrases"], mixed["nonsense"], mixed["ed_nurse"], mixed["none"]) == (30, 2, 5, 1)
    assert n_cells(helpful_paraphrases="all")["ed_nurse"] == 1


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("{helpful_paraphrase: all}", "The nearest known persona is 'helpful_paraphrases'"),
        ("{nonsense: 6}", "asks for 6 wordings of 'nonsense', which has 5"),
        ("{nonsense: some}", "must be first, all or a whole number from 1, found the text 'some'"),
        ("0", "must be first, all or a whole number from 1, found the number 0"),
        ("{}", "must name at least one persona"),
    ],
)
def test_a_wrong_choice_of_wordings_is_refused(write: Callable[..., Path], setting: str, words: str) -> None:
    with pytest.raises(StudyError) as caught:
        Study.load(write(), overrides=[BOTH, f"conditions.wordings={setting}"])
    assert words in str(caught.value)
    Study.load(write(), overrides=[BOTH, "conditions.wordings={nonsense: 5, default: all}"])


def test_one_file_and_one_list_may_hold_sets_files_crossings_and_entries(write: Callable[..., Path]) -> None:
    own = "- builtin:controls\n- {id: none, text: null}\n- {id: nurse, text: You are a nurse.}\n"
    ids = [persona.id for persona in Study.load(write(personas=own)).personas]
    assert ids == ["helpful_paraphrases", "nonsense", "neutral_text", "shuffled_words", "none", "nurse"]
    crossing = "{template: '{persona}', roles: {medic: medic}}"
    mixed = f"personas=[builtin:controls, personas.yaml, {crossing}, {{id: own, text: x}}]"
    found = [persona.id for persona in Study.load(write(), overrides=[mixed]).personas]
    assert found == [*ids[:4], "none", "nurse", "medic", "own"]


@pytest.mark.parametrize(
    ("personas", "place", "words"),
    [
        ("- builtin:control\n", "personas.yaml:1:3", "The nearest known name is 'controls'"),
        ("- builtin:controls\n- {id: nonsense, text: x}\n", "personas.yaml:2:8", "two personas have the id 'nonsense'"),
        ("- other.yaml\n", "personas.yaml:1:3", "this must be a mapping with keys `id`"),
    ],
)
def test_a_wrong_item_of_a_list_is_refused_at_its_place(
    write: Callable[..., Path], personas: str, place: str, words: str
) -> None:
    with pytest.raises(StudyError) as caught:
        Study.load(write(personas=personas))
    assert f"{place}: " in str(caught.value)
    assert words in str(caught.value)


def test_the_same_set_twice_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(
        StudyError, match=r"two personas have the id 'helpful_paraphrases' \(the first at .*controls\.yaml"
    ):
        Study.load(write(), overrides=["personas=['builtin:controls', 'builtin:controls']"])


def test_a_mixed_study_is_read_back_from_its_record(study: Study) -> None:
    varied = dataclasses.replace(
        study, conditions=dataclasses.replace(study.conditions, wordings={"nonsense": 2, "default": "all"})
    )
    assert Study.from_mapping(varied.to_mapping()) == dataclasses.replace(varied, source=None)
