"""JSON lines with the place of every key and value. Knows JSON; knows no case or study."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.study.located import Loc, Located, kind_of
from probe.study.text_files import read_text
from probe.values import StudyError

_DECODER = json.JSONDecoder()


def read_jsonl(path: Path) -> Iterator[Located]:
    """One JSON object for each line of a file, in file order.

    Raises:
        StudyError: the file is not plain UTF-8 text, or a line is not one JSON object with every key once.
    """
    # Only "\n" ends a line: str.splitlines would also cut at U+2028, which may stand inside JSON text.
    lines = read_text(path).removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        yield _parse_line(line, number, str(path))


@dataclass(frozen=True)
class _Doubled:
    """Stands for an object in which one key occurs twice."""

    key: str


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Doubled:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            return _Doubled(key)
        mapping[key] = value
    return mapping


def _parse_line(line: str, number: int, name: str) -> Located:
    def at(column: int, sentence: str) -> StudyError:
        return StudyError(f"{name}:{number}:{column}: {sentence}")

    if not line.strip():
        raise at(1, "the line is empty. Delete it: each line holds one case")
    try:
        value = json.loads(line, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        raise at(error.colno, f"this is not valid JSON ({error.msg}). Each line is one whole JSON object") from None
    except RecursionError:
        raise at(1, "the line is nested too deeply. Flatten its metadata") from None
    except ValueError as error:  # an integer with more digits than Python converts
        raise at(1, f"a number cannot be read ({error}). Put it in quotes") from None
    doubled = _find_doubled(value)
    if doubled is not None:
        column = _column(line, doubled, key=True)
        raise at(column, f"the key {doubled[-1]!r} stands twice. Keep one of the two")
    if not isinstance(value, dict):
        raise at(1, f"a line must be one JSON object, found {kind_of(value)}. Write one object per line (JSONL)")
    return Located(value, lambda loc, key: f"{name}:{number}:{_column(line, loc, key)}")


def _find_doubled(value: Any) -> Loc | None:
    pending: list[tuple[Loc, Any]] = [((), value)]
    while pending:
        loc, part = pending.pop()
        if isinstance(part, _Doubled):
            return (*loc, part.key)
        if isinstance(part, dict):
            pending += [((*loc, key), item) for key, item in part.items()]
        elif isinstance(part, list):
            pending += [((*loc, i), item) for i, item in enumerate(part)]
    return None


def _column(line: str, loc: Loc, key: bool) -> int:
    """Column, from 1, of the part at ``loc``, or of the deepest ancestor that is there."""
    start = _skip_space(line, 0)
    key_at = start
    for part in loc:
        found = _find_member(line, start, part)
        if found is None:
            return start + 1
        key_at, start = found
    return (key_at if key else start) + 1


def _find_member(line: str, start: int, part: str | int) -> tuple[int, int] | None:
    """Offsets of the key and of the value of one member; of a key that stands twice, the last."""
    if line[start] not in "{[":
        return None
    found = None
    index = 0
    i = _skip_space(line, start + 1)
    while line[i] not in "}]":
        name: str | int = index
        key_at = i
        if line[start] == "{":
            name, i = _DECODER.raw_decode(line, i)
            i = _skip_space(line, _skip_space(line, i) + 1)  # over the colon
        if name == part:
            found = (key_at, i)
        _, i = _DECODER.raw_decode(line, i)
        i = _skip_space(line, i)
        if line[i] == ",":
            i = _skip_space(line, i + 1)
        index += 1
    return found


def _skip_space(line: str, i: int) -> int:
    while i < len(line) and line[i] in " \t":
        i += 1
    return i
