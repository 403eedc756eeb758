"""Where an answer begins, once its reasoning is closed. Knows the marks of reasoning; reads no label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from probe.values import Reasoning

BUILTIN = (
    Reasoning(
        r"<(?:think|thinking|thought|reasoning|reflection)>", r"</(?:think|thinking|thought|reasoning|reflection)>"
    ),
    Reasoning(r"\[think\]", r"\[/think\]"),
    Reasoning(r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    Reasoning(r"^#+[ \t]*(?:thinking|reasoning process)[ \t]*:?[ \t]*$", r"^#+[ \t]*final response[ \t]*:?[ \t]*$"),
    Reasoning(r"\Aanalysis(?=[A-Z])", r"assistantfinal"),
)
"""Tags, HuatuoGPT-o1's headings, and the channels that a tokenizer leaves when special tokens are skipped."""

_FLAGS = re.IGNORECASE | re.MULTILINE


def answer_start(text: str, reasoning: Sequence[Reasoning] = (), *, opened: bool = False) -> int | None:
    """The character after the last close of the reasoning, 0 without any; None where reasoning opens and stays open.

    A close without an open counts: a chat template may have opened the reasoning in the prompt. ``opened`` says that it
    has: then no close means that the reasoning stays open.
    """
    start = 0
    for opens, closed in _marks(tuple(reasoning)):
        closes = [match.end() for match in closed.finditer(text)]
        if any(match.start() >= (closes[-1] if closes else 0) for match in opens.finditer(text)):
            return None
        start = max(start, *closes[-1:], 0)
    return None if opened and start == 0 else start


@cache
def _marks(reasoning: tuple[Reasoning, ...]) -> tuple[tuple[re.Pattern[str], re.Pattern[str]], ...]:
    # "analysis" opens a channel only before a capital letter, so that mark alone keeps the case.
    return tuple(
        (
            re.compile(marks.open, re.MULTILINE if marks.open.startswith(r"\A") else _FLAGS),
            re.compile(marks.close, _FLAGS),
        )
        for marks in (*reasoning, *BUILTIN)
    )
