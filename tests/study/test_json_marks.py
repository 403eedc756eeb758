from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe.study.json_marks import read_jsonl
from probe.values import StudyError

VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
GOOD = '{"id": "a"}'


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.text(), VALUE, max_size=4), min_size=1, max_size=5), st.booleans())
def test_random_json_lines_read_back(tmp_path: Path, objects: list[dict[str, object]], ascii_only: bool) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes("".join(json.dumps(o, ensure_ascii=ascii_only) + "\n" for o in objects).encode("utf-8"))
    assert [line.value for line in read_jsonl(path)] == objects


@given(
    data=st.data(), mapping=st.dictionaries(st.text(), VALUE, min_size=1, max_size=4), indent=st.sampled_from([" ", ""])
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_column_of_a_part_is_where_its_text_starts(
    tmp_path: Path, data: st.DataObject, mapping: dict[str, object], indent: str
) -> None:
    line = json.dumps(mapping, separators=("," + indent, ":" + indent), ensure_ascii=False)
    path = tmp_path / "f.jsonl"
    path.write_bytes((GOOD + "\n" + line).encode())
    _, located = read_jsonl(path)
    part: object = located.value
    loc: list[str | int] = []
    while isinstance(part, dict | list) and part:
        step = data.draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
        part = part[step]
        loc.append(step)
    name, number, column = located.where(*loc).rsplit(":", 2)
    assert (name, number) == (str(path), "2")
    assert json.JSONDecoder().raw_decode(line, int(column) - 1)[0] == part
    if isinstance(loc[-1], str):
        column = located.where(*loc, key=True).rsplit(":", 1)[1]
        assert json.JSONDecoder().raw_decode(line, int(column) - 1)[0] == loc[-1]


@pytest.mark.parametrize(
    ("line", "column", "words"),
    [
        ('{"id": "b"', 11, "Expecting ',' delimiter"),
        ('{"id": "b",}', 12, "Each line is one whole JSON object"),
        ("{'id': 'b'}", 2, "Expecting property name"),
        ('{"id": "b"} {"id": "c"}', 13, "Extra data"),
        ('["b"]', 1, "a line must be one JSON object, found a list"),
        ("", 1, "the line is empty. Delete it"),
        ("  ", 1, "the line is empty. Delete it"),
        ('{"id": "b", "id": "c"}', 13, "the key 'id' stands twice"),
        ('{"id": "b", "metadata": {"x": 1, "id": 2, "x": 3}}', 43, "the key 'x' stands twice"),
        ('{"id": ' + "[" * 100_000, 1, "nested too deeply"),
        ('{"id": ' + "9" * 5000 + "}", 1, "a number cannot be read"),
        ('{"id": "a\tb"}', 10, "Invalid control character"),
    ],
)
def test_a_broken_line_is_refused_at_its_place_and_the_others_are_read(
    tmp_path: Path, line: str, column: int, words: str
) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{GOOD}\n", encoding="utf-8")
    with pytest.raises(StudyError) as caught:
        list(read_jsonl(path))
    assert str(caught.value).startswith(f"{path}:2:{column}: "), str(caught.value)
    assert words in str(caught.value)
    path.write_text(f"{GOOD}\n{GOOD}\n", encoding="utf-8")
    assert len(list(read_jsonl(path))) == 2


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"id": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert [line.value for line in read_jsonl(path)] == [{"id": "a\u2028b\x85c"}]
