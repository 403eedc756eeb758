"""A task may say how its answers are read, and says it in the study's file."""

from __future__ import annotations

import pytest

from probe.study.located import in_memory
from probe.study.parser_files import parser_entry, read_parser
from probe.study.task_files import read_task, task_entry
from probe.values import DEFAULT_PARSER, ParserSettings, Reasoning, StudyError

TASK = {
    "id": "t",
    "instruction": "{case} {options}",
    "options": {"home": "stay home", "clinic": "see a doctor"},
}
OWN = ParserSettings(
    statements=("verdict {letter}",),
    reasoning=(Reasoning("<a>", "</a>"),),
    refusals=("beyond my remit",),
    option_texts=False,
    languages=("en", "de"),
)


def test_settings_come_back_from_their_mapping_and_from_the_task_that_holds_them() -> None:
    assert read_parser(in_memory(parser_entry(OWN), "parser")) == OWN
    assert read_parser(in_memory({}, "parser")) == DEFAULT_PARSER
    task = read_task(in_memory({**TASK, "parser": parser_entry(OWN)}, "task"))
    assert task.parser == OWN
    assert read_task(in_memory(task_entry(task), "task")) == task
    plain = read_task(in_memory(TASK, "task"))
    assert plain.parser == DEFAULT_PARSER
    assert "parser" not in task_entry(plain)


def test_a_mistake_in_a_task_is_named_at_its_place() -> None:
    with pytest.raises(StudyError, match=r"task at parser\.statements\[0\]: `statements` must hold \{letter\} once"):
        read_task(in_memory({**TASK, "parser": {"statements": ["verdict"]}}, "task"))
    with pytest.raises(StudyError, match=r"task at parser\.reasoning\[0\]\.open: `open` must be a regular expression"):
        read_task(in_memory({**TASK, "parser": {"reasoning": [{"open": "(", "close": ")"}]}}, "task"))
    with pytest.raises(StudyError, match=r"`reasoning` must be a list"):
        read_task(in_memory({**TASK, "parser": {"reasoning": 3}}, "task"))
