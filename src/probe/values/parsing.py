"""How the label of an answer is read, as a value. Knows patterns and their rules; reads no answer and no file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from probe.values.canonical import sha256_of
from probe.values.errors import ProbeError

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl", "zh", "ja", "ko", "ru")
"""Languages whose words for *answer*, *option* and the like are known."""

PLACEHOLDER = "{letter}"
"""Where the letter stands in a statement pattern."""


@dataclass(frozen=True)
class Reasoning:
    """How a model marks its reasoning: regular expressions for where it opens and where it closes."""

    open: str
    close: str


@dataclass(frozen=True)
class ParserSettings:
    """What may differ between two readings of the same answers; the default serves most models.

    ``statements`` are regular expressions that hold ``{letter}`` once; they count before every built-in statement.
    ``reasoning`` adds to the built-in marks: nothing before the last close is read, and nothing at all where reasoning
    opens and does not close. ``refusals`` adds to the built-in patterns, which count only where nothing was extracted.
    Patterns ignore case; ``^`` and ``$`` are line ends. ``option_texts``: an option's own words count as its letter.

    Raises:
        ProbeError: a pattern is no regular expression, a statement lacks ``{letter}``, or a language is not known.
    """

    statements: tuple[str, ...] = ()
    reasoning: tuple[Reasoning, ...] = ()
    refusals: tuple[str, ...] = ()
    option_texts: bool = True
    languages: tuple[str, ...] = LANGUAGES

    def __post_init__(self) -> None:
        named = [(f"statements[{i}]", statement_problem(pattern)) for i, pattern in enumerate(self.statements)]
        for i, marks in enumerate(self.reasoning):
            named += [(f"reasoning[{i}].open", pattern_problem(marks.open))]
            named += [(f"reasoning[{i}].close", pattern_problem(marks.close))]
        named += [(f"refusals[{i}]", pattern_problem(pattern)) for i, pattern in enumerate(self.refusals)]
        named += [(f"languages[{i}]", language_problem(name)) for i, name in enumerate(self.languages)]
        for name, problem in named:
            if problem:
                raise ProbeError(f"parser {name} {problem}")

    @property
    def name(self) -> str:
        """Empty for the default, else eight hex digits that equal settings share."""
        if self == DEFAULT_PARSER:
            return ""
        return sha256_of(
            [
                self.statements,
                [[marks.open, marks.close] for marks in self.reasoning],
                self.refusals,
                self.option_texts,
                self.languages,
            ]
        )[:8]


def pattern_problem(pattern: str) -> str:
    """What is wrong with a regular expression, empty where nothing is."""
    try:
        compiled = re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    except re.error as error:
        place = "" if error.pos is None else f" at character {error.pos + 1}"
        return f"must be a regular expression, and {pattern!r} is none: {error.msg}{place}. Mend it"
    if compiled.search(""):
        return f"must not match where nothing stands, and {pattern!r} does. Let it need at least one character"
    return ""


def statement_problem(pattern: str) -> str:
    """What is wrong with a statement pattern, empty where nothing is."""
    if pattern.count(PLACEHOLDER) != 1:
        found = pattern.count(PLACEHOLDER)
        return f"must hold {PLACEHOLDER} once, where the letter stands; {pattern!r} holds it {found} times. Write it in"
    if re.search(r"\(\?P<(?:letter|second)>", pattern):
        return f"may not name a group `letter` or `second`; {pattern!r} does. Write {PLACEHOLDER} instead"
    return pattern_problem(pattern.replace(PLACEHOLDER, "(letter)"))


def language_problem(name: str) -> str:
    """What is wrong with the name of a language, empty where nothing is."""
    return "" if name in LANGUAGES else f"must be one of {', '.join(LANGUAGES)}, found {name!r}. Leave it out"


DEFAULT_PARSER = ParserSettings()
"""The built-in statements, marks and refusals, option texts and all languages."""
