"""Answers state a letter or they do not; nothing is ever guessed."""

from __future__ import annotations

import re
from pathlib import Path
from time import process_time
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from probe.prompts import parse_answer, parser_name
from probe.prompts.languages import words_of
from probe.values import DEFAULT_PARSER, ParserSettings, ProbeError, Reasoning
from probe.values.parsing import LANGUAGES

LETTERS = ("A", "B", "C")
TEXTS = ("stay home or self-care", "routine or primary care", "emergency care")


def table(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load((Path(__file__).parent / name).read_text(encoding="utf-8")))


ANSWERS = table("answers.yaml")
HELD_OUT = table("answers_held_out.yaml")


def shown(answer: dict[str, Any]) -> str:
    return re.sub(r"\s+", " ", answer["says"])[:60] or "(nothing)"


def read(answer: dict[str, Any], **changed: Any) -> Any:
    letters = tuple(answer.get("letters", LETTERS))
    return parse_answer(answer["says"], letters, **{"texts": TEXTS if letters == LETTERS else (), **changed})


@pytest.mark.parametrize("answer", ANSWERS, ids=shown)
def test_an_answer_is_read_as_a_careful_reader_reads_it(answer: dict[str, Any]) -> None:
    parsed = read(answer)
    assert (parsed.status, parsed.letter) == (answer.get("status", "parsed"), answer.get("letter"))
    if "rule" in answer:
        assert parsed.rule == answer["rule"]
    assert (parsed.span is None) == (parsed.letter is None)
    if parsed.span and not parsed.in_words:
        assert answer["says"][slice(*parsed.span)].casefold() in (parsed.letter.casefold(), "ｂ")


@pytest.mark.parametrize("answer", HELD_OUT, ids=shown)
def test_an_answer_written_after_the_parser_is_read_rightly_too(answer: dict[str, Any]) -> None:
    parsed = read(answer)
    right = (parsed.status, parsed.letter) == (answer.get("status", "parsed"), answer.get("letter"))
    assert right is not answer.get("known_miss", False)
    if answer.get("known_miss"):
        assert parsed.letter is None  # what is missed is missed as unstated, never as another letter


def test_the_tables_are_large_and_their_answers_differ() -> None:
    assert len(ANSWERS) >= 150
    assert len(HELD_OUT) >= 30
    every = [answer["says"] for answer in (*ANSWERS, *HELD_OUT)]
    assert len(set(every)) == len(every)
    statuses = {answer.get("status", "parsed") for answer in ANSWERS}
    assert statuses == {"parsed", "unparsable", "conflicting", "refused"}


@pytest.mark.parametrize("answer", ANSWERS, ids=shown)
def test_a_cut_answer_is_truncated_whatever_it_says(answer: dict[str, Any]) -> None:
    parsed = read(answer, truncated=True)
    assert (parsed.status, parsed.letter, parsed.span) == ("truncated", None, None)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_read_without_an_error_and_its_span_is_its_letter(text: str) -> None:
    parsed = parse_answer(text, LETTERS, texts=TEXTS)
    if parsed.letter is not None and not parsed.in_words:
        assert parsed.span is not None
        assert (
            text.translate({c: c - 0xFEE0 for c in range(0xFF01, 0xFF5F)})[slice(*parsed.span)].upper() == parsed.letter
        )


GRAMMAR = """
    the answer is Final answer: option I choose **bold** {"answer": not ( ) . : , or think no 答案是 Antwort: vitamin
    hepatitis group plan so therefore best correct 12 % ## | <think> </think> \\boxed{ } wait actually
"""
WORDS = st.sampled_from([*GRAMMAR.split(), "\n"])
PIECES = st.lists(st.one_of(WORDS, st.sampled_from(["A", "B", "C", "a", "b", "(B)", "C.", "**A**"])), max_size=14)


@settings(max_examples=400, deadline=None)
@given(st.lists(WORDS, max_size=14))
def test_a_text_without_any_letter_never_has_a_label(words: list[str]) -> None:
    parsed = parse_answer(" ".join(words), LETTERS)
    assert (parsed.letter, parsed.span) == (None, None)
    assert parsed.status in ("unparsable", "refused")


@settings(max_examples=400, deadline=None)
@given(PIECES)
def test_renaming_the_letters_renames_what_is_read(pieces: list[str]) -> None:
    # Letters that no word of the grammar is: the article A, and words spelt with one letter, are read with more care.
    def renamed(text: str, names: dict[str, str]) -> str:
        return re.sub(r"(?<![A-Za-z])[BCDF](?![A-Za-z])", lambda found: names[found[0]], text)

    text = re.sub(r"(?<![A-Za-z])[Aa](?![A-Za-z])", "D", " ".join(pieces).replace(" b ", " B "))
    assume(not re.search(r"(?<![A-Za-z])b(?![A-Za-z])", text))
    names = {"B": "C", "C": "D", "D": "B", "F": "F"}
    first, second = parse_answer(text, ("B", "C", "D")), parse_answer(renamed(text, names), ("C", "D", "B"))
    assert (first.status, first.span, first.rule) == (second.status, second.span, second.rule)
    assert second.letter == (None if first.letter is None else names[first.letter])


