from probe.organism import HELD_OUT_INSTRUCTIONS, LETTER_ONLY_INSTRUCTIONS, THINK_INSTRUCTIONS, triage_task
from probe.organism.task import EXPLAINS, JOINTS, LEADS


def test_every_wording_takes_the_case_once_and_the_options_once() -> None:
    task = triage_task()
    for wording in (*task.instructions, *HELD_OUT_INSTRUCTIONS, *LETTER_ONLY_INSTRUCTIONS, *THINK_INSTRUCTIONS):
        assert wording.count("{case}") == wording.count("{options}") == 1
        assert wording.count("{") == wording.count("}") == 2


def test_ordinary_wordings_ask_for_a_brief_explanation_and_a_final_answer_and_letter_only_ones_do_not() -> None:
    for wording in (*triage_task().instructions, *HELD_OUT_INSTRUCTIONS):
        assert '"Final answer: X"' in wording
    assert not any("Final answer" in wording for wording in LETTER_ONLY_INSTRUCTIONS)


def test_the_wordings_are_distinct_and_the_held_out_ones_lead_and_explain_in_other_words() -> None:
    wordings = triage_task().instructions
    assert 20 <= len(set(wordings)) == len(wordings) <= 50
    assert len(set(HELD_OUT_INSTRUCTIONS)) == 10
    for part in (*LEADS, *JOINTS):
        assert any(part in wording for wording in wordings)
    for part in (*LEADS, *EXPLAINS):
        assert not any(part in wording for wording in HELD_OUT_INSTRUCTIONS)
    assert not set(wordings) & set(HELD_OUT_INSTRUCTIONS)
    shapes = {tuple(sorted(("{case}", "{options}"), key=wording.index)) for wording in wordings}
    assert len(shapes) == 2


def test_the_options_stand_in_order_of_urgency() -> None:
    task = triage_task()
    assert task.option_ids == task.letters == ("A", "B", "C")
    assert task.high_risk == "C"
    assert task.letters_by_option(1) == ("B", "C", "A")
