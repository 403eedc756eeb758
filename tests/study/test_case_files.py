from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe import organism
from probe.study.case_files import case_sample, read_cases
from probe.study.json_marks import read_jsonl
from probe.study.located import in_memory
from probe.values import Case, Option, Task

TASK = Task("referral", ("{case} {options}",), (Option("wait", "w"), Option("refer", "r")), ("A", "B"), "refer")
GOOD = '{"id": "c1", "input": "A cough.", "target": "wait"}\n'

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
CASES = st.builds(
    Case,
    id=st.uuids().map(str),
    input=TEXTS.filter(str.strip),
    target=st.sampled_from(TASK.option_ids),
    stratum=st.just("") | NAMES,
    family=NAMES,
    choices=st.none() | st.tuples(NAMES, NAMES),
    metadata=st.dictionaries(st.text("0123456789_"), VALUES, max_size=3),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CASES, min_size=1, max_size=5), st.booleans())
def test_random_cases_read_back_equal_from_jsonl(tmp_path: Path, cases: list[Case], ascii_only: bool) -> None:
    path = tmp_path / "cases.jsonl"
    lines = [json.dumps(case_sample(case), ensure_ascii=ascii_only) + "\n" for case in cases]
    path.write_bytes("".join(lines).encode())
    read = read_cases(read_jsonl(path), TASK)
    assert read == tuple(cases)
    assert [dict(case.metadata) for case in read] == [dict(case.metadata) for case in cases]


def test_built_in_cases_read_back_with_their_planted_facts(tmp_path: Path) -> None:
    cases = organism.held_out_cases(20)
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps(case_sample(case)) + "\n" for case in cases))
    read = read_cases(read_jsonl(path), organism.triage_task())
    assert read == cases
    assert [organism.facts_of(case) for case in read] == [organism.facts_of(case) for case in cases]
    assert None not in [organism.facts_of(case) for case in read]


def test_ids_may_be_numbers_targets_may_be_letters_and_a_family_defaults_to_the_case() -> None:
    samples = [
        {"id": 7, "input": " A cough.\n", "target": "B"},
        {"id": "x", "input": "A", "target": "wait", "metadata": {"family": 3, "stratum": "s", "age": 4}},
    ]
    cases = read_cases([in_memory(sample, "case") for sample in samples], TASK)
    assert cases == (Case("7", " A cough.\n", "refer", family="7"), Case("x", "A", "wait", "s", family="3"))
    assert cases[1].metadata == {"age": 4}