@settings(max_examples=300, deadline=None)
@given(PIECES, st.sampled_from([" ", "\t", "  ", " \t "]))
def test_more_blanks_change_nothing_of_what_is_read(pieces: list[str], blank: str) -> None:
    text = " ".join(pieces)
    wide = re.sub(r"(?<! ) (?! )", lambda _: blank, text)
    before, after = parse_answer(text, LETTERS), parse_answer(f"{wide}\n", LETTERS)
    assert (before.status, before.letter, before.rule) == (after.status, after.letter, after.rule)


JUSTIFICATIONS = (
    "The vital signs are stable and there are no red flags.",
    "A patient like this can be followed up.",
    "Hepatitis B and vitamin C deficiency were considered.",
    "She had a C-section in 2019 and took plan B once.",
    "Type A blood, group A strep negative, C. diff excluded.",
    "If the pain gets worse, come back at once.",
    "Note: this is general information.",
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(LETTERS),
    st.sampled_from(
        ["Final answer: {}", "**Final answer: {}**", "The answer is {}.", '{{"answer": "{}"}}', "Triage: {}"]
    ),
    st.lists(st.sampled_from(JUSTIFICATIONS), max_size=5),
    st.lists(st.sampled_from(JUSTIFICATIONS), max_size=5),
)
def test_reasons_before_and_after_a_statement_do_not_change_it(
    letter: str, statement: str, before: list[str], after: list[str]
) -> None:
    text = "\n".join([*before, statement.format(letter), *after])
    parsed = parse_answer(text, LETTERS, texts=TEXTS)
    assert (parsed.status, parsed.letter) == ("parsed", letter)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([answer for answer in ANSWERS if "<think" not in answer["says"]]), PIECES)
def test_what_is_written_in_closed_reasoning_changes_nothing(answer: dict[str, Any], thought: list[str]) -> None:
    assume("<think>" not in thought and "</think>" not in thought)
    bare = read(answer)
    assume(bare.rule != "reasoning is not closed" and "</" not in answer["says"] and "##" not in answer["says"])
    assume("[/THINK]" not in answer["says"] and "assistantfinal" not in answer["says"])
    thoughtful = read({**answer, "says": f"<think>{' '.join(thought)}</think>{answer['says']}"})
    assert (thoughtful.status, thoughtful.letter, thoughtful.rule) == (bare.status, bare.letter, bare.rule)


def test_settings_add_statements_marks_and_refusals_and_can_leave_words_out() -> None:
    assert parse_answer("Verdict >>> B", LETTERS).letter == "B"  # an arrow after a word that announces
    assert parse_answer("Severity code [B]", LETTERS).letter is None
    own = ParserSettings(statements=(r"severity code \[{letter}\]",))
    found = parse_answer("The answer is C. Severity code [B]", LETTERS, settings=own)
    assert (found.letter, found.rule) == ("B", "your statement")
    assert parse_answer("Severity code [emergency care]", LETTERS, texts=TEXTS, settings=own).letter == "C"

    marked = ParserSettings(reasoning=(Reasoning(r"^BEGIN$", r"^END$"),))
    text = "BEGIN\nThe answer is A.\nEND\nThe answer is B."
    assert parse_answer(text, LETTERS, settings=marked).letter == "B"
    open_text = text.replace("END\n", "")
    assert parse_answer(open_text, LETTERS, settings=marked).rule == "reasoning is not closed"
    assert parse_answer(open_text, LETTERS).letter == "B"

    no = "That is beyond my remit."
    assert parse_answer(no, LETTERS).status == "unparsable"
    assert parse_answer(no, LETTERS, settings=ParserSettings(refusals=("beyond my remit",))).status == "refused"

    words = "Final answer: emergency care"
    assert parse_answer(words, LETTERS, texts=TEXTS).letter == "C"
    assert parse_answer(words, LETTERS).letter is None
    assert parse_answer(words, LETTERS, texts=TEXTS, settings=ParserSettings(option_texts=False)).letter is None

    assert parse_answer("Antwort: B", LETTERS).letter == "B"
    assert parse_answer("Antwort: B", LETTERS, settings=ParserSettings(languages=("en",))).letter is None


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: ParserSettings(statements=("no place",)), r"statements\[0\] must hold \{letter\} once"),
        (lambda: ParserSettings(refusals=("ok", "(sorry")), r"refusals\[1\] must be a regular expression.*character 1"),
        (
            lambda: ParserSettings(reasoning=(Reasoning("a*", "b"),)),
            r"reasoning\[0\]\.open must not match where nothing",
        ),
        (lambda: ParserSettings(languages=("en", "tlh")), r"languages\[1\] must be one of en, .* found 'tlh'"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name_and_place(made: Any, said: str) -> None:
    with pytest.raises(ProbeError, match=said):
        made()


def test_the_recorded_name_tells_readings_apart() -> None:
    assert parser_name(DEFAULT_PARSER).isdigit()
    strict = ParserSettings(option_texts=False)
    assert parser_name(strict) == parser_name(ParserSettings(option_texts=False)) != parser_name(DEFAULT_PARSER)
    assert parser_name(strict).startswith(parser_name(DEFAULT_PARSER) + "+")


def test_every_language_has_its_words_and_its_patterns_compile() -> None:
    for name in LANGUAGES:
        for pattern in vars(words_of([name])).values():
            assert pattern == pattern.lower()
            assert not re.compile(pattern, re.MULTILINE).search("")


@pytest.mark.parametrize("odd", ["ſtay home or ſelf-care", "STAY  HOME OR\nSELF-CARE", "ſtay home", "İtchy"])
def test_letters_that_only_ignoring_case_makes_equal_are_read_without_an_error(odd: str) -> None:
    parsed = parse_answer(
        f"We stay itchy. Final answer: {odd}", LETTERS, texts=("stay home or self-care", "itchy", "care")
    )
    assert parsed.letter in ("A", "B")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("I choose B. On reflection, C.", "C"),
        ("I choose B. Actually, make that C.", "C"),
        ("Final answer: B. Wait, no - C.", "C"),
        ("The answer is B. Correction: option C, not B.", "C"),
        ("Option B. On second thoughts, emergency care.", "C"),
        ("Ich wähle B. Moment, C.", "C"),
        ("I choose B.\n\nActually:\n\nC", "C"),
        # What follows the correction ends no clause: it is about the letter, and chooses nothing.
        ("I choose B. Actually, C is for emergencies.", "B"),
        ("I choose B. Actually, A patient like this may wait.", "B"),
        ("Final answer: B. Actually, option C would be excessive.", "B"),
        ("I choose B. Wait for the C. diff result.", "B"),
        ("I choose B. On reflection, not C.", "B"),
    ],
)
def test_a_correction_needs_no_verb_and_is_followed_where_a_letter_is_all_it_says(text: str, letter: str) -> None:
    parsed = parse_answer(text, LETTERS, texts=TEXTS)
    assert (parsed.status, parsed.letter) == ("parsed", letter)


