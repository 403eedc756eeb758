"""A task from a mapping. Knows instructions, options and letters; knows no case, persona or answer parser."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probe.study.checked import CLOSED, Id, Line, Name, Text, checked, refuse_same_ids
from probe.study.located import Loc, Located, kind_of
from probe.study.parser_files import parser_entry, read_parser
from probe.values import DEFAULT_PARSER, Option, Task
from probe.values.nearest import nearest


@dataclass(frozen=True)
class _Option:
    __pydantic_config__ = CLOSED

    id: Id
    text: Line


@dataclass(frozen=True)
class _Entry:
    """A task as written: ``instruction`` for one wording or ``instructions`` for several."""

    __pydantic_config__ = CLOSED

    id: Id
    options: Any
    instruction: Text | None = None
    instructions: tuple[Text, ...] = ()
    letters: tuple[Name, ...] | None = None
    high_risk: Name | None = None
    option_format: Text = "{letter}: {text}."
    option_separator: Text = " "
    parser: Any = None


def read_task(source: Located) -> Task:
    """The task of a mapping; options stand in order of rising urgency.

    Raises:
        StudyError: a placeholder is missing or repeated, letters do not fit the options, or ``high_risk`` is none.
    """
    entry = checked(_Entry, source)
    instructions = _instructions(entry, source)
    if entry.option_format.count("{letter}") != 1 or entry.option_format.count("{text}") != 1:
        raise source.refusal(
            "`option_format` holds `{letter}` and `{text}` exactly once each, "
            f"found {entry.option_format!r}. Write '{{letter}}: {{text}}.'",
            "option_format",
        )
    options = _options(source.child("options"))
    letters = _letters(entry.letters, options, source)
    high_risk = entry.high_risk or options[-1].id
    ids = [option.id for option in options]
    if high_risk not in ids:
        raise source.refusal(
            f"`high_risk` names {high_risk!r}, which is no option. {nearest(high_risk, ids, 'option')}",
            "high_risk",
        )
    parser = DEFAULT_PARSER if entry.parser is None else read_parser(source.child("parser"))
    return Task(
        entry.id, instructions, options, letters, high_risk, entry.option_format, entry.option_separator, parser
    )


def task_entry(task: Task) -> dict[str, Any]:
    """The mapping that ``read_task`` reads back as the same task."""
    return {
        "id": task.id,
        "instructions": list(task.instructions),
        # A list, not a mapping: canonical JSON sorts keys, and the order of options is part of the task.
        "options": [{"id": option.id, "text": option.text} for option in task.options],
        "letters": list(task.letters),
        "high_risk": task.high_risk,
        "option_format": task.option_format,
        "option_separator": task.option_separator,
        **({} if task.parser == DEFAULT_PARSER else {"parser": parser_entry(task.parser)}),
    }


def _instructions(entry: _Entry, source: Located) -> tuple[str, ...]:
    if ("instruction" in source.value) == ("instructions" in source.value):
        raise source.refusal(
            "a task has one `instruction`, or several as a list of `instructions`. Write one of the two"
        )
    single = entry.instruction is not None
    instructions = (entry.instruction,) if entry.instruction is not None else entry.instructions
    if not instructions:
        raise source.refusal("`instructions` must hold at least one text. Write one", "instructions")
    for i, text in enumerate(instructions):
        for field in ("{case}", "{options}"):
            if text.count(field) != 1:
                raise source.refusal(
                    f"an instruction holds `{field}` exactly once, found {text.count(field)} times. "
                    "Write where the case and the options go",
                    *(("instruction",) if single else ("instructions", i)),
                )
    return instructions


def _options(source: Located) -> tuple[Option, ...]:
    """Options from ``id: text`` pairs or from a list of ``{id, text}``."""
    if isinstance(source.value, Mapping):
        entries = [_pair(source, name) for name in source.value]
    elif isinstance(source.value, list | tuple):
        entries = [source.child(i) for i in range(len(source.value))]
    else:
        raise source.refusal(f"`options` must be a mapping, found {kind_of(source.value)}. Write `id: text` pairs")
    if len(entries) < 2:
        raise source.refusal(f"`options` must hold at least two options, found {len(entries)}. Add one")
    options = [checked(_Option, entry) for entry in entries]
    refuse_same_ids(((option.id, entry.where("id")) for option, entry in zip(options, entries, strict=True)), "option")
    return tuple(Option(option.id, option.text) for option in options)


def _pair(source: Located, name: str) -> Located:
    def place(loc: Loc, key: bool) -> str:
        return source.where(name, key=loc == ("id",))

    return Located({"id": name, "text": source.value[name]}, place)


def _letters(given: tuple[str, ...] | None, options: tuple[Option, ...], source: Located) -> tuple[str, ...]:
    n = len(options)
    letters = given if given is not None else tuple(string.ascii_uppercase[:n])
    if len(letters) != n:
        raise source.refusal(
            f"there must be one letter for each option, found {len(letters)} for {n} options. Write {n} `letters`",
            "letters",
        )
    ids = [option.id for option in options]
    for i, letter in enumerate(letters):
        if letter.casefold() in [earlier.casefold() for earlier in letters[:i]]:
            raise source.refusal(f"two letters read alike: {letter!r}. Letters must differ, also in case", "letters", i)
        if letter in ids and ids[i] != letter:
            raise source.refusal(
                f"the letter {letter!r} stands for another option than the one with id {letter!r}. "
                "Rename the option ids, or give each the letter of its own name",
                "letters",
            )
    return letters
