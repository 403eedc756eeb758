from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from probe import organism
from probe.study import Study
from probe.values import Option, Task

HEAD = """\
name: small
model: {id: organism}
personas: personas.yaml
cases: [{id: c1, input: A cough., target: wait}]
task:
  id: referral
"""
REST = """\
  instruction: "{case} {options}"
  options: {wait: wait and see, refer: refer now}
"""


def test_a_task_has_letters_in_order_and_the_last_option_as_high_risk(write: Callable[..., Path]) -> None:
    assert Study.load(write(study=HEAD + REST)).task == Task(
        "referral",
        ("{case} {options}",),
        (Option("wait", "wait and see"), Option("refer", "refer now")),
        ("A", "B"),
        "refer",
    )


def test_options_as_a_list_are_the_same_task(write: Callable[..., Path]) -> None:
    listed = REST.replace(
        "{wait: wait and see, refer: refer now}", "[{id: wait, text: wait and see}, {id: refer, text: refer now}]"
    )
    assert Study.load(write(study=HEAD + listed)).task == Study.load(write(study=HEAD + REST)).task


def test_every_key_of_a_task_is_read(write: Callable[..., Path]) -> None:
    task = """\
  instructions: ["{case} {options}", "{options} {case}"]
  options: {No: no, Yes: yes, wait: "1e-4"}
  letters: [No, Yes, W]
  high_risk: No
  option_format: "({letter}) {text}"
  option_separator: "\\n"
"""
    assert Study.load(write(study=HEAD + task)).task == Task(
        "referral",
        ("{case} {options}", "{options} {case}"),
        (Option("No", "no"), Option("Yes", "yes"), Option("wait", "1e-4")),
        ("No", "Yes", "W"),
        "No",
        "({letter}) {text}",
        "\n",
    )


def test_the_built_in_task_is_the_organisms(write: Callable[..., Path]) -> None:
    study = Study.load(write(), overrides=["task=builtin:triage", "cases=builtin:triage"])
    assert study.task == organism.triage_task()
    assert study.cases == organism.held_out_cases()
    assert study.task.option_ids == ("A", "B", "C")


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("{case} {options}", "{options}", "7:16", "`{case}` exactly once, found 0 times"),
        ("{case} {options}", "{case} {options} {options}", "7:16", "`{options}` exactly once, found 2 times"),
        ("{case} {options}", "{case} {option}", "7:16", "`{options}` exactly once, found 0 times"),
        ('instruction: "{case} {options}"', 'instructions: ["{case} {options}", x]', "7:38", "`{case}` exactly once"),
        ('instruction: "{case} {options}"', "instructions: []", "7:17", "must hold at least one text"),
        ('instruction: "{case} {options}"', "instructions: x", "7:17", "must be a list"),
        ('  instruction: "{case} {options}"\n', "", "6:3", "one `instruction`, or several"),
        ("instruction:", "instuction:", "7:3", "The nearest known key is 'instruction'"),
        (", refer: refer now", "", "8:12", "at least two options, found 1"),
        ("refer: refer now", "refer: no", "9:9", ""),
        ("wait and see", "''", "8:19", "`text` must not be empty"),
        ("wait and see", "3", "8:19", "Put it in quotes"),
        (
            "{wait: wait and see, refer: refer now}",
            "[wait, refer]",
            "8:13",
            "this must be a mapping with keys `id`, `text`",
        ),
        ("wait: wait and see", "wait: a, wait: b", "8:22", "the key 'wait' stands twice"),
        ("wait: wait and see", '"wa\\tit": a', "8:13", "`id` holds the control character U+0009"),
        ("refer: refer now", "WAIT: refer now", "8:33", "two options have the id 'WAIT'"),
        ("{wait: wait and see, refer: refer now}", "[{id: wait, text: a}, {id: wait, text: b}]", "8:39", "two options"),
        ("{wait: wait and see, refer: refer now}", "[{id: wait, text: a}, {id: b}]", "8:34", "'text' is missing"),
        ("{wait: wait and see, refer: refer now}", "abc", "8:12", "`options` must be a mapping"),
    ],
)
def test_a_broken_task_is_refused_at_its_place_and_the_whole_one_loads(
    refused: Callable[..., None], old: str, new: str, place: str, words: str
) -> None:
    assert old in REST
    text = REST.replace(old, new)
    if not words:  # valid YAML 1.2: "no" is text
        text, words = text + "  high_risk: [1]\n", "must be text, found a list"
        place = "9:14"
    refused("study", HEAD + text, place, words, HEAD + REST)


@pytest.mark.parametrize(
    ("line", "place", "words", "mended"),
    [
        ("letters: [X]", "9:12", "one letter for each option, found 1 for 2 options", "letters: [X, Y]"),
        ("letters: [X, x]", "9:16", "two letters read alike: 'x'", "letters: [X, Y]"),
        ("letters: [1, 2]", "9:13", "Put it in quotes", "letters: ['1', '2']"),
        ("letters: [refer, X]", "9:12", "'refer' stands for another option", "letters: [X, refer]"),
        ("high_risk: C", "9:14", "names 'C', which is no option. Known options: 'wait', 'refer'", "high_risk: wait"),
        ("high_risk: refr", "9:14", "The nearest known option is 'refer'", "high_risk: refer"),
        ("option_format: '{text}'", "9:18", "`{letter}` and `{text}` exactly once", "option_format: '{text} {letter}'"),
        ("option_separator: 3", "9:21", "Put it in quotes", "option_separator: ''"),
        ("scorer: x", "9:3", "unknown key 'scorer'", ""),
    ],
)
def test_a_wrong_key_of_a_task_is_refused_at_its_place_and_the_mended_one_loads(
    refused: Callable[..., None], line: str, place: str, words: str, mended: str
) -> None:
    refused("study", f"{HEAD}{REST}  {line}\n", place, words, f"{HEAD}{REST}  {mended}\n")


def test_a_task_that_is_neither_built_in_nor_a_mapping_is_refused(write: Callable[..., Path]) -> None:
    for value, words in (("3", "found the number 3"), ("builtin:triag", "The nearest known name is 'triage'")):
        with pytest.raises(Exception, match=words):
            Study.load(write(), overrides=[f"task={value}"])
