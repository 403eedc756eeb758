"""Plain values that remember where each part was written. Knows places and near names; knows no file format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from probe.values import StudyError

Loc = tuple[str | int, ...]
"""A path into nested mappings and lists: keys and indices."""

Place = Callable[[Loc, bool], str]
"""Names the place of a path for a reader: ``study.yaml:3:5``. The flag asks for the key instead of its value."""


@dataclass(frozen=True, eq=False)
class Located:
    """A plain value (mapping, list, text, number, truth value, None) inside a document that knows its places."""

    value: Any
    place: Place
    at: Loc = ()

    def child(self, *loc: str | int) -> Located:
        """The part at ``loc``."""
        value = self.value
        for part in loc:
            value = value[part]
        return replace(self, value=value, at=self.at + loc)

    def where(self, *loc: str | int, key: bool = False) -> str:
        """The place of ``loc`` in words: that of the part itself, or of its nearest written ancestor."""
        return self.place(self.at + loc, key)

    def refusal(self, sentence: str, *loc: str | int, key: bool = False) -> StudyError:
        """The error to raise about the part at ``loc``."""
        return StudyError(f"{self.where(*loc, key=key)}: {sentence}")


def in_memory(value: Any, name: str) -> Located:
    """A value that was built in Python: its places are dotted paths."""
    return Located(value, lambda loc, key: f"{name} at {dotted(loc)}" if loc else name)


def dotted(loc: Loc) -> str:
    """``('personas', 2, 'id')`` as ``personas[2].id``."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def kind_of(value: Any) -> str:
    """What a plain value is, in words and with the value where it is short."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value[:60]!r}{'...' if len(value) > 60 else ''}"
    return f"a {type(value).__name__}"
