"""The label that an answer states. Knows letters and option texts; knows no tokenizer and never guesses.

Only explicit statements count, read after the reasoning is closed; the last one of the strongest kind wins. The article
"A", "vitamin C" or "hepatitis B" are not statements. Nothing found means no label, never a default. docs/parsing.md has
the rules in order, with examples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from probe.prompts.languages import words_of
from probe.prompts.reasoning import answer_start
from probe.prompts.statements import EXPLICIT, RULES, SET_APART, Statement, StatementFinder
from probe.values import DEFAULT_PARSER, ParserSettings

PARSER_VERSION = "2"

_RANK = {rule: rank for rank, rule in enumerate(RULES)} | {"boxed": RULES.index("answer")}

_WIDE = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
"""Full-width Latin letters, digits and marks, each as its usual form: one character for one, so that places stay."""

_UNDECIDED = (
    r"not (?:sure|clear|certain)|unsure|unclear|uncertain|undecided|unknown|it depends|cannot|can['’]t|unable"
    r"|none of (?:the above|these|them)|neither"
)


@dataclass(frozen=True)
class Parsed:
    """What the parser found.

    ``letter`` and ``span`` are None unless ``status`` is ``parsed``. ``span`` is the place in the answer, in
    characters, of the letter, or of the option's words where ``in_words``: then no letter was written. ``rule`` names
    what decided.
    """

    status: str
    letter: str | None = None
    span: tuple[int, int] | None = None
    rule: str = ""
    in_words: bool = False


def parse_answer(
    text: str,
    letters: Sequence[str],
    *,
    truncated: bool = False,
    texts: Sequence[str] = (),
    settings: ParserSettings = DEFAULT_PARSER,
    reasoning_open: bool = False,
) -> Parsed:
    """The letter that an answer states, with its place.

    ``letters`` are in the order in which the options were shown, and ``texts[k]`` is what stood beside ``letters[k]``:
    an option's words count where they are no other option's. A cut answer is ``truncated`` whatever it says so far.
    ``reasoning_open``: the prompt had opened the reasoning, so that an answer without its close is still inside it.
    Statements are ranked as in ``RULES``; the last of the strongest kind wins, unless it is taken back ("wait", "on
    reflection"). ``conflicting``: one statement names two letters, or two of equal rank do and none takes the other
    back. ``refused``: nothing was extracted and a hedge stands there.
    """
    if truncated:
        return Parsed("truncated")
    return _parser(tuple(letters), tuple(texts), settings).parse(text, reasoning_open=reasoning_open)


def parser_name(settings: ParserSettings) -> str:
    """What a capture records of how its answers were read: the version, and a hash of settings that are its own."""
    return "+".join(filter(None, (PARSER_VERSION, settings.name)))


@lru_cache(maxsize=256)
def _parser(letters: tuple[str, ...], texts: tuple[str, ...], settings: ParserSettings) -> _Parser:
    return _Parser(letters, texts, settings)


class _Parser:
    """The cascade for one task's letters and one reading of them."""

    def __init__(self, letters: tuple[str, ...], texts: tuple[str, ...], settings: ParserSettings) -> None:
        words = words_of(settings.languages)
        phrases = _phrases(letters, texts) if settings.option_texts else {}
        self._finder = StatementFinder(letters, phrases, settings.languages, settings.statements)
        self._reasoning = settings.reasoning
        self._letters = frozenset(letters)
        self._correction = re.compile(words.correction, re.I | re.M)
        self._turn = re.compile(rf"{words.correction}|\b(?:however|but)\b", re.I | re.M)
        self._withdrawn = re.compile(
            rf"(?<![^\W_])(?:{words.final}|answer|decision)[\"'*_]*\s*(?:[:=]|\bis\b)[\s\"'*_]*(?:{_UNDECIDED})\b", re.I
        )
        # One pattern per language: joined, the search is five times slower.
        own = [re.compile(pattern, re.I | re.M) for pattern in settings.refusals]
        self._refusals = [*own, *(re.compile(words_of([name]).refusal) for name in settings.languages)]

    def parse(self, text: str, *, reasoning_open: bool = False) -> Parsed:
        plain = text if text.isascii() else text.translate(_WIDE)
        start = answer_start(plain, self._reasoning, opened=reasoning_open)
        if start is None:
            return Parsed("unparsable", rule="reasoning is not closed")
        statements = self._finder.find(plain, start)
        while statements:
            found, by = self._strongest(plain, statements)
            later = [statement for statement in statements if statement.span[0] >= by.span[1]]
            again = self._taken_back(plain, by, later)
            if again is not None:
                statements = [statement for statement in later if statement.span[0] >= again]
            elif found is not None:
                return found
            else:
                break
        hedged = plain[start:].lower()
        if any(pattern.search(hedged) for pattern in self._refusals):
            return Parsed("refused", rule="refusal")
        return Parsed("unparsable")

    def _taken_back(self, text: str, by: Statement, later: list[Statement]) -> int | None:
        """Where a later sentence takes back what ``by`` decided: it names no letter, corrects it, or chooses one of
        several; None where it stands."""
        end = by.span[1]
        withdrawn = list(self._withdrawn.finditer(text, end))
        if withdrawn:
            return withdrawn[-1].end()
        for statement in later:
            if statement.rule not in EXPLICIT or (statement.letter == by.letter and not by.rivals):
                continue
            if by.rivals and not statement.rivals:
                return statement.span[0]
            correction = self._correction.search(text, end, statement.span[0])
            if correction:
                return correction.start()
        return None

    def _strongest(self, text: str, statements: list[Statement]) -> tuple[Parsed | None, Statement]:
        """What the statements of the strongest kind say, and the last of them; None where letters are only listed."""
        by_rank: dict[int, list[Statement]] = {}
        for statement in statements:
            by_rank.setdefault(_RANK[statement.rule], []).append(statement)
        found, said = None, statements
        for rank in sorted(by_rank):
            said = by_rank[rank]
            alone = said[0].rule in SET_APART or said[0].rule == "letter line"
            found = self._only_one(text, said) if alone else self._last(text, said)
            if found is not None:
                break
        return found, said[-1]

    def _last(self, text: str, said: list[Statement]) -> Parsed:
        """The last of several statements of one rank; ``conflicting`` where an earlier one stands against it."""
        last = said[-1]
        if last.rivals:
            return Parsed("conflicting", rule=last.rule)
        for earlier in said[:-1]:
            if earlier.letter == last.letter or earlier.rivals:  # one that names several chooses none
                continue
            running = last.rule in ("answer", "boxed") and not (earlier.declared and last.declared)
            if not running and not self._turn.search(text, earlier.span[1], last.span[0]):
                return Parsed("conflicting", rule=last.rule)
        return _parsed(last)

    def _only_one(self, text: str, said: list[Statement]) -> Parsed | None:
        """Letters set apart count where all are the same one; two in one sentence conflict; all of them are a list."""
        named = {letter for statement in said for letter in (statement.letter, *statement.rivals)}
        if len(named) == 1:
            return _parsed(said[-1])
        if named == self._letters and len(named) > 2:
            return None
        whole = text[said[0].span[0] : said[-1].span[1]]
        return Parsed("conflicting", rule=said[-1].rule) if not re.search(r"[.!?;\n。！？]", whole) else None


def _parsed(statement: Statement) -> Parsed:
    return Parsed("parsed", statement.letter, statement.span, statement.name, statement.in_words)


def _phrases(letters: Sequence[str], texts: Sequence[str]) -> dict[str, str]:
    """Words that stand for one letter alone, in lower case: an option's text, and its parts around ``or`` and ``/``."""
    found: dict[str, set[str]] = {}
    for letter, text in zip(letters, texts, strict=False):
        whole = text.strip(" .").lower()
        for phrase in (whole, *re.split(r"\s+or\s+|\s*/\s*", whole)):
            if len(phrase) > 1:
                found.setdefault(" ".join(phrase.split()), set()).add(letter)
    return {phrase: next(iter(owners)) for phrase, owners in found.items() if len(owners) == 1}
