"""Plain values into typed ones, one sentence for the first thing that is wrong. Knows pydantic; knows no single key."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar, cast, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Strict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from probe.study.located import Loc, Located, kind_of
from probe.values import StudyError
from probe.values.nearest import nearest

T = TypeVar("T")

CLOSED = ConfigDict(extra="forbid", revalidate_instances="always")
"""The pydantic configuration of every mapping in a study: an unknown key is an error."""

MAX_NAME = 200
MAX_TEXT = 1_000_000

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")  # NUL, and halves of surrogate pairs, which UTF-8 cannot write


def refuse_same_ids(ids_and_places: Iterable[tuple[str, str]], what: str) -> None:
    """Raise where two ids are equal, or look equal: the same after Unicode NFC and case folding."""
    first: dict[str, tuple[str, str]] = {}
    for name, place in ids_and_places:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if folded in first:
            other, other_place = first[folded]
            alike = "" if other == name else f", which differs from {other!r} only in case or Unicode form"
            raise StudyError(
                f"{place}: two {what}s have the id {name!r}{alike} (the first at {other_place}). Rename one of them"
            )
        first[folded] = name, place


def _line(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty. Write something")
    found = _CONTROL.search(text)
    if found:
        code, at = ord(found[0]), found.start() + 1
        raise ValueError(f"holds the control character U+{code:04X} at character {at}. Remove it")
    return text


def _name(name: str) -> str:
    if len(name) > MAX_NAME:
        raise ValueError(f"must have at most {MAX_NAME} characters, found {len(name)}. Shorten it")
    return _line(name)


def _text(text: str) -> str:
    if len(text) > MAX_TEXT:
        raise ValueError(f"must have at most {MAX_TEXT:,} characters, found {len(text):,}. Shorten it")
    found = _NO_TEXT.search(text)
    if found:
        code, at = ord(found[0]), found.start() + 1
        raise ValueError(f"holds U+{code:04X} at character {at}, which is no text. Remove it")
    return text


def _whole_number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Text = Annotated[str, Strict(), AfterValidator(_text)]
"""Text that a model may be shown, unchanged; it may be empty."""
Line = Annotated[Text, AfterValidator(_line)]
"""Text on one line: not empty, no control characters."""
Name = Annotated[Text, AfterValidator(_name)]
"""A line of at most 200 characters that names something, in any script: names never become paths."""
Id = Annotated[Name, BeforeValidator(_whole_number_as_text)]
"""A name that may be written as a whole number."""
Count = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, of which there must be one at least, and none twice."""
    if not values:
        raise ValueError("must name at least one. Leave the key out for the default")
    return different(values)


def different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, none of which may stand twice."""
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"names {value!r} twice. Remove one")
    return values


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checked(kind: type[T], source: Located) -> T:
    """The value of ``source`` as a ``kind`` (a dataclass).

    Raises:
        StudyError: the first broken rule, unknown keys before all others, at its place.
    """
    if not isinstance(source.value, Mapping | kind):
        raise source.refusal(f"this must be a mapping with keys {_listed(kind)}, found {kind_of(source.value)}")
    try:
        value: T = _adapter(cast(Any, kind)).validate_python(source.value)
    except ValidationError as error:
        raise _first_refusal(kind, source, error.errors()) from None
    return value


def _first_refusal(kind: type, source: Located, errors: list[ErrorDetails]) -> StudyError:
    unknown = [e for e in errors if e["type"] == "unexpected_keyword_argument"]
    missing = [e for e in errors if e["type"] == "missing"]
    others = [e for e in errors if e not in unknown and e not in missing]
    error = (unknown or others or missing)[0]
    loc: Loc = error["loc"]
    if error["type"] == "unexpected_keyword_argument":
        # A key that is not text has no near name; mappings built in Python can hold one.
        remedy = nearest(str(loc[-1]), _known_keys(kind, loc[:-1]), "key")
        return source.refusal(f"unknown key {loc[-1]!r}. {remedy}", *loc, key=True)
    if error["type"] == "missing":
        return source.refusal(f"the key {loc[-1]!r} is missing. Add it", *loc)
    if loc[-1:] == ("[key]",):  # pydantic's way to say that a key, not its value, breaks a rule
        return source.refusal(f"the key {loc[-2]!r} {_sentence(error)}", *loc[:-1], key=True)
    return source.refusal(f"{_named(loc)} {_sentence(error)}", *loc)


def _named(loc: Loc) -> str:
    keys = [part for part in loc if isinstance(part, str)]
    return f"`{keys[-1]}`" if keys else "this"


def _sentence(error: ErrorDetails) -> str:
    found = kind_of(error["input"])
    context = error.get("ctx", {})
    match error["type"]:
        case "value_error":
            return str(context["error"])
        case "string_type":
            quotes = isinstance(error["input"], int | float)  # truth values too
            return f"must be text, found {found}. {'Put it in quotes' if quotes else 'Write text'}"
        case "int_type":
            return f"must be a whole number, found {found}. Write digits only"
        case "bool_type":
            return f"must be true or false, found {found}. Only these two words are truth values"
        case "literal_error":
            return f"must be {context['expected']}, found {found}"
        case "greater_than_equal":
            return f"must be at least {context['ge']}, found {found}. Raise it"
        case "less_than_equal":
            return f"must be at most {context['le']}, found {found}. Lower it"
        case "tuple_type" | "list_type":
            return f"must be a list, found {found}. Put it in brackets: [...]"
        case "dict_type" | "mapping_type" | "dataclass_type":
            return f"must be a mapping, found {found}. Write `key: value` pairs under it"
        case _:
            return f"is not right: {error['msg']} (found {found})"


def _known_keys(kind: Any, loc: Loc) -> list[str]:
    for part in loc:
        kind = get_type_hints(kind)[str(part)]
    assert is_dataclass(kind)
    return [field.name for field in fields(kind)]


def _listed(kind: Any) -> str:
    return ", ".join(f"`{name}`" for name in _known_keys(kind, ()))
