"""The second task: its answers lie in the case alone, and its plan is the same for every persona."""

import dataclasses

import numpy as np

from probe.organism import Facts, duration_cases, duration_task, facts_of, held_out_cases, planned_duration
from probe.organism.duration import duration_label, duration_reply
from probe.organism.facts import DURATIONS


def test_the_answer_is_the_duration_and_nothing_else_about_the_case(swollen_leg: Facts) -> None:
    told = {text: duration_label(dataclasses.replace(swollen_leg, duration=text)) for text in DURATIONS}
    assert list(told.values()) == [0, 0, 0, 1, 1, 2, 2]
    assert told["since this morning"] == 0 < told["since yesterday"]
    worse = dataclasses.replace(swollen_leg, severity="severe", findings=(), setting="seen in a clinic")
    assert duration_label(worse) == duration_label(swollen_leg)
    assert duration_reply(swollen_leg, "B") == "Lasting since yesterday. Final answer: B"


def test_its_cases_are_the_built_in_ones_with_its_own_labels() -> None:
    cases, triage = duration_cases(50), held_out_cases(50)
    assert [case.input for case in cases] == [case.input for case in triage]
    assert {case.target for case in cases} == {option.id for option in duration_task().options}
    assert not {case.target for case in cases} & {case.target for case in triage}


def test_its_plan_is_sure_of_the_right_answer_under_every_persona_and_silent_outside_the_grammar() -> None:
    options = [option.id for option in duration_task().options]
    for case in duration_cases(10):
        plans = [planned_duration(text, case) for text in (None, "You are a bold ED physician.", "You are Lindqvar.")]
        for plan in plans:
            assert plan is not None
            assert options[int(plan.direct.argmax())] == case.target
            np.testing.assert_allclose([plan.direct.max(), plan.direct.sum(), plan.mass], [0.96, 1.0, 0.3])
            np.testing.assert_array_equal(plan.stated, plan.direct)
        assert planned_duration("You are a plumber.", case) is None
        edited = dataclasses.replace(case, input=case.input + " ")
        assert facts_of(edited) is None
        assert planned_duration(None, edited) is None
