"""Answers state a letter or they do not; nothing is ever guessed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.prompts import parse_answer

LETTERS = ("A", "B", "C")

STATED = [
    ("Severe pain. Final answer: C", "C"),
    ("Final answer: **B**.", "B"),
    ("**Final Answer:** C", "C"),
    ("The answer is c.", "C"),
    ("The answer is (A) because it is mild.", "A"),
    ('{"answer": "B"}', "B"),
    ('{"reason": "vitamin C", "answer": "A"}', "A"),
    ("Option B", "B"),
    ("I would choose option C here.", "C"),
    ("B", "B"),
    ("B.", "B"),
    ("B) routine or primary care", "B"),
    ("C: emergency care", "C"),
    ("A", "A"),
    ("**C**", "C"),
    ("**C: emergency care**", "C"),
    ("(A)\nRest at home.", "A"),
    ("\\boxed{C}", "C"),
    ("Final answer: A\nBecause it is mild.", "A"),
    ("Final answer: B\nWait, he is septic.\nFinal answer: C", "C"),
    ("I first thought option A. Final answer: B", "B"),
    ("My final answer is option C, not A.", "C"),
    ("<think>Maybe. Final answer: A</think>Final answer: B", "B"),
    ("## Thinking\nFinal answer: A\n## Final Response\nThe answer is B.", "B"),
    ("Decision: B", "B"),
    ("The answer is unclear at first. Final answer: B", "B"),
    ("Final answer: B. My final answer is based on the vitals.", "B"),
    ("Triage level: C", "C"),
    ("Final answer - B", "B"),
    ("Final answer – B", "B"),
    ("I choose C", "C"),
    ("I would choose B.", "B"),
    ("The correct option is B.", "B"),
    ("Category: C", "C"),
    ("\\boxed{\\textbf{B}}", "B"),
    ("Final answer: B, a routine visit.", "B"),
]

UNSTATED = [
    ("A 45-year-old man has pain.", "unparsable"),
    ("A patient with type A behaviour and hepatitis B.", "unparsable"),
    ("Low vitamin C. She had a C-section; plan B is fine.", "unparsable"),
    ("Final answer: A patient like this should wait.", "unparsable"),
    ("The answer is a question of time.", "unparsable"),
    ("Final answer: X", "unparsable"),
    ("The answer: C-section is not needed", "unparsable"),
    ("", "unparsable"),
    ("Go to the emergency department.", "unparsable"),
    ("Final answer: A or B", "conflicting"),
    ("The answer is B.\nFinal answer: not sure", "unparsable"),
    ("Final answer: B\nNo: the answer is unclear.", "unparsable"),
    ("The answer is B/C.", "conflicting"),
    ("Final answer: A, B", "conflicting"),
    ("Neither option A nor option B is safe.", "unparsable"),
    ("Option A (stay home) is not appropriate. She must be seen today.", "unparsable"),
    ("**A**: stay home\n**B**: routine\n**C**: emergency\n\nI would go.", "conflicting"),
    ("Option A is cheap and option B is safe.", "conflicting"),
    ("I'm sorry, I can't give medical advice.", "refused"),
    ("I cannot choose between option A and option B.", "refused"),
    ("As an AI I am not able to decide this.", "refused"),
    ("<think>Perhaps. Final answer: A", "unparsable"),
    ("## Thinking\nThe answer is B.", "unparsable"),
]


@pytest.mark.parametrize(("text", "letter"), STATED)
def test_a_stated_letter_is_found_where_it_stands(text: str, letter: str) -> None:
    parsed = parse_answer(text, LETTERS)
    assert (parsed.status, parsed.letter) == ("parsed", letter)
    assert parsed.span is not None
    assert text[slice(*parsed.span)].upper() == letter


@pytest.mark.parametrize(("text", "status"), UNSTATED)
def test_what_states_no_single_letter_has_none(text: str, status: str) -> None:
    parsed = parse_answer(text, LETTERS)
    assert (parsed.status, parsed.letter, parsed.span) == (status, None, None)


@pytest.mark.parametrize(("text", "letter"), STATED)
def test_a_cut_answer_is_truncated_whatever_it_says(text: str, letter: str) -> None:
    assert parse_answer(text, LETTERS, truncated=True).status == "truncated"


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_read_without_an_error_and_its_span_is_its_letter(text: str) -> None:
    parsed = parse_answer(text, LETTERS)
    if parsed.letter is not None:
        assert parsed.span is not None
        assert text[slice(*parsed.span)].casefold() == parsed.letter.casefold()


def test_other_letters_are_read_as_well() -> None:
    assert parse_answer("The answer is (D).", ("A", "B", "C", "D")).letter == "D"
    assert parse_answer("Final answer: D", LETTERS).letter is None
    assert parse_answer("Final answer: 2", ("1", "2", "3")).letter == "2"
