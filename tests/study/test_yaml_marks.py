from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from probe.study.yaml_marks import parse_yaml
from probe.values import StudyError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[Yes, No, on, off, y, N]", ["Yes", "No", "on", "off", "y", "N"]),
        ("[true, False, TRUE]", [True, False, True]),
        ("[1e-4, 1.5E3, .5, -2., 1e2]", [1e-4, 1500.0, 0.5, -2.0, 100.0]),
        ("[010, 0o10, 0xff, -3, +4]", [10, 8, 255, -3, 4]),
        ("[2024-01-01, 12:30, 1_000, 1.2.3]", ["2024-01-01", "12:30", "1_000", "1.2.3"]),
        ("[~, null, Null, none, '']", [None, None, None, "none", ""]),
        ("{a: , b: x}", {"a": None, "b": "x"}),
        ("[.inf, -.INF]", [math.inf, -math.inf]),
        ("{<<: x}", {"<<": "x"}),
        ("[&a x, *a]", ["x", "x"]),
        ("[!!str 5, !!int '5', =]", ["5", 5, "="]),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    read = parse_yaml(text, "f").value
    assert read == value
    assert repr(read) == repr(value)  # 1 == True == 1.0, their texts differ


@given(PLAIN)
def test_what_a_safe_dumper_writes_as_plain_values_reads_back(value: object) -> None:
    # Quoted text and explicit numbers, so that YAML 1.1 and 1.2 agree.
    text = yaml.dump(value, Dumper=yaml.SafeDumper, default_style='"', allow_unicode=False, sort_keys=False)
    assert repr(parse_yaml(text, "f").value) == repr(value)


@given(st.text() | st.text(alphabet="{}[]:,&*!|>%@`'\"#-?\n ab\\U0xF~<.", max_size=60))
def test_any_text_is_read_or_refused_in_one_sentence_with_a_place(text: str) -> None:
    try:
        parse_yaml(text, "f")
    except StudyError as error:
        assert str(error).startswith("f:")
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: [1, 2", "1:4", "Close the quote or bracket that opens here"),
        ("a: b: c", "1:5", "mapping values are not allowed here"),
        ("a:\n\tb: 1", "2:1", "Indent with spaces, not tabs"),
        ("a: 'x\nb: 2\n", "1:4", "Close the quote or bracket that opens here"),
        ("a: 1\n---\nb: 2", "2:1", "remove the second `---`"),
        ("a: 1\nb: 2\na: 3", "3:1", "the key 'a' stands twice (first on line 1)"),
        ("x:\n  a: 1\n  a: 2", "3:3", "the key 'a' stands twice (first on line 2)"),
        ("1: x", "1:1", "a key must be text, found '1'"),
        ("{a: {[b]: c}}", "1:6", "a key must be text, found a list or mapping"),
        ("a: !!python/object/apply:os.system [ls]", "1:4", "the tag '!!python/object/apply:os.system' is not allowed"),
        ("a: !secret x", "1:4", "the tag '!secret' is not allowed"),
        ("a: !!binary aGk=", "1:4", "the tag '!!binary' is not allowed"),
        ("a: !!int x", "1:4", "'x' cannot be read as int"),
        ("a: !!bool yes", "1:4", "'yes' cannot be read as bool"),
        ("a: &a [*a]", "1:4", "an alias stands inside what it names"),
        ("a: *b", "1:4", "undefined alias"),
        ("a: \x07", "1:4", "U+0007 may not stand in YAML"),
        ("# only words", "1:1", "empty but for comments"),
        ("a: " + "[" * 1000, "1:53", "nested too deeply"),
        ('a: "\\UFFFFFFFF"', "1:7", "an escape stands for no character"),
    ],
)
def test_a_broken_document_is_refused_at_its_place(text: str, place: str, words: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse_yaml(text, "f.yaml")
    assert str(caught.value).startswith(f"f.yaml:{place}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_that_multiply_are_refused_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probe.study.yaml_marks.MAX_NODES", 5_000)
    layers = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    layers += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(StudyError, match="unfold without end"):
        parse_yaml("\n".join(layers), "f")
    assert len(parse_yaml("\n".join(layers[:3]), "f").value["a2"]) == 10


def test_python_objects_are_never_built(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    text = f"a: !!python/object/apply:os.mkdir ['{sentinel}']"
    with pytest.raises(StudyError, match="not allowed"):
        parse_yaml(text, "f")
    assert not sentinel.exists()
    yaml.unsafe_load(text)  # the control: the text does run code where it is allowed to
    assert sentinel.exists()


def test_every_part_knows_its_place() -> None:
    document = parse_yaml("a:\n  - b: 1\n    c: [x,\n        y]\n", "f")
    assert document.where() == "f:1:1"
    assert document.where("a") == "f:2:3"
    assert document.where("a", key=True) == "f:1:1"
    assert document.where("a", 0, "b") == "f:2:8"
    assert document.child("a", 0).where("c", 1) == "f:4:9"
    assert document.where("a", 0, "missing", "deeper") == "f:2:5"  # the nearest ancestor that is written
