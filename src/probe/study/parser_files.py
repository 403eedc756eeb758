"""Parser settings from YAML. Knows keys and places; reads no answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from probe.study.checked import CLOSED, Flag, Line, checked
from probe.study.located import Located
from probe.study.yaml_marks import read_yaml
from probe.values import ParserSettings, Reasoning
from probe.values.parsing import LANGUAGES, language_problem, pattern_problem, statement_problem


def _without(problem: Callable[[str], str]) -> AfterValidator:
    def check(text: str) -> str:
        found = problem(text)
        if found:
            raise ValueError(found)
        return text

    return AfterValidator(check)


_Pattern = Annotated[Line, _without(pattern_problem)]
_Statement = Annotated[Line, _without(statement_problem)]
_Language = Annotated[Line, _without(language_problem)]


@dataclass(frozen=True)
class _Reasoning:
    __pydantic_config__ = CLOSED

    open: _Pattern
    close: _Pattern


@dataclass(frozen=True)
class _Entry:
    __pydantic_config__ = CLOSED

    statements: tuple[_Statement, ...] = ()
    reasoning: Any = ()
    refusals: tuple[_Pattern, ...] = ()
    option_texts: Flag = True
    languages: tuple[_Language, ...] = LANGUAGES


def load_parser(path: Path) -> ParserSettings:
    """The parser settings of a YAML file; docs/parsing.md lists the keys.

    Raises:
        StudyError: the file cannot be read, holds an unknown key, or a pattern is no regular expression; the message
            starts with ``file:line:column``.
    """
    return read_parser(read_yaml(path))


def read_parser(source: Located) -> ParserSettings:
    """The parser settings of a mapping: a file of their own, or ``task.parser`` of a study.

    Raises:
        StudyError: as :func:`load_parser`.
    """
    entry = checked(_Entry, source)
    marks = []
    if entry.reasoning != ():
        if not isinstance(entry.reasoning, list | tuple):
            raise source.refusal("`reasoning` must be a list of {open, close}. Put it in brackets: [...]", "reasoning")
        marks = [checked(_Reasoning, source.child("reasoning", i)) for i in range(len(entry.reasoning))]
    return ParserSettings(
        statements=entry.statements,
        reasoning=tuple(Reasoning(mark.open, mark.close) for mark in marks),
        refusals=entry.refusals,
        option_texts=entry.option_texts,
        languages=entry.languages,
    )


def parser_entry(settings: ParserSettings) -> dict[str, Any]:
    """The mapping that ``read_parser`` reads back as the same settings."""
    return {
        "statements": list(settings.statements),
        "reasoning": [{"open": marks.open, "close": marks.close} for marks in settings.reasoning],
        "refusals": list(settings.refusals),
        "option_texts": settings.option_texts,
        "languages": list(settings.languages),
    }
