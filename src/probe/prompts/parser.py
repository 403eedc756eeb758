"""The label that an answer states. Knows text and letters; knows no tokenizer and never guesses.

Only explicit statements count, read after the reasoning is closed; the last one wins. The article "A", "vitamin C" or
"hepatitis B" are not statements. Nothing found means no label, never a default.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

PARSER_VERSION = "1"

_WORDS = frozenset({"A", "I"})

_REASONING_CLOSED = re.compile(r"</think>|^#+\s*Final Response\s*$", re.IGNORECASE | re.MULTILINE)
_REASONING_OPEN = re.compile(r"<think>|^#+\s*Thinking\s*$", re.IGNORECASE | re.MULTILINE)

_MENTIONS = frozenset({"chosen", "option", "bold", "letter line"})
"""Rules that find a letter named or set apart: it counts if no other letter is, and its sentence denies nothing."""

_DENIAL = re.compile(r"\b(?:not|neither|nor|cannot|never|unable|unlike)\b|n['’]t\b", re.IGNORECASE)

_WITHDRAWN = re.compile(
    r"\b(?:final\s+)?(?:answer|decision)[\"'*_]*\s*(?:[:=]|\bis\b)[\s\"'*_]*"
    r"(?:not (?:sure|clear|certain)|unsure|unclear|uncertain|undecided|unknown|it depends|cannot|can['’]t|unable)\b",
    re.IGNORECASE,
)
"""A statement that names no letter takes back what was said before it."""

_REFUSAL = re.compile(
    r"\b(?:I(?:'m| am) (?:sorry|unable|not able)|I (?:can(?:'|no)t|cannot|won't|will not|must decline)|as an AI\b"
    r"|not (?:able|qualified|allowed) to (?:give|provide|offer|make))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Parsed:
    """What the parser found.

    ``letter`` and its character ``span`` in the answer are None unless ``status`` is ``parsed``; ``rule`` names the
    pattern that decided.
    """

    status: str
    letter: str | None = None
    span: tuple[int, int] | None = None
    rule: str = ""


def parse_answer(text: str, letters: Sequence[str], *, truncated: bool = False) -> Parsed:
    """The letter that an answer states, with its place.

    A cut answer is ``truncated`` whatever it says so far. Statements are ranked: first those that name themselves final
    or an answer (``Final answer: B``, ``The answer is (C)``, ``{"answer": "B"}``, a boxed letter), the last of which
    wins; then letters chosen, named or set apart (``I choose B``, ``option B``, ``**C**``, a line that is only
    ``(A)``), which count only if all name the same letter and their sentence denies nothing; then an answer that opens
    with the bare letter. One statement with two letters, or two letters set apart, are ``conflicting``.
    """
    if truncated:
        return Parsed("truncated")
    closed = list(_REASONING_CLOSED.finditer(text))
    if not closed and _REASONING_OPEN.search(text):
        return Parsed("unparsable", rule="reasoning is not closed")
    withdrawn = list(_WITHDRAWN.finditer(text))
    start = max([match.end() for match in (*closed[-1:], *withdrawn[-1:])], default=0)
    for rule, pattern in _statements(tuple(letters)):
        matches = list(pattern.finditer(text, start))
        if rule in _MENTIONS:
            matches = [match for match in matches if not _DENIAL.search(_clause(text, *match.span()))]
        if not matches:
            continue
        last = matches[-1]
        found, second = _canonical(last["letter"], letters), last["second"]
        rivals = {_canonical(match["letter"], letters) for match in matches} if rule in _MENTIONS else {found}
        if len(rivals) > 1 or (second and _canonical(second, letters) != found):
            return Parsed("conflicting", rule=rule)
        return Parsed("parsed", found, last.span("letter"), rule)
    if _REFUSAL.search(text, start):
        return Parsed("refused", rule="a refusal, and no label")
    return Parsed("unparsable")


def _clause(text: str, start: int, end: int) -> str:
    """The sentence around a place, up to its full stops or line ends."""
    before = max(text.rfind(mark, 0, start) for mark in ".!?\n;") + 1
    after = min((at for mark in ".!?\n;" if (at := text.find(mark, end)) >= 0), default=len(text))
    return text[before:after]


def _canonical(found: str, letters: Sequence[str]) -> str:
    return next(letter for letter in letters if letter.casefold() == found.casefold())


@cache
def _statements(letters: tuple[str, ...]) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """The ranked statements, strongest first; each has the groups ``letter`` and ``second``."""
    letter = _letter(letters)
    wrap = r"[\s\"'*_(\[{$]*"
    is_ = r"[\"'*_]*(?:\s*(?:[:=]|\b(?:is|would be|remains)\b:?)|\s+[-–—]\s)"
    final = r"(?i:\bfinal\s+(?:answer|decision|label|choice|triage))"
    answer = r"(?i:\b(?:answer|decision|triage(?:\s+level)?|category|label|(?:correct|best|right)\s+(?:option|choice)))"
    chosen = r"(?i:\b(?:choose|chose|select|pick|recommend))\s+"
    named = r"(?i:(?:option|choice|letter)\s+)"
    return (
        ("final answer", re.compile(rf"{final}(?:{is_})?{wrap}{named}?{wrap}{letter}")),
        ("answer", re.compile(rf"{answer}{is_}{wrap}{named}?{wrap}{letter}")),
        ("boxed", re.compile(rf"\\boxed\{{\s*(?:\\text\w*\{{)?{letter}")),
        ("chosen", re.compile(rf"{chosen}{named}?[\"'*_(\[]*{letter}")),
        ("option", re.compile(rf"\b{named}[\"'*_(\[]*{_letter(letters, words=frozenset())}")),
        ("bold", re.compile(rf"(?:\*\*|__)\(?{letter}[).:]?(?=[^*_\n]{{0,80}}(?:\*\*|__))")),
        ("letter line", re.compile(rf"^[ \t]*[(\[]?{letter}(?=[)\].:]*[ \t]*$)", re.MULTILINE)),
        ("opening letter", re.compile(rf"\A\s*[(\[]?{letter}(?=[)\]]|[.:,;](?:\s|\Z)|\s*[-–—]\s|\s*\Z|\s*\n)")),
    )


def _letter(letters: tuple[str, ...], words: frozenset[str] = _WORDS) -> str:
    """A letter as a statement, and a second one offered with it.

    A lower-case letter, and a letter that is also one of ``words`` (the article, the pronoun), must end its clause:
    "the answer is a question of time" and "Final answer: A patient like this" state nothing.
    """
    ordered = sorted(letters, key=len, reverse=True)
    plain = [re.escape(letter) for letter in ordered if letter not in words]
    careful = [re.escape(letter) for letter in ordered if letter in words]
    careful += [re.escape(letter.lower()) for letter in ordered if letter != letter.lower()]
    ends = r"(?=[\s\"'*_)\]}]*(?:\Z|[\n.,;:!)\]}(/–—]|-\s|(?:or|and|because|since|as|due|given)\b))"
    alone = r"(?![A-Za-z0-9])(?!['’][a-z])(?!-[A-Za-z0-9])"
    choices = [f"(?:{'|'.join(plain)})"] if plain else []
    choices += [f"(?:{'|'.join(careful)}){ends}"] if careful else []
    one = f"(?:{'|'.join(choices)})"
    any_letter = "|".join(re.escape(letter) for letter in ordered)
    joined = r"(?:/|\bor\b|\band\b|,)\s*(?:(?i:option|choice)\s+)?"
    second = rf"(?:[\s\"'*_)\]}}]*{joined}[\"'*_(\[]*(?P<second>{any_letter})(?![A-Za-z0-9])(?!\s+[a-z]))?"
    return rf"(?P<letter>{one}){alone}{second}"
