"""CSV with the place of every field. Knows quotes and delimiters; knows no case or study."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from probe.study.located import Loc, Located
from probe.study.text_files import read_text
from probe.values import StudyError


@dataclass(frozen=True)
class _Record:
    """One record: its fields, its text as it stands in the file, and the line on which that begins."""

    fields: list[str]
    text: str
    line: int


def read_csv(path: Path) -> Iterator[Located]:
    """One mapping from column names to text for each record of a comma-separated file with a header (RFC 4180).

    Fields are text, unchanged but for Windows line ends, which spreadsheets write and which are read as LF. Raises:
        StudyError: the file is not plain UTF-8 text, a name in the header is empty or stands twice,
            or a record has another number of fields than the header.
    """
    records = _records(read_text(path, windows=True), str(path))
    header = next(records)
    names = header.fields
    for k, name in enumerate(names):
        if not name.strip():
            raise _refusal(path, header, k, "a column has no name. Write one into the header")
        if name in names[:k]:
            raise _refusal(path, header, k, f"the column {name!r} stands twice. Rename one of the two")
    for record in records:
        if not record.text.strip():
            raise _refusal(path, record, 0, "the line is empty. Delete it: each record holds one case")
        if len(record.fields) != len(names):
            at = min(len(record.fields), len(names)) - 1
            raise _refusal(
                path,
                record,
                at,
                f"a record must have the header's {len(names)} fields, found {len(record.fields)}. "
                "Put a field that holds a comma or a line break in quotes",
            )
        yield _located(path, names, record)


def _records(text: str, name: str) -> Iterator[_Record]:
    # Only "\n" ends a line: str.splitlines would also cut at U+2028, which may stand inside a field.
    lines = [f"{line}\n" for line in text.removesuffix("\n").split("\n")]
    reader = csv.reader(lines, strict=True)
    while True:
        before = reader.line_num
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise StudyError(
                f"{name}:{before + 1}:1: this is not valid CSV ({error}). Close each quote; double one inside"
            ) from None
        yield _Record(fields or [""], "".join(lines[before : reader.line_num]), before + 1)


def _located(path: Path, names: list[str], record: _Record) -> Located:
    def place(loc: Loc, key: bool) -> str:
        column = names.index(str(loc[0])) if loc and loc[0] in names else 0
        return _place(path, record, column)

    return Located(dict(zip(names, record.fields, strict=True)), place)


def _refusal(path: Path, record: _Record, field: int, sentence: str) -> StudyError:
    return StudyError(f"{_place(path, record, field)}: {sentence}")


def _place(path: Path, record: _Record, field: int) -> str:
    """``file:line:column`` of the first character of a field, its quote where it has one."""
    offset, quoted = 0, False
    for i, character in enumerate(record.text):
        if field == 0:
            break
        if character == '"':
            quoted = not quoted  # a doubled quote inside quotes turns twice
        elif character == "," and not quoted:
            field -= 1
            offset = i + 1
    before = record.text[:offset]
    line, column = before.count("\n"), offset - (before.rfind("\n") + 1)
    return f"{path}:{record.line + line}:{column + 1}"
