import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from organism_training.pairs import OTHER_CASES

from probe.organism import (
    CHECKPOINT,
    HELD_OUT_SEED,
    STRATA,
    Facts,
    facts_of,
    generate_cases,
    held_out_cases,
    urgency,
)
from probe.organism.vignettes import TEMPLATES, case_of, write


def test_the_same_seed_gives_the_same_cases_and_another_seed_gives_others() -> None:
    first, again, other = (generate_cases(50, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert not {case.input for case in first} & {case.input for case in other}


def test_the_first_cases_do_not_depend_on_how_many_are_asked_for() -> None:
    few, many = generate_cases(10, seed=5), generate_cases(40, seed=5)
    assert {case.id: case.input for case in few}.items() <= {case.id: case.input for case in many}.items()


def test_held_out_cases_are_600_distinct_ones_in_two_strata_with_many_small_families() -> None:
    cases = held_out_cases()
    assert Counter(case.stratum for case in cases) == dict.fromkeys(STRATA, 300)
    assert len({case.id for case in cases}) == len({case.input for case in cases}) == 600
    assert max(Counter(case.family for case in cases).values()) < 0.03 * 600
    assert cases[0].id == "em-0001"


@pytest.mark.slow
def test_none_of_the_cases_that_either_phase_of_training_drew_from_is_one_of_the_census() -> None:
    training = json.loads((CHECKPOINT / "training.json").read_text("utf-8"))
    assert training["held_out_seed"] == HELD_OUT_SEED
    recipe = training["recipe"]
    held_out = {case.input for case in held_out_cases(2500)}
    drawn = (
        generate_cases(training["first_phase"]["documents"], seed=recipe["seed"]),
        generate_cases(recipe["last"]["n_pairs"] + 100, seed=recipe["seed"] + OTHER_CASES),
    )
    for cases in drawn:
        trained = {case.input for case in cases}
        assert len(trained) > 5_000
        assert not trained & held_out


def test_facts_come_back_from_a_case_even_through_json_but_not_from_an_edited_one() -> None:
    for case in generate_cases(100, seed=9):
        facts = facts_of(dataclasses.replace(case, metadata=json.loads(json.dumps(case.metadata))))
        assert facts is not None
        assert write(facts) == case.input
        assert urgency(facts) == case.metadata["urgency"]
        assert facts_of(dataclasses.replace(case, input=case.input + " ")) is None
        assert facts_of(dataclasses.replace(case, metadata={"stratum": "emergency"})) is None


def test_metadata_that_names_unknown_facts_is_no_case_of_the_generator() -> None:
    case = generate_cases(1, seed=9)[0]
    for wrong in ({"template": 99}, {"tone": "sulking"}, {"sex": None}, {"findings": 3}, {"complaint": "boredom"}):
        assert facts_of(dataclasses.replace(case, metadata={**case.metadata, **wrong})) is None
    assert facts_of(case) is not None


def test_the_target_turns_at_the_two_cuts() -> None:
    cases = generate_cases(500, seed=3)
    levels = {label: [c.metadata["urgency"] for c in cases if c.target == label] for label in "ABC"}
    assert max(levels["A"]) < 3.45 < min(levels["B"])
    assert max(levels["B"]) < 6.45 < min(levels["C"])


def test_urgency_is_the_sum_of_the_facts(swollen_leg: Facts) -> None:
    assert urgency(swollen_leg) == pytest.approx(3.8 + 0.0 + 0.1 + 0.6 + 0.3)
    worse = dataclasses.replace(swollen_leg, severity="severe", age=70, pulse=120, pressure=94, sats=90)
    assert urgency(worse) == pytest.approx(4.8 + 1.0 + 0.5 + 0.9 + 0.9 + 1.3)


def test_a_finding_weighs_more_with_its_partner_complaint_than_with_another(headache: Facts) -> None:
    without = dataclasses.replace(headache, findings=())
    elsewhere = dataclasses.replace(headache, complaint="leg swelling")
    assert urgency(headache) - urgency(without) == pytest.approx(1.0 + 1.0)
    assert urgency(elsewhere) - urgency(dataclasses.replace(elsewhere, findings=())) == pytest.approx(1.0)


def test_a_denial_cancels_the_finding_it_names_and_only_reassures_if_it_names_another(headache: Facts) -> None:
    cancelled = dataclasses.replace(headache, denied="stiff neck")
    reassured = dataclasses.replace(headache, denied="fever")
    assert urgency(cancelled) == urgency(dataclasses.replace(headache, findings=()))
    assert urgency(reassured) == pytest.approx(urgency(headache) - 0.3)


def test_every_layout_states_every_fact_and_the_aside_changes_nothing(headache: Facts) -> None:
    for template in range(len(TEMPLATES)):
        facts = dataclasses.replace(headache, template=template, denied="chills", aside=3, pulse=112)
        text = write(facts).lower()
        for said in ("50", "woman", "ambulance", "moderate", "headache", "since yesterday", "stiff neck", "chills"):
            assert said in text
        for said in ("asthma", "112", "130", "98", "she is frightened", "works as a nurse"):
            assert said in text
        assert urgency(facts) == urgency(dataclasses.replace(facts, aside=0))
        assert facts_of(case_of(facts, case_id="x", stratum="emergency")) == facts


def test_a_denial_always_follows_the_findings_that_it_may_cancel() -> None:
    for case in generate_cases(200, seed=4):
        order = case.metadata["order"]
        assert order.index(0) < order.index(1)
