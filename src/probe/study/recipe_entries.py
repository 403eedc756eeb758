"""Recipes made in Python as plain values, with their arrays, and back. Knows keys; knows no file of directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from probe.study.checked import CLOSED, Count, Flag, Id, Name, Text, checked
from probe.study.located import Located
from probe.values import Gate, Intervention, PerCase, ProbeError, Recipe


@dataclass(frozen=True)
class _Recipe:
    __pydantic_config__ = CLOSED

    name: Name
    edits: Any
    personas: tuple[Name, ...] | None = None
    fitted_on: tuple[Id, ...] = ()
    about: Any = None
    source: Text = ""


@dataclass(frozen=True)
class _Edit:
    __pydantic_config__ = CLOSED

    operator: Name
    layer: Annotated[Count, Ge(0)]
    position: Name = "all"
    stream: Name = "resid"
    relative: Flag = False
    vector: Any = None
    basis: Any = None
    coordinates: Any = None
    values: Any = None
    gate: Any = None


@dataclass(frozen=True)
class _Value:
    __pydantic_config__ = CLOSED

    case: Id
    instruction: Annotated[Count, Ge(0)]
    rotation: Annotated[Count, Ge(0)]
    value: Any


@dataclass(frozen=True)
class _Gate:
    __pydantic_config__ = CLOSED

    vector: Any
    above: float


def read_recipe(source: Located) -> Recipe:
    """A recipe whose ``edits`` are written out, array by array.

    Raises:
        StudyError: a key is unknown, an array holds no numbers, or an edit breaks a rule of its operator.
    """
    entry = checked(_Recipe, source)
    if not isinstance(entry.edits, list | tuple):
        raise source.refusal("`edits` must be a list. Put it in brackets: [...]", "edits")
    edits = tuple(_edit(source.child("edits", i)) for i in range(len(entry.edits)))
    try:
        return Recipe(
            entry.name, edits, entry.personas, frozenset(entry.fitted_on), dict(entry.about or {}), entry.source
        )
    except ProbeError as error:
        raise source.refusal(str(error)) from error


def recipe_entry(recipe: Recipe, *, arrays: bool = True) -> dict[str, Any]:
    """The mapping that ``read_recipe`` reads back as an equal recipe; without ``arrays``, what it is and its hash."""
    if not arrays:
        return recipe.told()
    return {
        "name": recipe.name,
        "edits": [_entry(edit) for edit in recipe.edits],
        "personas": None if recipe.personas is None else list(recipe.personas),
        "fitted_on": sorted(recipe.fitted_on),
        "about": dict(recipe.about),
        "source": recipe.source,
    }


def _edit(source: Located) -> Intervention | PerCase:
    entry = checked(_Edit, source)
    arrays = {
        key: _array(source, key) for key in ("vector", "basis", "coordinates") if source.value.get(key) is not None
    }
    gate = None
    if entry.gate is not None:
        inner = source.child("gate")
        gate = Gate(_array(inner, "vector"), checked(_Gate, inner).above)
    where = {"position": entry.position, "stream": entry.stream, "gate": gate}
    try:
        if entry.values is None:
            return Intervention(entry.layer, entry.operator, **arrays, **where, relative=entry.relative)  # type: ignore[arg-type]  # each by its name
        values = {}
        for i in range(len(entry.values)):
            one = source.child("values", i)
            key = checked(_Value, one)
            values[key.case, key.instruction, key.rotation] = _array(one, "value")
        return PerCase(entry.layer, entry.operator, values, arrays.get("basis"), **where)  # type: ignore[arg-type]  # as above
    except ProbeError as error:
        raise source.refusal(str(error)) from error


def _entry(edit: Intervention | PerCase) -> dict[str, Any]:
    found: dict[str, Any] = {"operator": edit.operator, "layer": edit.layer, "position": edit.position}
    found["stream"] = edit.stream
    if edit.gate is not None:
        found["gate"] = {"vector": _numbers(edit.gate.vector), "above": float(edit.gate.above)}
    if isinstance(edit, PerCase):
        found["values"] = [
            {"case": case, "instruction": instruction, "rotation": rotation, "value": _numbers(value)}
            for (case, instruction, rotation), value in edit.values.items()
        ]
        return found | ({} if edit.basis is None else {"basis": _numbers(edit.basis)})
    found |= {"relative": True} if edit.relative else {}
    arrays = {name: getattr(edit, name) for name in ("vector", "basis", "coordinates")}
    return found | {name: _numbers(array) for name, array in arrays.items() if array is not None}


def _array(source: Located, key: str) -> np.ndarray:
    try:
        return np.asarray(source.value[key], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise source.refusal(f"`{key}` must hold numbers, in rows of one length: {error}", key) from error


def _numbers(array: np.ndarray) -> Any:
    """As float32, which JSON's numbers hold exactly."""
    return np.asarray(array, dtype=np.float32).tolist()