@pytest.mark.parametrize(
    ("line", "column", "words", "mended"),
    [
        ('{"id": "c2", "input": "x", "target": "C"}', 38, "'C' is no option of the task 'referral'", '"C"->"B"'),
        ('{"id": "c2", "input": "x", "target": "C"}', 38, "wait (letter A), refer (letter B)", '"C"->"refer"'),
        ('{"id": "c2", "input": "x", "target": 0}', 38, "Put it in quotes", '0->"A"'),
        ('{"id": "c2", "input": "x", "target": ["A"]}', 38, "must be text, found a list", '["A"]->"A"'),
        ('{"id": "c2", "input": "x"}', 1, "the key 'target' is missing", '"x"->"x", "target": "A"'),
        ('{"id": "c2", "inptu": "x", "target": "A"}', 14, "The nearest known key is 'input'", "inptu->input"),
        ('{"id": "c2", "input": "", "target": "A"}', 23, "`input` must not be empty", '""->"x"'),
        ('{"id": "c2", "input": [{"role": "user"}], "target": "A"}', 23, "found a list", '[{"role": "user"}]->"x"'),
        ('{"id": "c2", "input": "x\\u0000", "target": "A"}', 23, "U+0000 at character 2", "\\u0000->"),
        ('{"id": "c2", "input": "\\ud800", "target": "A"}', 23, "U+D800 at character 1", "\\ud800->x"),
        ('{"id": "", "input": "x", "target": "A"}', 8, "`id` must not be empty", '""->"c2"'),
        ('{"id": "c\\u0007", "input": "x", "target": "A"}', 8, "U+0007 at character 2", "\\u0007->2"),
        ('{"id": null, "input": "x", "target": "A"}', 8, "found nothing (null)", "null->2"),
        ('{"id": true, "input": "x", "target": "A"}', 8, "found the truth value true", "true->2"),
        ('{"id": "c1", "input": "x", "target": "A"}', 8, "two cases have the id 'c1' (the first at ", "c1->c2"),
        ('{"id": "C1", "input": "x", "target": "A"}', 8, "differs from 'c1' only in case", "C1->C2"),
        ('{"id": "c2", "input": "x", "target": "A", "choices": ["a"]}', 54, "found 1 for 2", '"a"->"a", "b"'),
        ('{"id": "c2", "input": "x", "target": "A", "choices": ["a", "b\\n"]}', 60, "U+000A", "\\n->"),
        ('{"id": "c2", "input": "x", "target": "A", "choices": "ab"}', 54, "must be a list", '"ab"->["a", "b"]'),
        ('{"id": "c2", "input": "x", "target": "A", "metadata": []}', 55, "must be a mapping", "[]->{}"),
        (
            '{"id": "c2", "input": "x", "target": "A", "metadata": {"straum": "s"}}',
            56,
            "nearly 'stratum'",
            "straum->stratum",
        ),
        (
            '{"id": "c2", "input": "x", "target": "A", "metadata": {"Family": 1}}',
            56,
            "nearly 'family'",
            "Family->family",
        ),
        (
            '{"id": "c2", "input": "x", "target": "A", "metadata": {"stratum": null}}',
            67,
            "`stratum` is empty",
            "null->1",
        ),
        ('{"id": "c2", "input": "x", "target": "A", "metadata": {"stratum": 1}}', 67, "Put it in quotes", '1->"1"'),
        ('{"id": "c2", "input": "x", "target": "A", "metadata": {"family": ""}}', 66, "must not be empty", '""->2'),
        (
            '{"id": "c2", "input": "x", "target": "A", "metadata": {"k": NaN}}',
            55,
            "cannot be written as JSON",
            "NaN->1",
        ),
        ('{"id": "c2", "input": "x", "target": "A", "metadata": {"k\\ud800": 1}}', 55, "as JSON", "\\ud800->"),
        ('{"id": "c2", "input": "x", "target": "A", "metadata": {"k": "\\ud800"}}', 55, "as JSON", "\\ud800->"),
        ('{"id": "c2", "input": "x", "target": "A"', 41, "this is not valid JSON", '"A"->"A"}'),
        ('{"id": "c2", "input": "x", "target": "A"}\n', 1, "the line is empty", "}\n->}"),
    ],
)
def test_a_broken_case_is_refused_at_its_place_and_the_mended_one_loads(
    refused: Callable[..., None], line: str, column: int, words: str, mended: str
) -> None:
    old, new = mended.split("->", 1)
    assert old in line
    fixed = line.replace(old, new)
    if words == "`stratum` is empty":
        fixed = line.replace("null", '"s"')
    number = 3 if line.endswith("\n") else 2
    refused("cases", GOOD + line + "\n", f"{number}:{column}", words, GOOD + fixed + "\n")


def test_a_doubled_id_shows_both_lines(refused: Callable[..., None], tmp_path: Path) -> None:
    line = '{{"id": "{}", "input": "x", "target": "A"}}\n'
    text = GOOD + line.format("a") + line.format("b") + line.format("A")
    first = f"(the first at {tmp_path / 'cases.jsonl'}:2:8)"
    refused("cases", text, "4:8", first, text.replace('"A", "input"', '"c", "input"'))


def test_a_text_of_ten_megabytes_is_refused_and_one_of_a_megabyte_is_read(refused: Callable[..., None]) -> None:
    line = '{{"id": "c2", "input": "{}", "target": "A"}}\n'
    words = "`input` must have at most 1,000,000 characters, found 10,000,000"
    refused("cases", GOOD + line.format("x" * 10_000_000), "2:23", words, GOOD + line.format("x" * 1_000_000))
