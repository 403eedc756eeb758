"""Settings given beside a study file (``--set a.b=c``). Knows paths of keys; knows no setting by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from probe.study.located import Loc, Located, kind_of
from probe.study.yaml_marks import parse_yaml
from probe.values import StudyError


@dataclass(frozen=True)
class Override:
    """One setting: the path of keys, the value that stands there from now on, and how it was written."""

    path: tuple[str, ...]
    value: Any
    label: str


def parse_override(text: str) -> Override:
    """``a.b=c`` as the path ``("a", "b")`` and the value that YAML reads in ``c``.

    Raises:
        StudyError: there is no ``=``, a part of the path is empty, or the value is not YAML.
    """
    label = f"--set {text}"
    keys, equals, value = text.partition("=")
    path = tuple(keys.split("."))
    if not equals or not all(path):
        raise StudyError(f"{label}: a setting is written KEY.KEY=VALUE. Example: --set generation.max_new_tokens=64")
    if not value.strip():
        raise StudyError(f"{label}: there is no value after '='. Write one, or null")
    return Override(path, parse_yaml(value, label).value, label)


def overridden(document: Located, overrides: Sequence[Override]) -> Located:
    """The document with settings replaced; messages about a replaced part name the setting instead of the file.

    Raises:
        StudyError: a path leads through something that is no mapping.
    """
    value = document.value
    written: dict[Loc, str] = {}
    for override in overrides:
        value = _with(value, override, (), written)

    def place(loc: Loc, key: bool) -> str:
        for end in range(len(loc), 0, -1):
            if loc[:end] in written:
                return written[loc[:end]]
        return document.place(loc, key)

    return Located(value, place)


def _with(value: Any, override: Override, at: tuple[str, ...], written: dict[Loc, str]) -> Any:
    if at == override.path:
        written[at] = override.label
        return override.value
    if value is None:
        value = {}
        written.setdefault(at, override.label)
    if not isinstance(value, dict):
        raise StudyError(
            f"{override.label}: {'.'.join(at)!r} is {kind_of(value)}, not a mapping, so nothing in it can be set. "
            f"Set {'.'.join(at)!r} as a whole"
        )
    key = override.path[len(at)]
    if key not in value:
        written[(*at, key)] = override.label
    return {**value, key: _with(value.get(key), override, (*at, key), written)}
