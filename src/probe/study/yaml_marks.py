"""YAML with the place of every key and value. Knows YAML 1.2 scalars and safe nodes only; knows no study.

Scalars are read by the YAML 1.2 core rules, not PyYAML's 1.1: ``Yes``, ``No``, ``on`` and ``2024-01-01`` are text, and
``1e-4`` is a number. Nothing but text, numbers, truth values, null, lists and mappings can come out, whatever tags a
file holds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from probe.study.located import Loc, Located
from probe.study.text_files import read_text
from probe.values import StudyError

MAX_DEPTH = 50
MAX_NODES = 1_000_000
"""Bounds on nesting and on nodes after aliases are followed: a few lines of YAML can otherwise fill the memory."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """PyYAML's table of plain scalars: by first character (``""`` for an empty one), the tags to try with patterns."""
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {"": []}
    for name, pattern, first in _SCALARS:
        rule = (_TAG + name, re.compile(rf"(?:{pattern})\Z"))
        for character in first:
            table.setdefault(character, []).append(rule)
        if name == "null":
            table[""].append(rule)
    return table


class _Loader(yaml.SafeLoader):
    """Composes nodes; scalars resolve by the YAML 1.2 core schema; nesting is bounded."""

    yaml_implicit_resolvers = _resolvers()
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one node, refusing a nesting that no study needs."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            here = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # the stubs leave it unannotated
            raise yaml.composer.ComposerError(None, None, "it is nested too deeply", here)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(path: Path) -> Located:
    """The one document of a YAML file.

    Raises:
        StudyError: the file is not plain UTF-8 text or not YAML, repeats a key, or asks for a Python object.
    """
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, name: str) -> Located:
    """The one document in ``text``; ``name`` stands before line and column in messages."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise StudyError(
            f"{name}:{line}:{column}: the character U+{ord(text[error.position]):04X} may not stand in YAML. Remove it"
        ) from None
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, name) from None
    except (ValueError, OverflowError):  # PyYAML lets chr() speak for an escape beyond Unicode
        here = _place(name, loader.get_mark())
        raise StudyError(f"{here}: an escape stands for no character. Write the character itself") from None
    if node is None:
        raise StudyError(f"{name}:1:1: the file is empty but for comments. `probe new DIR` writes files to start from")
    document = _Document(name)
    value = document.plain(node, ())
    return Located(value, document.place)


def _syntax_error(error: yaml.MarkedYAMLError, name: str) -> StudyError:
    mark = error.problem_mark or error.context_mark
    found = ", ".join(part for part in (error.context, error.problem) if part)
    remedy = "Look at indentation, quotes, brackets and colons here"
    if "'\\t'" in found:
        remedy = "Indent with spaces, not tabs"
    elif "another document" in found:
        remedy = "Keep one document in a file: remove the second `---`"
    elif re.search("stream end|end of stream|document separator", found) and error.context_mark:
        mark = error.context_mark  # where the quote or bracket opens helps more than where the file ends
        remedy = "Close the quote or bracket that opens here"
    return StudyError(f"{_place(name, mark) if mark else name}: this is not valid YAML ({found}). {remedy}")


def _place(name: str, mark: yaml.Mark) -> str:
    return f"{name}:{mark.line + 1}:{mark.column + 1}"


class _Document:
    """Turns nodes into plain values and notes where each was written."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.keys: dict[Loc, yaml.Mark] = {}
        self.values: dict[Loc, yaml.Mark] = {}
        self.open: list[yaml.Node] = []
        self.seen = 0

    def place(self, loc: Loc, key: bool = False) -> str:
        if key and loc in self.keys:
            return _place(self.name, self.keys[loc])
        while loc not in self.values:
            loc = loc[:-1]
        return _place(self.name, self.values[loc])

    def plain(self, node: yaml.Node, loc: Loc) -> Any:
        self.values[loc] = node.start_mark
        self.seen += 1
        if self.seen > MAX_NODES:
            raise self._refusal(node, "the aliases in this file unfold without end. Write the values out")
        if any(node is outer for outer in self.open):
            raise self._refusal(node, "an alias stands inside what it names. Write the value out")
        self.open.append(node)
        value = self._plain(node, loc)
        self.open.pop()
        return value

    def _plain(self, node: yaml.Node, loc: Loc) -> Any:
        tag = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            return [self.plain(item, (*loc, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and tag in ("str", "null", "bool", "int", "float"):
            return self._scalar(node, tag)
        raise self._refusal(
            node,
            f"the tag '{node.tag.replace(_TAG, '!!')}' is not allowed. "
            "A file of a study holds only text, numbers, true, false, null, lists and mappings",
        )

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
                shown = repr(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                raise self._refusal(key_node, f"a key must be text, found {shown}. Put it in quotes")
            key: str = key_node.value
            if key in mapping:
                first = self.keys[(*loc, key)].line + 1
                raise self._refusal(
                    key_node, f"the key {key!r} stands twice (first on line {first}). Keep one of the two"
                )
            self.keys[(*loc, key)] = key_node.start_mark
            mapping[key] = self.plain(value_node, (*loc, key))
        return mapping

    def _scalar(self, node: yaml.ScalarNode, tag: str) -> Any:
        text: str = node.value
        if tag == "str":
            return text
        if tag == "null" and text in ("~", "", "null", "Null", "NULL"):
            return None
        if tag == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        try:
            if tag == "int":
                return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
            if tag == "float":
                return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))
        except ValueError:  # an explicit tag on other text (!!int x), or more digits than Python converts
            pass
        raise self._refusal(node, f"{text[:60]!r} cannot be read as {tag}. Put text in quotes")

    def _refusal(self, node: yaml.Node, sentence: str) -> StudyError:
        return StudyError(f"{_place(self.name, node.start_mark)}: {sentence}")
