"""A sentence that takes a persona's place leaves every other token of the prompt where it is."""

from __future__ import annotations

import pytest

from probe.prompts import PromptBuilder
from probe.prompts.matched import NEUTRAL, NONSENSE, SentenceKind, differ_in_the_persona_alone, matched_text
from probe.values import Case, Condition, Option, Task
from tests.tiny_models import CHATML, DEFAULT_SYSTEM, NO_SYSTEM, tiny_tokenizer

TASK = Task(
    "triage",
    ("Triage.\n\n{case}\n\n{options} Final answer: X.",),
    (Option("home", "stay home"), Option("clinic", "routine care"), Option("hospital", "go now")),
    ("A", "B", "C"),
    "hospital",
)
CASE = Case("c1", "A patient with chest pain, aged 54 years.", "hospital")
PERSONA = "You are a gardener who grows roses and tulips in a small village."
LONG = " ".join([PERSONA, "You have done so for thirty years, and you know every plant by its name."] * 3)


@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, NO_SYSTEM])
@pytest.mark.parametrize("kind", [NEUTRAL, NONSENSE])
@pytest.mark.parametrize("persona", [PERSONA, LONG])
def test_the_prompts_differ_in_the_personas_tokens_alone(template: str, kind: SentenceKind, persona: str) -> None:
    builder = PromptBuilder(tiny_tokenizer(template), TASK)
    condition = Condition(placement=builder.resolve_placement("auto"))
    text = matched_text(builder, persona, CASE, condition, kind)
    assert text is not None
    assert text != persona
    ours, theirs = (builder.build(each, CASE, condition) for each in (text, persona))
    assert len(ours.token_ids) == len(theirs.token_ids)
    assert differ_in_the_persona_alone(ours, theirs)
    assert (ours.persona_tokens, ours.user_tokens, ours.case_tokens) == (
        theirs.persona_tokens,
        theirs.user_tokens,
        theirs.case_tokens,
    )
    # Another case does not move the persona's tokens, so one sentence serves all of them.
    other = Case("c2", "A cough.", "home")
    assert differ_in_the_persona_alone(*(builder.build(each, other, condition) for each in (text, persona)))


def test_where_no_sentence_has_the_length_there_is_none() -> None:
    builder = PromptBuilder(tiny_tokenizer(CHATML), TASK)
    assert matched_text(builder, "A", CASE, Condition(), NEUTRAL) is None
    assert matched_text(builder, None, CASE, Condition(), NEUTRAL) is None
    assert matched_text(builder, "", CASE, Condition(), NEUTRAL) is None


def test_prompts_of_other_lengths_or_other_tokens_do_not_differ_in_the_persona_alone() -> None:
    build = PromptBuilder(tiny_tokenizer(CHATML), TASK).build
    one = build(PERSONA, CASE, Condition())
    assert differ_in_the_persona_alone(one, one)
    assert not differ_in_the_persona_alone(one, build(f"{PERSONA} A", CASE, Condition()))
    assert not differ_in_the_persona_alone(one, build(PERSONA, CASE, Condition(rotation=1)))
    assert not differ_in_the_persona_alone(build(None, CASE, Condition()), build(None, CASE, Condition()))


@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, NO_SYSTEM])
@pytest.mark.parametrize("persona", [None, PERSONA])
def test_the_users_tokens_are_instruction_and_case_without_the_persona(template: str, persona: str | None) -> None:
    builder = PromptBuilder(tiny_tokenizer(template), TASK)
    condition = Condition(placement=builder.resolve_placement("auto"))
    prompt = builder.build(persona, CASE, condition)
    assert prompt.user_tokens is not None
    text = builder.tokenizer.decode(prompt.token_ids[slice(*prompt.user_tokens)])
    assert text.strip() == f"Triage.\n\n{CASE.input}\n\nA: stay home. B: routine care. C: go now. Final answer: X."
