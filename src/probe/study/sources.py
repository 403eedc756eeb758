"""Where personas, task and cases come from: built in, in a file, or written in the study. Knows names and suffixes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe import organism
from probe.study.case_files import read_cases
from probe.study.case_tables import FieldNames, field_names, read_parquet, samples_from
from probe.study.checked import CLOSED, Line, checked
from probe.study.csv_marks import read_csv
from probe.study.hub_cases import HubSource, read_hub
from probe.study.json_marks import read_jsonl
from probe.study.located import Located, kind_of
from probe.study.persona_files import PlacedPersona, placed_personas, read_personas
from probe.study.task_files import read_task
from probe.study.text_files import is_there
from probe.study.yaml_marks import read_yaml
from probe.values import Case, Persona, Task
from probe.values.nearest import nearest

_BUILTIN = "builtin:"
_BUILTIN_FILES = Path(__file__).parent / "builtin"
PERSONAS = ("persona-paradox", "controls", "diagnostics")
TASKS = ("triage", "duration")
CASES = ("triage", "duration", "vignettes")


@dataclass(frozen=True)
class _File:
    __pydantic_config__ = CLOSED

    path: Line


@dataclass(frozen=True)
class _CaseFile(_File):
    """``fields`` say which column holds what; they are checked with the columns at hand."""

    __pydantic_config__ = CLOSED

    fields: Any = None


def personas_from(source: Located, directory: Path) -> tuple[Persona, ...]:
    """The personas that a study names: a built-in set, a YAML file, a crossing, or a list, whose items may be sets too.

    A list in a file may name built-in sets; only the study itself names files.
    """

    def sets_and_files(item: Located) -> Iterator[PlacedPersona] | None:
        value = item.value
        a_path = isinstance(value, str) and not value.startswith(_BUILTIN)
        if a_path or (isinstance(value, Mapping) and "path" in value):
            return placed_personas(read_yaml(_file(item, directory, (".yaml", ".yml"), "Personas")), _builtin_set)
        return _builtin_set(item)

    one = Located([source.value], lambda loc, key: source.place(source.at + loc[1:], key))
    return read_personas(source if isinstance(source.value, list | tuple) else one, sets_and_files)


def _builtin_set(item: Located) -> Iterator[PlacedPersona] | None:
    if not _is_builtin(item, PERSONAS, "personas"):
        return None
    return placed_personas(read_yaml(_BUILTIN_FILES / f"{item.value.removeprefix(_BUILTIN)}.yaml"))


def task_from(source: Located) -> Task:
    """The task that a study names: a built-in one or a mapping."""
    if _is_builtin(source, TASKS, "task"):
        return organism.triage_task() if source.value == "builtin:triage" else organism.duration_task()
    if not isinstance(source.value, Mapping):
        raise source.refusal(f"`task` must be `builtin:triage` or a mapping, found {kind_of(source.value)}")
    return read_task(source)


def cases_from(source: Located, directory: Path, task: Task) -> tuple[Case, ...]:
    """The cases that a study names: built in, a JSONL, CSV or Parquet file, a data set of the hub, or a list."""
    value = source.value
    if _is_builtin(source, CASES, "cases"):
        return _builtin_cases(value, task)
    if isinstance(value, list | tuple):
        return read_cases((source.child(i) for i in range(len(value))), task)
    if isinstance(value, Mapping) and "hub" in value:
        names, asked = field_names(source)
        return read_cases(samples_from(read_hub(checked(HubSource, source), source), names, asked), task)
    path = _file(source, directory, tuple(_READERS), "Cases")
    records = _READERS[path.suffix](path)
    if path.suffix == ".jsonl" and not (isinstance(value, Mapping) and value.get("fields")):
        return read_cases(records, task)  # already in the fields of a sample
    names, asked = field_names(source) if isinstance(value, Mapping) else (FieldNames(), source)
    return read_cases(samples_from(records, names, asked), task)


def _builtin_cases(name: str, task: Task) -> tuple[Case, ...]:
    """The organism's cases for its two tasks, or the vignettes written by hand, for real models."""
    if name == "builtin:triage":
        return organism.held_out_cases()
    if name == "builtin:duration":
        return organism.duration_cases()
    listed = read_yaml(_BUILTIN_FILES / "vignettes.yaml")
    return read_cases((listed.child(i) for i in range(len(listed.value))), task)


_READERS: Mapping[str, Callable[[Path], Iterator[Located]]] = {
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
"""How the records of a file of cases are read, by its suffix."""


def _is_builtin(source: Located, names: tuple[str, ...], what: str) -> bool:
    value = source.value
    if not isinstance(value, str) or not value.startswith(_BUILTIN):
        return False
    name = value.removeprefix(_BUILTIN)
    if name not in names:
        raise source.refusal(f"no built-in {what} are called {name!r}. {nearest(name, names, 'name')}")
    return True


def _file(source: Located, directory: Path, suffixes: tuple[str, ...], what: str) -> Path:
    """The file that a study names, as text or as ``{path: ...}``, relative to the study file."""
    value = source.value
    if not isinstance(value, str | Mapping):
        raise source.refusal(
            f"{what.lower()} must be built in, a file or a list, found {kind_of(value)}. "
            f"Write the path of a {suffixes[0]} file"
        )
    at = () if isinstance(value, str) else ("path",)
    written = Located({"path": value}, lambda loc, key: source.where()) if isinstance(value, str) else source
    name = checked(_CaseFile if what == "Cases" else _File, written).path
    path = directory / name
    if path.suffix not in suffixes:
        raise source.refusal(f"{what} are read from {' or '.join(suffixes)} files, found {name!r}", *at)
    if not is_there(path.is_file):
        raise source.refusal(f"there is no file {str(path)!r}. A path is relative to the study file", *at)
    return path
