"""Where personas, task and cases come from: built in, in a file, or written in the study. Knows names and suffixes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from probe import organism
from probe.study.case_files import read_cases
from probe.study.checked import CLOSED, Line, checked
from probe.study.json_marks import read_jsonl
from probe.study.located import Located, kind_of, nearest
from probe.study.persona_files import read_personas
from probe.study.task_files import read_task
from probe.study.text_files import is_there
from probe.study.yaml_marks import read_yaml
from probe.values import Case, Persona, Task

_BUILTIN = "builtin:"
_BUILTIN_FILES = Path(__file__).parent / "builtin"
PERSONAS = ("persona-paradox",)
TASKS = ("triage",)
CASES = ("triage",)


@dataclass(frozen=True)
class _File:
    __pydantic_config__ = CLOSED

    path: Line


def personas_from(source: Located, directory: Path) -> tuple[Persona, ...]:
    """The personas that a study names: ``builtin:persona-paradox``, a YAML file, a list or a crossing."""
    value = source.value
    if _is_builtin(source, PERSONAS, "personas"):
        return read_personas(read_yaml(_BUILTIN_FILES / f"{value.removeprefix(_BUILTIN)}.yaml"))
    if isinstance(value, str) or (isinstance(value, Mapping) and "path" in value):
        return read_personas(read_yaml(_file(source, directory, (".yaml", ".yml"), "Personas")))
    return read_personas(source)


def task_from(source: Located) -> Task:
    """The task that a study names: ``builtin:triage`` or a mapping."""
    if _is_builtin(source, TASKS, "task"):
        return organism.triage_task()
    if not isinstance(source.value, Mapping):
        raise source.refusal(f"`task` must be `builtin:triage` or a mapping, found {kind_of(source.value)}")
    return read_task(source)


def cases_from(source: Located, directory: Path, task: Task) -> tuple[Case, ...]:
    """The cases that a study names: ``builtin:triage``, a JSONL file, or a list of samples."""
    value = source.value
    if _is_builtin(source, CASES, "cases"):
        return organism.held_out_cases()
    samples: Iterable[Located]
    if isinstance(value, list | tuple):
        samples = [source.child(i) for i in range(len(value))]
    else:
        samples = read_jsonl(_file(source, directory, (".jsonl",), "Cases"))
    return read_cases(samples, task)


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
    if isinstance(value, Mapping) and "hub" in value:
        raise source.refusal(
            "hub data sets come in a later version. Save the cases as JSONL and write `path:`", "hub", key=True
        )
    if not isinstance(value, str | Mapping):
        raise source.refusal(
            f"{what.lower()} must be built in, a file or a list, found {kind_of(value)}. "
            f"Write the path of a {suffixes[0]} file"
        )
    at = () if isinstance(value, str) else ("path",)
    written = Located({"path": value}, lambda loc, key: source.where()) if isinstance(value, str) else source
    name = checked(_File, written).path
    path = directory / name
    if path.suffix not in suffixes:
        later = "; CSV and Parquet come later" if what == "Cases" else ""
        raise source.refusal(f"{what} are read from {suffixes[0]} files in this version{later}, found {name!r}", *at)
    if not is_there(path.is_file):
        raise source.refusal(f"there is no file {str(path)!r}. A path is relative to the study file", *at)
    return path
