"""Cases from CSV, Parquet and data sets of the hub are those of JSONL, and refused at their places as these are."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.study import Study
from probe.study.csv_marks import read_csv
from probe.values import Case, StudyError

HEADER = "id,input,target,stratum,family,acuity\n"
CSV = HEADER + 'c1,A cough.,wait,calm,cold,2\nc2,"A fall, ""hard"".\nNo pain.",refer,acute,,\n'
EXPECTED = (
    Case("c1", "A cough.", "wait", "calm", "cold", metadata={"acuity": "2"}),
    Case("c2", 'A fall, "hard".\nNo pain.', "refer", "acute", "c2"),
)


@pytest.fixture
def load(write: Callable[..., Path]) -> Callable[..., tuple[Case, ...]]:
    """The cases of a file beside the small study; ``setting`` is what the study says of them."""

    def load(name: str, content: str | bytes, setting: str = "") -> tuple[Case, ...]:
        path = write()
        (path.parent / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return Study.load(path, overrides=[f"cases={setting or name}"]).cases

    return load


def test_a_csv_gives_the_cases_of_the_same_jsonl_with_other_columns_in_the_metadata(load: Callable[..., Any]) -> None:
    cases = load("cases.csv", CSV)
    assert cases == EXPECTED
    assert [case.metadata for case in cases] == [{"acuity": "2"}, {}]
    lines = [
        {"id": c.id, "input": c.input, "target": c.target, "metadata": {"stratum": c.stratum, "family": c.family}}
        for c in EXPECTED
    ]
    assert load("same.jsonl", "".join(json.dumps(line) + "\n" for line in lines)) == cases


def test_columns_of_other_names_are_mapped_and_an_unnamed_family_is_the_case_itself(load: Callable[..., Any]) -> None:
    text = (
        "no,question,gold,category,template,a,b\n7,A cough.,B,calm,t1,rest,see someone\n8,A fall.,A,acute,t1,rest,go\n"
    )
    fields = "{id: no, input: question, target: gold, stratum: category, choices: [a, b]}"
    cases = load("q.csv", text, f"{{path: q.csv, fields: {fields}}}")
    assert cases == (
        Case("7", "A cough.", "refer", "calm", "7", ("rest", "see someone")),
        Case("8", "A fall.", "wait", "acute", "8", ("rest", "go")),
    )
    assert [case.metadata for case in cases] == [{"template": "t1"}] * 2
    (lettered,) = load("q.csv", 'id,input,target,choices\n1,x,wait,"[""p"", ""q""]"\n')
    assert lettered.choices == ("p", "q")
    flat = '{"n": 1, "q": "A cough.", "gold": "wait", "kind": "calm"}\n'
    mapped = "{path: flat.jsonl, fields: {id: n, input: q, target: gold, stratum: kind}}"
    assert load("flat.jsonl", flat, mapped) == (Case("1", "A cough.", "wait", "calm", "1"),)


def test_cases_without_a_column_of_ids_are_numbered(load: Callable[..., Any]) -> None:
    assert [case.id for case in load("n.csv", "input,target\nx,wait\ny,refer\n")] == ["1", "2"]


def test_a_flat_record_that_leaves_a_field_out_decides_nothing_for_the_others(load: Callable[..., Any]) -> None:
    mapped = "{path: flat.jsonl, fields: {input: q, target: gold}}"
    bare, full = {"id": "a", "q": "x", "gold": "wait"}, {"id": "b", "q": "y", "gold": "refer", "choices": ["p", "q"]}

    def loaded(*records: dict[str, Any]) -> tuple[Case, ...]:
        return load("flat.jsonl", "".join(json.dumps(record) + "\n" for record in records), mapped)

    assert loaded(bare, full) == loaded(full, bare)[::-1]
    assert [case.choices for case in loaded(bare, full)] == [None, ("p", "q")]
    for name, what in (("gold", "target"), ("id", "id"), ("q", "input")):
        lacking = {key: value for key, value in full.items() if key != name}
        with pytest.raises(StudyError, match=rf"flat.jsonl:2:1: the column '{name}', which holds {what}, is missing"):
            loaded(bare, lacking)


def test_an_empty_option_moves_no_other_option_up(load: Callable[..., Any]) -> None:
    setting = "{path: q.csv, fields: {choices: [a, b, c]}}"  # a column more than the task has options
    with pytest.raises(StudyError, match=r"q.csv:2:12: the column 'b' holds an option's text and is empty here"):
        load("q.csv", "id,input,target,a,b,c\n1,x,wait,p,,r\n", setting)
    (own,) = load("q.csv", "id,input,target,a,b,c\n1,x,wait,,,\n", setting)
    assert own.choices is None


@pytest.mark.parametrize(
    ("broken", "place", "words"),
    [
        (CSV + "c1,x,wait,calm,,\n", "5:1", "two cases have the id 'c1' (the first at "),
        (CSV.replace("cough.,wait", "cough.,wiat"), "2:13", "the target 'wiat' is no option of the task 'referral'"),
        (CSV.replace("A cough.", ""), "2:4", "`input` must not be empty"),
        (CSV.replace("c1", ""), "2:1", "`id` must not be empty"),
        (CSV.replace("A cough.", "  "), "2:4", "`input` must not be empty"),
        (CSV.replace("refer,acute", ",acute"), "4:11", "the target '' is no option"),
        (CSV.replace("refer,acute", "nought,acute"), "4:11", "the target 'nought' is no option"),
        (CSV.replace(",2\n", ",2,9\n"), "2:28", "must have the header's 6 fields, found 7"),
        (CSV.replace(",cold,2", ""), "2:18", "must have the header's 6 fields, found 4"),
        (CSV.replace("c2,", "\nc2,"), "3:1", "the line is empty"),
        (CSV.replace('pain."', "pain."), "3:1", "not valid CSV"),
        (CSV.replace('"A fall', 'A" fall'), "3:4", "must have the header's 6 fields, found 3"),
        (CSV.replace("family", "stratum"), "1:25", "the column 'stratum' stands twice"),
        (CSV.replace("family", ""), "1:25", "a column has no name"),
        (CSV.replace("input", "text"), "2:1", "cases need the column 'input'"),
        (CSV.replace("stratum", "stratm"), "2:18", "the metadata key 'stratm' is nearly 'stratum'"),
        ("\ufeff" + CSV, "1:1", "byte order mark"),
        (CSV.replace("cough", "co\rugh"), "2:8", "a carriage return"),
        (CSV.replace("cough", "co\0ugh"), "2:8", "a NUL byte"),
        (CSV.replace("cough", "c\u00f4ugh").encode("latin-1"), "2:7", "the byte 0xF4 is not UTF-8 text"),
        ("", "1:1", "the file is empty"),
    ],
)
def test_a_broken_csv_is_refused_at_its_place_and_the_sound_one_loads(
    load: Callable[..., Any], tmp_path: Path, broken: str | bytes, place: str, words: str
) -> None:
    with pytest.raises(StudyError) as caught:
        load("cases.csv", broken)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'cases.csv'}:{place}: "), message
    assert words in message
    assert "\n" not in message
    assert load("cases.csv", CSV) == EXPECTED


def test_windows_line_ends_of_a_csv_read_as_unix_ones(load: Callable[..., Any]) -> None:
    assert load("cases.csv", CSV.replace("\n", "\r\n")) == EXPECTED


def test_a_header_alone_has_no_case_and_a_column_that_is_not_there_is_named(load: Callable[..., Any]) -> None:
    with pytest.raises(StudyError, match="at least one case"):
        load("cases.csv", HEADER)
    with pytest.raises(
        StudyError, match=r"takes input from the column 'qestion', .* nearest known column is 'question'"
    ):
        load("q.csv", "question,target\nx,wait\n", "{path: q.csv, fields: {input: qestion}}")
    with pytest.raises(StudyError, match="must be a JSON list of texts"):
        load("q.csv", "input,target,choices\nx,wait,p;q\n")
    with pytest.raises(StudyError, match="at least two columns, one per option"):
        load("q.csv", "input,target,a\nx,wait,p\n", "{path: q.csv, fields: {choices: [a]}}")


FIELD = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.lists(FIELD, min_size=3, max_size=3).filter(any), min_size=1, max_size=4))
def test_every_field_is_found_where_it_stands(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *rows])
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    lines = buffer.getvalue().split("\n")
    for row, record in zip(rows, read_csv(path), strict=True):
        assert list(record.value.values()) == row
        for name, value in record.value.items():
            line, column = map(int, record.where(name).removeprefix(f"{path}:").split(":"))
            rest = "\n".join([lines[line - 1][column - 1 :], *lines[line:]])
            assert rest.startswith('"' + value.replace('"', '""') + '"')


def parquet(table: pd.DataFrame | pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.Table.from_pandas(table), buffer)
    return buffer.getvalue()


FRAME = pd.DataFrame(
    {
        "id": [1, 2],
        "input": ["A cough.", "A fall."],
        "target": ["wait", "B"],
        "stratum": ["calm", None],
        "choices": [["p", "q"], ["r", "s"]],
        "age": [61, 7],
        "score": [0.5, float("nan")],
    }
)


def test_a_parquet_file_gives_its_rows_with_lists_and_numbers_as_they_are(load: Callable[..., Any]) -> None:
    cases = load("cases.parquet", parquet(FRAME))
    assert cases == (
        Case("1", "A cough.", "wait", "calm", "1", ("p", "q")),
        Case("2", "A fall.", "refer", "", "2", ("r", "s")),
    )
    assert [case.metadata for case in cases] == [{"age": 61, "score": 0.5}, {"age": 7}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": ["wait", "whither"]}, "row 2, column 'target': the target 'whither'"),
        ({"id": [1, 1]}, "row 2, column 'id': two cases have the id '1' (the first at "),
        ({"choices": [["p", "q"], ["r"]]}, "row 2, column 'choices': `choices` must have one text for each option"),
        ({"age": [pd.Timestamp("2024-01-01")] * 2}, "row 1: the metadata cannot be written as JSON"),
        ({"input": ["x\0", "y"]}, "row 1, column 'input': `input` holds U+0000"),
        ({"target": ["wait", None]}, "row 2, column 'target': `target` must be text, found nothing (null)"),
        ({"input": [1.5, 2.5]}, "row 1, column 'input': `input` must be text, found the number 1.5"),
    ],
)
def test_a_broken_parquet_is_refused_at_its_row_and_column(
    load: Callable[..., Any], changes: dict[str, list[Any]], words: str
) -> None:
    with pytest.raises(StudyError) as caught:
        load("cases.parquet", parquet(FRAME.assign(**changes)))
    assert f"cases.parquet {words}" in str(caught.value)


def test_what_is_no_parquet_file_or_names_a_column_twice_is_refused(load: Callable[..., Any]) -> None:
    with pytest.raises(StudyError, match=r"cases\.parquet: this is not a Parquet file"):
        load("cases.parquet", CSV)
    twice = pa.table([["x"], ["wait"], ["y"]], names=["input", "target", "input"])
    with pytest.raises(StudyError, match="the column 'input' stands twice"):
        load("cases.parquet", parquet(twice))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as a local folder, which the library loads as it loads one of the hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "triage"
    data.mkdir()
    (data / "test.jsonl").write_text(
        '{"case_id": 1, "question": "A cough.", "gold": "wait", "category": "calm", "year": 2024}\n'
        '{"case_id": 2, "question": "A fall.", "gold": "refer", "category": "acute", "year": 2025}\n'
    )
    return data


FIELDS = "fields: {id: case_id, input: question, target: gold, stratum: category}"


def test_a_data_set_of_the_hub_gives_the_rows_of_its_split(folder: Path, write: Callable[..., Path]) -> None:
    cases = Study.load(write(), overrides=[f"cases={{hub: '{folder}', split: test, {FIELDS}}}"]).cases
    assert [(c.id, c.input, c.target, c.stratum, dict(c.metadata)) for c in cases] == [
        ("1", "A cough.", "wait", "calm", {"year": 2024}),
        ("2", "A fall.", "refer", "acute", {"year": 2025}),
    ]
    for wrong, words in (
        (f"{{hub: '{folder}', split: tset, {FIELDS}}}", "tset"),
        (f"{{hub: '{folder}-not', split: test, {FIELDS}}}", "cannot be loaded"),
        (f"{{hub: '{folder}', split: test, fields: {{input: questions}}}}", "nearest known column is 'question'"),
    ):
        with pytest.raises(StudyError, match=words) as caught:
            Study.load(write(), overrides=[f"cases={wrong}"])
        assert "\n" not in str(caught.value)


def test_class_labels_become_their_names_and_the_revision_is_passed_on(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, name: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((path, name, split, revision))
        rows = {"input": ["A cough.", "A fall."], "target": [0, 1]}
        features = {"input": datasets.Value("string"), "target": datasets.ClassLabel(names=["wait", "refer"])}
        return datasets.Dataset.from_dict(rows, features=datasets.Features(features))

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    setting = "{hub: org/name, config: en, split: test, revision: 1a2b3c}"
    cases = Study.load(write(), overrides=[f"cases={setting}"]).cases
    assert [(case.id, case.target) for case in cases] == [("1", "wait"), ("2", "refer")]
    assert asked == [("org/name", "en", "test", "1a2b3c")]


def test_without_the_library_one_line_names_the_command(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(StudyError, match=r'Install it: pip install "persona-probe\[hub\]"'):
        Study.load(write(), overrides=["cases={hub: org/name, split: test}"])
    assert Study.load(write()).cases
