"""Cases from tables: columns become the fields of Inspect's ``Sample``. Knows columns; knows no persona or prompt.

A record is a mapping from column names to plain values that knows its place, whatever file or data set it came from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainValidator

from probe.study.checked import CLOSED, Name, checked
from probe.study.located import Loc, Located, kind_of
from probe.values import StudyError
from probe.values.nearest import nearest

FACTORS = ("stratum", "family")
"""Fields that stand in a sample's metadata."""

REQUIRED = ("id", "input", "target")


def _columns(value: Any) -> Any:
    if isinstance(value, str) and value.strip():
        return value
    names = value if isinstance(value, list | tuple) else ()
    if len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"must name one column that holds lists, or at least two columns, one per option, found {kind_of(value)}"
        )
    return tuple(names)


@dataclass(frozen=True)
class FieldNames:
    """Which column holds which field of a sample; by default the column of the field's own name, where there is one.

    ``choices`` is one column of lists (in CSV: JSON lists), or one column for each option in the task's order. All
    other columns are kept in the metadata.
    """

    __pydantic_config__ = CLOSED

    id: Name | None = None
    input: Name | None = None
    target: Name | None = None
    choices: Annotated[str | tuple[str, ...] | None, PlainValidator(_columns)] = None
    stratum: Name | None = None
    family: Name | None = None


def samples_from(records: Iterable[Located], names: FieldNames, asked: Located) -> Iterator[Located]:
    """Each record as a sample; a message about a field names the place of its column.

    An empty field is a missing one, which CSV has no other way to write, but for id, input and target. Whole numbers
    become text where a sample has text. ``asked`` is the mapping of fields, for messages about it. Without a column of
    ids the records are numbered.

    Raises:
        StudyError: a column that ``fields`` names, or that a sample needs, is in no record; or a case has some of its
            options only.
    """
    found = list(records)
    if not found:
        return
    # Of all records, not of the first: a line of JSON may leave a field out.
    columns = list(dict.fromkeys(column for record in found for column in record.value))
    chosen = _chosen_columns(columns, names, asked, found[0])
    for number, record in enumerate(found, start=1):
        yield _sample(record, chosen, number)


def read_parquet(path: Path) -> Iterator[Located]:
    """One mapping for each row of a Parquet file; places are ``file row 3, column 'x'``.

    Raises:
        StudyError: the file cannot be read as Parquet, or a column stands twice.
    """
    import pyarrow.parquet  # late: a study on other cases does not need it
    from pyarrow import ArrowException

    try:
        names = pyarrow.parquet.read_schema(path).names
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise StudyError(f"{path}: the column {twice[0]!r} stands twice. Rename one of the two")
        table = pyarrow.parquet.read_table(path)
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise StudyError(f"{path}: this is not a Parquet file that can be read ({reason}). Save it again") from None
    return rows_of(table.to_pylist(), str(path))


def rows_of(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[Located]:
    """Rows of a source without lines, each with its number from 1 in its place."""
    for number, row in enumerate(rows, start=1):
        yield Located(dict(row), _place(name, number))


def _place(name: str, number: int) -> Any:
    def place(loc: Loc, key: bool) -> str:
        return f"{name} row {number}" + (f", column {loc[0]!r}" if loc else "")

    return place


def _chosen_columns(
    columns: list[str], names: FieldNames, asked: Located, first: Located
) -> dict[str, str | tuple[str, ...]]:
    chosen: dict[str, str | tuple[str, ...]] = {}
    for name in (field.name for field in fields(names)):
        given = getattr(names, name)
        wanted = given if given is not None else name
        for column in (wanted,) if isinstance(wanted, str) else wanted:
            if column not in columns and given is not None:
                raise asked.refusal(
                    f"`fields` takes {name} from the column {column!r}, which is not there. "
                    f"{nearest(column, columns, 'column')}",
                    name,
                )
        if given is not None or name in columns:
            chosen[name] = wanted
    for name in REQUIRED:
        if name not in chosen and name != "id":
            raise StudyError(
                f"{first.where()}: cases need the column {name!r}. {nearest(name, columns, 'column')}; "
                f"name it in the study file: `fields: {{{name}: COLUMN}}`"
            )
    return chosen


def _sample(record: Located, chosen: Mapping[str, str | tuple[str, ...]], number: int) -> Located:
    row = {name: value for name, value in record.value.items() if not _missing(value)}
    used = {column for wanted in chosen.values() for column in ((wanted,) if isinstance(wanted, str) else wanted)}
    sample: dict[str, Any] = {} if "id" in chosen else {"id": str(number)}
    for name in REQUIRED:
        if name in chosen:
            column = str(chosen[name])
            if column not in record.value:
                raise record.refusal(f"the column {column!r}, which holds {name}, is missing here. Add it")
            sample[name] = _as_text(record.value[column])
    if "choices" in chosen and (found := _choices(record, chosen["choices"], row)) is not None:
        sample["choices"] = found
    factors = {name: _as_text(row[str(chosen[name])]) for name in FACTORS if name in chosen and chosen[name] in row}
    sample["metadata"] = factors | {name: value for name, value in row.items() if name not in used}

    def place(loc: Loc, key: bool) -> str:
        named = loc[1:2] if loc[:1] == ("metadata",) else loc[:1]
        for name in map(str, named):
            column = chosen.get(name, name)
            first = column if isinstance(column, str) else column[0]
            if first in record.value:
                return record.where(first)
        return record.where()

    return Located(sample, place)


def _choices(record: Located, wanted: str | tuple[str, ...], row: Mapping[str, Any]) -> list[Any] | None:
    if not isinstance(wanted, str):
        empty = [column for column in wanted if column not in row]
        if len(empty) == len(wanted):
            return None
        if empty:  # leaving it out would move the options behind it up
            raise record.refusal(
                f"the column {empty[0]!r} holds an option's text and is empty here. Fill all of {', '.join(wanted)}, "
                "or none where a case has the task's own texts",
                empty[0],
            )
        return [_as_text(row[column]) for column in wanted]
    value = row.get(wanted)
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise record.refusal(
            f'`choices` must be a JSON list of texts, found {kind_of(value)}. Write ["...", "..."], or name one column '
            "for each option: `fields: {choices: [a, b, c]}`",
            wanted,
        )
    return found


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _as_text(value: Any) -> Any:
    """A whole number as text: in a table ``2`` may be the name of an option, or a case's id."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return str(int(value)) if whole and not isinstance(value, bool) else value


def field_names(source: Located) -> tuple[FieldNames, Located]:
    """The ``fields`` of a mapping that names a table, and the mapping itself."""
    if source.value.get("fields") is None:
        return FieldNames(), source
    asked = source.child("fields")
    return checked(FieldNames, asked), asked
