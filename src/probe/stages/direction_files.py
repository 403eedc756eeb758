"""Directions as safetensors files. Knows the format; fits and judges nothing. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from probe.values import Direction, ProbeError, Site, canonical_json

SCHEMA = "persona-probe-directions/1"


def save_directions(path: str | Path, directions: Sequence[Direction]) -> Path:
    """Write directions into one safetensors file: a tensor each, what they are as JSON in the header's metadata.

    The same directions give the same bytes.

    Raises:
        ProbeError: there is no direction, or they differ in width.
    """
    target = Path(path)
    widths = sorted({len(one.vector) for one in directions})
    if len(widths) != 1:
        raise ProbeError(f"a file holds directions of one model width, found {widths or 'no direction'} for {target}")
    sets: dict[frozenset[str], int] = {}  # hundreds of directions share few sets of cases: each is written once
    told = []
    for i, one in enumerate(directions):
        shared = {name: sets.setdefault(named, len(sets)) for name, named in _sets_of(one).items()}
        told.append({**asdict(one), **shared, "vector": f"direction.{i}"})
    named = [sorted(one) for one in sets]
    index = canonical_json({"schema": SCHEMA, "d_model": widths[0], "sets": named, "directions": told})
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")  # a crash leaves nothing that looks finished
    # One metadata key: several would be written in no fixed order.
    save_file(
        {f"direction.{i}": np.ascontiguousarray(one.vector) for i, one in enumerate(directions)},
        part,
        metadata={"persona-probe": index},
    )
    part.replace(target)
    return target


def load_directions(path: str | Path, *, d_model: int | None = None) -> tuple[Direction, ...]:
    """The directions of a file, as they were saved.

    ``d_model``: the width of the model that they are meant for.

    Raises:
        ProbeError: the file is none of ours, or its directions have another width.
    """
    source = Path(path)
    try:
        with safe_open(source, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise ProbeError(f"{source} cannot be read as a safetensors file of directions: {error}") from error
    try:
        index = json.loads(metadata["persona-probe"])
        schema, width, entries, sets = (index[name] for name in ("schema", "d_model", "directions", "sets"))
    except (KeyError, TypeError, ValueError) as error:
        raise ProbeError(
            f"{source} holds no directions of this tool (its metadata lacks them); `probe directions` writes such files"
        ) from error
    if schema != SCHEMA:
        raise ProbeError(f"{source} has schema {schema!r}, and this version reads {SCHEMA!r}; upgrade persona-probe")
    found = tuple(_direction(entry, tensors, sets) for entry in entries)
    widths = {width, *(len(one.vector) for one in found)}
    if widths != {width} or (d_model is not None and width != d_model):
        raise ProbeError(
            f"directions belong to a model of their own width: {source} says {width} and holds {sorted(widths)}, and "
            f"{'the width' if d_model is None else d_model} was expected; use directions of this very model"
        )
    return found


def _sets_of(direction: Direction) -> dict[str, frozenset[str]]:
    return {"fitted_on": direction.fitted_on, "cases": direction.cases}


def _direction(entry: dict[str, Any], tensors: dict[str, np.ndarray], sets: list[list[str]]) -> Direction:
    named = {name: frozenset(sets[entry[name]]) for name in ("fitted_on", "cases")}
    return Direction(**{**entry, **named, "site": Site(**entry["site"]), "vector": tensors[entry["vector"]]})
