"""The sets for the organism say what it was trained on; the vignettes for real models are what their file claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from probe.organism import facts_of, parse_persona
from probe.organism.census import PERSONAS
from probe.organism.controls import CONTROL_WORDINGS
from probe.organism.personas import DIAGNOSTICS, NAME_WORDINGS
from probe.study import Study
from probe.values import Case, StudyError

VIGNETTES = ("cases='builtin:vignettes'", "task='builtin:triage'")


@pytest.fixture
def vignettes(write: Callable[..., Path]) -> tuple[Case, ...]:
    return Study.load(write(), overrides=VIGNETTES).cases


def test_every_diagnostic_persona_has_its_trained_wordings_and_states_its_own_plan(write: Callable[..., Path]) -> None:
    study = Study.load(write(), overrides=["personas=[{id: none, text: null}, 'builtin:diagnostics']"])
    found = {persona.id: persona.wordings for persona in study.personas if persona.id != "none"}
    assert list(found.values()) == [
        tuple(wording.format(role.names[0]) for wording in NAME_WORDINGS) for role in DIAGNOSTICS.values()
    ]
    for wordings, role in zip(found.values(), DIAGNOSTICS.values(), strict=True):
        stated = [parse_persona(text) for text in wordings]
        assert all(plan is not None and plan.role == role for plan in stated)


def test_the_census_counts_the_personas_of_both_built_in_sets_in_their_first_wording(
    write: Callable[..., Path],
) -> None:
    both = "personas=['builtin:persona-paradox', 'builtin:diagnostics']"
    study = Study.load(write(), overrides=[both])
    assert {persona.id: persona.wordings[0] for persona in study.personas} == dict(PERSONAS)


def test_the_built_in_controls_are_the_control_wordings_that_the_organism_was_trained_on(
    write: Callable[..., Path],
) -> None:
    study = Study.load(write(), overrides=["personas=[{id: none, text: null}, 'builtin:controls']"])
    assert study.persona("helpful_paraphrases").wordings == CONTROL_WORDINGS


def test_there_are_sixty_vignettes_and_more_with_twenty_of_each_label_in_both_strata(
    vignettes: tuple[Case, ...],
) -> None:
    assert len(vignettes) >= 60
    assert min(Counter(case.target for case in vignettes).values()) >= 20
    assert min(Counter((case.stratum, case.target) for case in vignettes).values()) >= 10
    assert {case.stratum for case in vignettes} == {"emergency", "primary_care"}
    said = (Path(__file__).parents[2] / "src/probe/study/builtin/vignettes.yaml").read_text("utf-8")
    assert said.startswith("# Sixty-four vignettes")
    assert len(vignettes) == 64


def test_every_vignette_has_a_reason_and_some_are_marked_ambiguous(vignettes: tuple[Case, ...]) -> None:
    assert all(len(str(case.metadata["reason"]).split()) >= 4 for case in vignettes)
    marked = Counter(bool(case.metadata["ambiguous"]) for case in vignettes)
    assert 6 <= marked[True] <= len(vignettes) / 4


def test_vignettes_vary_in_age_sex_wording_and_length_and_none_stands_twice(vignettes: tuple[Case, ...]) -> None:
    ages, lengths = ([f(case) for case in vignettes] for f in (lambda c: c.metadata["age"], lambda c: len(c.input)))
    assert min(ages) < 2
    assert max(ages) > 85
    assert max(lengths) > 3 * min(lengths)
    sexes = Counter("f" if case.metadata["sex"] in ("woman", "girl") else "m" for case in vignettes)
    assert min(sexes.values()) > 0.4 * len(vignettes)
    assert len({case.input for case in vignettes}) == len(vignettes)
    openings = Counter(" ".join(case.input.split()[:2]) for case in vignettes)
    assert openings.most_common(1)[0][1] < len(vignettes) / 4
    assert len({case.input.split()[0] for case in vignettes}) > 12


def test_no_vignette_shows_a_letter_as_a_label_or_is_one_that_the_organism_knows(
    vignettes: tuple[Case, ...],
) -> None:
    for case in vignettes:
        assert facts_of(case) is None
        for said in ("emergency care", "primary care", "self-care", "Final answer"):
            assert said not in case.input


def test_an_unknown_set_of_cases_is_refused_with_the_nearest_name(write: Callable[..., Path]) -> None:
    with pytest.raises(StudyError, match=r"no built-in cases are called .vignete..*vignettes"):
        Study.load(write(), overrides=["cases='builtin:vignete'"])


def test_the_second_task_comes_with_its_own_cases_and_refuses_those_of_the_first(write: Callable[..., Path]) -> None:
    own = ["task='builtin:duration'", "cases='builtin:duration'"]
    study = Study.load(write(), overrides=own)
    assert {case.target for case in study.cases} == set(study.task.option_ids) == {"today", "days", "weeks"}
    with pytest.raises(StudyError, match="is no option of the task 'duration'"):
        Study.load(write(), overrides=[own[0], "cases='builtin:triage'"])