@pytest.mark.parametrize(
    ("text", "status", "letter"),
    [
        ("As an AI, I can't diagnose, but B.", "parsed", "B"),
        ("As an AI, I can't diagnose. Final answer: B", "parsed", "B"),
        ("I'm not able to examine her, but I would say B.", "parsed", "B"),
        ("I cannot give medical advice, but emergency care.", "parsed", "C"),
        ("As an AI, I can't diagnose, but B is a letter.", "refused", None),
        ("I'm sorry, but a doctor must decide.", "refused", None),
        ("She has hepatitis A, but B.", "unparsable", None),  # no hedge: "but" alone chooses nothing
    ],
)
def test_a_hedge_before_a_label_is_no_refusal_and_leaves_the_label(text: str, status: str, letter: str | None) -> None:
    parsed = parse_answer(text, LETTERS, texts=TEXTS)
    assert (parsed.status, parsed.letter) == (status, letter)


FILLERS = (
    *(" ", "\n", "\t", "\u00a0", "“", "»", '"', "*", "* ", "| "),
    *("- ", "# ", "(", "$", "🚑", ". ", "the ", "so ", "B ", "B/C/", "**B** "),
)


@pytest.mark.parametrize("filler", FILLERS, ids=ascii)
def test_no_run_of_marks_or_blanks_takes_time_that_grows_faster_than_its_length(filler: str) -> None:
    ends = (("Answer:", "xB"), ("Final answer", "xB"), ("I choose", "xB"), ("", "B"), ("B", "is x"), ("B,", "x"))
    for n in (18, 110, 6000):
        for before, after in ends:
            text, began = f"{before}{filler * (n // len(filler))}{after} x B", process_time()
            parse_answer(text, LETTERS, texts=TEXTS)
            # Some ms, for thousands of letters .3 s. A pattern that tries every split of a run takes 5 s for 18 quotes,
            # twice as long for each further one.
            assert process_time() - began < 3


def test_texts_that_two_options_share_stand_for_neither() -> None:
    texts = ("see a doctor today", "see a doctor", "see a doctor or rest")
    assert parse_answer("Final answer: see a doctor today", LETTERS, texts=texts).letter == "A"
    assert parse_answer("Final answer: see a doctor", LETTERS, texts=texts).letter is None
    assert parse_answer("Final answer: rest", LETTERS, texts=texts).letter == "C"


def test_a_rotation_moves_words_to_other_letters_and_leaves_written_letters_alone() -> None:
    rotated = ("B", "C", "A")
    assert parse_answer("Final answer: emergency care", rotated, texts=TEXTS).letter == "A"
    assert parse_answer("Final answer: B", rotated, texts=TEXTS).letter == "B"
    assert parse_answer("Final answer: A (emergency care)", rotated, texts=TEXTS).letter == "A"
    assert parse_answer("Final answer: C (emergency care)", rotated, texts=TEXTS).status == "conflicting"
