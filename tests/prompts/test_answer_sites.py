"""What stands before a label at each answer site, in tokens, against the tokenizer's own reading of the whole text."""

from __future__ import annotations

import pytest

from probe.prompts import AnswerSites, PromptBuilder, Reopener, Reopening, label_tokens, parse_answer
from probe.prompts.reasoning import answer_start
from probe.values import AbsentSite, Case, Condition, LabelError, Option, ParserSettings, Reasoning, Task
from tests.tiny_models import CHATML, tiny_tokenizer

OPTIONS = (Option("self_care", "stay home"), Option("routine", "routine care"), Option("emergency", "go now"))
TASK = Task("triage", ("{case}\n\n{options}",), OPTIONS, ("A", "B", "C"), "emergency")
CASE = Case("c", "A patient with fever.", "routine")
THINKS = CHATML.replace("assistant\\n{%", "assistant\\n<think>\\n{%").replace(
    "<|im_start|>assistant\n{%", "<|im_start|>assistant\n<think>\n{%"
)


def builder(template: str = CHATML, task: Task = TASK) -> PromptBuilder:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return PromptBuilder(tokenizer, task)


def ids(build: PromptBuilder, text: str) -> tuple[int, ...]:
    return tuple(build.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_forced_text_has_the_tokens_that_it_has_after_this_prompt() -> None:
    build = builder()
    prompt = build.build(None, CASE, Condition())
    reads = AnswerSites(build, ("forced",), "Final answer:").reads(prompt, Condition())
    assert reads.forced is not None
    assert (*prompt.token_ids, *reads.forced.token_ids) == ids(build, prompt.text + "Final answer:")
    for letter, variants in zip("ABC", reads.forced.labels.ids, strict=True):
        written = {ids(build, prompt.text + "Final answer:" + mark + letter) for mark in ("", " ")}
        assert {(*prompt.token_ids, *reads.forced.token_ids, token) for token in variants} == written
    assert reads.reopener is None
    assert AnswerSites(build, ("prompt_end",), "x").reads(prompt, Condition()).forced is None


def test_a_forced_text_that_changes_the_prompts_tokens_is_refused() -> None:
    build = builder(CHATML.replace("assistant\n{%", "assistant\nFinal{%"))
    prompt = build.build(None, CASE, Condition())
    joined = ids(build, prompt.text + " answer:")
    assert joined[: len(prompt.token_ids)] == prompt.token_ids  # a space keeps the tokens apart
    assert AnswerSites(build, ("forced",), " answer:").reads(prompt, Condition()).forced is not None
    build.tokenizer.add_tokens(["Finally"])  # as a tokenizer that joins the two would have it
    with pytest.raises(
        LabelError, match=r"the forced text 'ly:' changes the last tokens of this prompt .* labels\.forced"
    ):
        AnswerSites(build, ("forced",), "ly:").reads(prompt, Condition())


def test_labels_after_a_forced_text_follow_the_rotation() -> None:
    build, turned = builder(), Condition(rotation=1)
    sites = AnswerSites(build, ("forced", "after_reasoning"), "Final answer:")
    straight = sites.reads(build.build(None, CASE, Condition()), Condition())
    rotated = sites.reads(build.build(None, CASE, turned), turned)
    assert straight.forced is not None
    assert rotated.forced is not None
    assert rotated.forced.labels.letters == ("B", "C", "A")
    assert rotated.forced.labels.ids == (*straight.forced.labels.ids[1:], straight.forced.labels.ids[0])


def reopened(
    answer: str, *, forced: str = "Final answer:", opened: bool = False, marks: tuple[Reasoning, ...] = ()
) -> tuple[str, str] | AbsentSite:
    """The text that is kept of an answer and the text that is fed after it, or why there is no such place."""
    tokenizer = tiny_tokenizer()
    reopener = Reopener(tokenizer, forced, ("A", "B", "C"), reasoning=marks, opened=opened)
    tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
    found = reopener.find(tokens)
    assert reopener(tokens) == (found if isinstance(found, Reopening) else None)
    if not isinstance(found, Reopening):
        return found
    return tokenizer.decode(tokens[: found.n_kept]), tokenizer.decode(found.token_ids)


@pytest.mark.parametrize(
    ("reasoning", "rest"),
    [
        ("<think>\nA or B?\n</think>\n\n", "The patient may stay home. A"),
        ("## Thinking\n\nA or B?\n\n## Final Response\n\n", "B, for fever."),
        ("<think>a</think>no, <think>b</think>\n", "C"),
        ("<think>a</think>", " C"),
        ("<think>A or B?</think>", ""),
    ],
)
def test_an_answer_is_taken_up_again_behind_its_closed_reasoning(reasoning: str, rest: str) -> None:
    assert reopened(reasoning + rest) == (reasoning, "Final answer:")


def test_an_answer_whose_reasoning_is_open_or_missing_has_no_such_place() -> None:
    assert reopened("<think>\nA or B? The fever") == AbsentSite.NOT_CLOSED
    assert reopened("The answer is A.") == AbsentSite.NO_REASONING
    assert reopened("The answer is A.", opened=True) == AbsentSite.NOT_CLOSED
    assert reopened("fever?</think>\nA", opened=True) == ("fever?</think>\n", "Final answer:")


def test_a_pattern_of_the_users_own_closes_reasoning() -> None:
    marks = (Reasoning(r"^Notes:", r"^Verdict$"),)
    answer = "Notes: fever\nVerdict\n"
    assert reopened(answer + "A", marks=marks) == (answer, "Final answer:")
    assert reopened(answer + "A") == AbsentSite.NO_REASONING


def test_a_close_that_begins_the_forced_text_is_not_fed_twice() -> None:
    closing = "</think>\n\nFinal answer:"
    assert reopened("<think>fever</think>\n\nA", forced=closing) == ("<think>fever</think>\n\n", "Final answer:")


def test_a_token_that_both_closes_and_goes_on_leaves_no_place_to_cut() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["</think>So"])
    tokens = tokenizer("<think>fever</think>So A", add_special_tokens=False)["input_ids"]
    assert Reopener(tokenizer, "Final answer:", ("A", "B")).find(tokens) == AbsentSite.MERGES
    apart = tokenizer("<think>fever</think> So A", add_special_tokens=False)["input_ids"]
    assert isinstance(Reopener(tokenizer, "Final answer:", ("A", "B")).find(apart), Reopening)


