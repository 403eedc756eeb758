"""System texts that state nobody, of as many tokens as a persona's. Knows a prompt builder; knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from probe.prompts.rendering import Prompt, PromptBuilder
from probe.values import Case, Condition

_TRIED = 40
"""Candidates of one number of opening sentences that are rendered: their own lengths are known beforehand, only what
neighbouring tokens of the template do to them is not."""


@dataclass(frozen=True)
class SentenceKind:
    """Sentences of one meaning in many lengths: one of each of ``parts`` (some may be empty), with a full stop.

    ``openings`` stand before it where a text must be longer, one after the other and then again.
    """

    parts: tuple[tuple[str, ...], ...]
    openings: tuple[str, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """Every last sentence."""
        return tuple(f"{' '.join(filter(None, chosen))}." for chosen in product(*self.parts))

    def opening(self, n: int) -> str:
        """The first ``n`` opening sentences, with the space after them."""
        return "".join(f"{self.openings[i % len(self.openings)]} " for i in range(n))


NEUTRAL = SentenceKind(
    parts=(
        (
            "Rain fell",
            "Snow fell",
            "It rained",
            "The rain fell",
            "A light rain fell",
            "The first snow of the year fell",
        ),
        ("", "over the lake", "on the hills", "near the town", "in the north", "over the old stone bridge"),
        ("", "at noon", "in winter", "in the evening", "before the end of the month"),
    ),
    openings=(
        "The weather was as usual.",
        "The days were short.",
        "The wind came from the west.",
        "The river was high.",
        "In the morning there was fog.",
    ),
)
"""About the weather: sentences of no consequence, to the persona, to the task and to the model."""

NONSENSE = SentenceKind(
    parts=(
        ("You are a", "Act as a", "Answer as a", "You are acting as a", "Take the role of a", "You are"),
        ("", "square", "wooden", "triangular", "quiet wooden", "small triangular"),
        ("lamp", "cloud", "kettle", "Tuesday", "window", "staircase"),
        ("", "of rain", "made of numbers", "in the north of the alphabet"),
    ),
    openings=(
        "Colours sleep under the stairs.",
        "The number seven is hungry.",
        "Yesterday will be round.",
        "Every window is a Monday.",
    ),
)
"""In the form of a persona, and about no one: a persona's effect should exceed that of such a text."""


def matched_text(
    builder: PromptBuilder, persona_text: str | None, case: Case, condition: Condition, kind: SentenceKind
) -> str | None:
    """A text of this kind in place of a persona's that leaves every other token of the prompt as and where it is.

    The two prompts are then of one length and differ in the persona's tokens alone, so that positions are aligned by
    their index. Of the texts with the fewest openings the one whose number of characters is nearest to the persona's
    is taken. None where no text of this kind has that length with this tokenizer, or there is no persona to replace.
    """
    if not persona_text:
        return None
    target = builder.build(persona_text, case, condition)
    if target.persona_tokens is None:
        return None
    for text in _candidates(builder.tokenizer, persona_text, kind):
        if text != persona_text and differ_in_the_persona_alone(builder.build(text, case, condition), target):
            return text
    return None


def differ_in_the_persona_alone(one: Prompt, other: Prompt) -> bool:
    """Whether two prompts have the same tokens everywhere but in their personas' places, which are the same."""
    if one.persona_tokens is None or one.persona_tokens != other.persona_tokens:
        return False
    start, end = one.persona_tokens
    return one.token_ids[:start] == other.token_ids[:start] and one.token_ids[end:] == other.token_ids[end:]


def _candidates(tokenizer: Any, persona_text: str, kind: SentenceKind) -> Iterator[str]:
    """Texts whose own length is the persona's or one off, likeliest first; with ever more openings."""
    wanted, sentences, n = _lengths(tokenizer, [persona_text])[0], kind.sentences, 0
    while True:
        opening = kind.opening(n)
        texts = [opening + sentence for sentence in sentences]
        off = [length - wanted for length in _lengths(tokenizer, texts)]
        near = [i for i in range(len(texts)) if abs(off[i]) <= 1]
        near.sort(key=lambda i: (abs(off[i]), abs(len(texts[i]) - len(persona_text))))
        yield from (texts[i] for i in near[:_TRIED])
        if min(off) > 1:
            return
        n += 1


def _lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
