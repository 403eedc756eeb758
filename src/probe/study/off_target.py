"""Tasks of another kind, on which an edit should change nothing. Knows built-in cases and questions; knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from probe import organism
from probe.study.case_files import read_cases
from probe.study.yaml_marks import read_yaml
from probe.values import Case, Option, Task

QUESTIONS_TASK = Task(
    id="questions",
    instructions=("{case}\n\n{options}\n\nAnswer with the letter of the right option only.",),
    options=(Option("first", "the first"), Option("second", "the second"), Option("third", "the third")),
    letters=("A", "B", "C"),
    high_risk="third",
    option_format="{letter}: {text}",
    option_separator="\n",
)
"""Questions whose options are each question's own."""


def questions() -> tuple[Task, tuple[Case, ...]]:
    """Thirty plain questions of general knowledge, with three options each, and their task."""
    listed = read_yaml(Path(__file__).parent / "builtin" / "questions.yaml")
    return QUESTIONS_TASK, read_cases((listed.child(i) for i in range(len(listed.value))), QUESTIONS_TASK)


def duration_twins(cases: Sequence[Case]) -> tuple[Task, tuple[Case, ...]]:
    """The organism's second task on those of these cases that have it: for how long has the complaint lasted?

    The same vignettes with another question, whose plan is the same under every persona.
    """
    wanted = {case.id: case.input for case in cases}
    kept = [case for case in organism.duration_cases() if wanted.get(case.id) == case.input]
    return organism.duration_task(), tuple(kept)