def test_a_special_token_behind_the_close_is_kept() -> None:
    """As in channels: the text that the parser reads does not show it, and the answer begins behind it."""
    tokenizer = tiny_tokenizer()
    tokens = tokenizer("<think>fever</think><|im_start|>A", add_special_tokens=False)["input_ids"]
    found = Reopener(tokenizer, "Final answer:", ("A", "B")).find(tokens)
    assert isinstance(found, Reopening)
    assert tokenizer.decode(tokens[: found.n_kept]).endswith("<|im_start|>")


def test_a_template_that_opens_the_reasoning_is_noticed() -> None:
    assert THINKS != CHATML
    for template, opened in (
        (CHATML, False),
        (THINKS, True),
        (THINKS.replace("<think>\n", "<think></think>\n"), False),
    ):
        build = builder(template)
        prompt = build.build(None, Case("c", "He said <think> twice.", "routine"), Condition())
        assert build.opens_reasoning(Condition()) is opened
        assert AnswerSites(build, ("prompt_end",), "").reads(prompt, Condition()).reasoning_open is opened
    assert not builder(THINKS).opens_reasoning(Condition(prefix="fever</think>"))


def test_an_answer_inside_reasoning_that_the_prompt_opened_states_nothing() -> None:
    answer = "The fever is high. Final answer: C"
    assert parse_answer(answer, ("A", "B", "C")).letter == "C"
    inside = parse_answer(answer, ("A", "B", "C"), reasoning_open=True)
    assert (inside.status, inside.rule) == ("unparsable", "reasoning is not closed")
    assert parse_answer(f"hm</think> {answer}", ("A", "B", "C"), reasoning_open=True).letter == "C"
    assert answer_start("x", opened=True) is None
    assert answer_start("x</think>", opened=True) == len("x</think>")


def test_labels_of_several_tokens_are_spelled_where_that_is_asked_and_refused_else() -> None:
    build = builder()
    text = build.build(None, CASE, Condition()).text
    letters = ("QZ", "QX", "B")
    with pytest.raises(LabelError, match=r"set labels\.score: continuation"):
        label_tokens(build.tokenizer, text, letters)
    found = label_tokens(build.tokenizer, text, letters, score="continuation")
    assert found.ids[:2] == ((), ())
    assert len(found.ids[2]) == 2
    assert found.spelled[2] == ()
    for letter, variants in zip(letters[:2], found.spelled, strict=False):
        written = {ids(build, text + mark + letter)[len(ids(build, text)) :] for mark in ("", " ")}
        assert set(variants) == written
    assert label_tokens(build.tokenizer, text, ("A", "B", "C"), score="continuation") == label_tokens(
        build.tokenizer, text, ("A", "B", "C")
    )


def test_a_refusal_of_labels_names_the_site_and_the_text_that_joins_them() -> None:
    """As where a forced text ends in a space and the tokenizer writes the space with the letter."""
    build = builder()
    prompt = build.build(None, CASE, Condition())
    for site in ("forced", "after_reasoning"):
        assert AnswerSites(build, (site,), "Final answer:").reads(prompt, Condition())
        with pytest.raises(LabelError, match=rf"^at the answer site '{site}': .*'nal answer: '.*let that text end"):
            AnswerSites(build, (site,), "Final answer: ").reads(prompt, Condition())
    plain = builder(CHATML.replace("assistant\n{%", "assistant {%"))
    with pytest.raises(LabelError, match=r"^label 'A' changes the last tokens"):
        AnswerSites(plain, ("after_reasoning",), "Final answer: ").reads(
            plain.build(None, CASE, Condition()), Condition()
        )


def test_a_label_that_begins_another_is_refused_for_their_probabilities_would_overlap() -> None:
    with pytest.raises(LabelError, match="labels 'QZ' and 'QZX' share the tokens"):
        label_tokens(tiny_tokenizer(), "Answer:", ("QZ", "QZX"), score="continuation")
    assert label_tokens(tiny_tokenizer(), "Answer:", ("QZ", "ZQX"), score="continuation").spelled


def test_the_spelling_with_a_space_serves_where_the_bare_letter_joins_the_text() -> None:
    """As with tokenizers that write ':A' as one token."""
    tokenizer = tiny_tokenizer()
    plain = label_tokens(tokenizer, "Final answer:", ("A", "B"))
    tokenizer.add_tokens([":A", ":B"])
    joined = label_tokens(tokenizer, "Final answer:", ("A", "B"))
    assert joined.ids == tuple((spaced,) for _, spaced in plain.ids)


def test_parser_settings_reach_the_reopener() -> None:
    task = Task("t", TASK.instructions, OPTIONS, TASK.letters, "emergency", parser=ParserSettings(
        reasoning=(Reasoning(r"^Notes:", r"^Verdict$"),)
    ))  # fmt: skip
    build = builder(task=task)
    reads = AnswerSites(build, ("after_reasoning",), "Final answer:").reads(
        build.build(None, CASE, Condition()), Condition()
    )
    assert reads.reopener is not None
    assert isinstance(reads.reopener.find(ids(build, "Notes: x\nVerdict\nA")), Reopening)
