"""Directions out to other tools and in from them. Knows which file is which; the formats and indices are interop's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from probe.interop import (
    ControlVector,
    block_before,
    control_vector,
    directions_of,
    gguf_name,
    hook_name,
    persona_vectors_row,
)
from probe.interop.arrays import (
    read_safetensors,
    rows_of,
    steering_of,
    vector_of_rows,
    vector_of_steering,
    write_safetensors,
)
from probe.interop.gguf_files import read_gguf, write_gguf
from probe.interop.vectors import require_one_kind
from probe.stages.direction_files import load_directions, save_directions
from probe.stages.terminal import say
from probe.store.exports import fresh
from probe.values import Direction, ProbeError
from probe.values.nearest import nearest


@dataclass(frozen=True)
class Format:
    """A format of vectors: the suffix that its readers ask for, and its name for a residual point of a model."""

    suffix: str
    place: Callable[[int, int], str | int]


FORMATS = {
    "gguf": Format(".gguf", gguf_name),
    "persona-vectors": Format(".pt", persona_vectors_row),
    "lm-eval": Format(".pt", block_before),
    "safetensors": Format(".safetensors", hook_name),
}
"""Formats of vectors by the names that ``--to`` and ``--from`` take."""


@dataclass(frozen=True)
class Chosen:
    """Which directions of a file are meant; what is left open must be one only, but for the points."""

    persona: str | None = None
    base: str | None = None
    position: str | None = None
    maker: str | None = None
    points: tuple[int, ...] = ()


@dataclass(frozen=True)
class ForModel:
    """The model that a vector is for: its id or folder, and how many blocks it has, where the file does not say so."""

    id: str | None = None
    n_layers: int | None = None


def export_vector(
    source: Path,
    to: str,
    out: Path,
    chosen: Chosen,
    model: ForModel,
    *,
    coefficient: float = 1.0,
    model_hint: str | None = None,
) -> ControlVector:
    """Write one persona's directions for another tool, unscaled, and say where that tool will add each.

    Points that the format has no place for are left out and named; one that was asked for is refused. Returns what was
    written.

    Raises:
        ProbeError: the file holds no such directions, or several; the model's depth is not known; the format has no
            place for them; or ``out`` exists or has another suffix.
    """
    if out.suffix != _format(to).suffix:
        raise ProbeError(f"a file for {to} must end in {_format(to).suffix}, or its readers refuse it; found {out}")
    if coefficient != 1.0 and to != "lm-eval":
        raise ProbeError("only lm-eval's files keep a coefficient; the others take the strength where they are used")
    directions = _choose(load_directions(source), chosen, source)
    require_one_kind(directions)
    whole = control_vector(directions, _depth(directions, model, source))
    vector, refused = whole.fitting(lambda point: _format(to).place(point, whole.n_layers))
    if asked := [refused[point] for point in chosen.points if point in refused]:
        raise ProbeError(asked[0])
    name = model.id or str(whole.origin["provenance"].get("model", ""))
    with fresh(out) as partial:
        if to == "gguf":
            write_gguf(partial, vector, model_hint=model_hint or name or "unknown")
        elif to == "safetensors":
            write_safetensors(partial, vector)
        else:
            found = rows_of(vector) if to == "persona-vectors" else _steering(vector, name, coefficient)
            _save_tensors(partial, found)
    _tell(out, vector, refused)
    return vector


def import_vector(
    source: Path,
    out: Path,
    model: ForModel,
    *,
    written_for: str | None = None,
    persona: str | None = None,
    base: str | None = None,
    position: str | None = None,
) -> tuple[Direction, ...]:
    """Read another tool's vectors as directions and save them as a file of directions; returns them.

    ``written_for`` names the format, by default told from the file. The persona is called as the file says, or as the
    file itself.

    Raises:
        ProbeError: the file cannot be read, or holds something else than vectors that are added to the residual stream;
            the model's depth is needed and not known, or the file is for another model; or ``out`` exists.
    """
    if out.exists():
        raise ProbeError(f"{out} exists, and nothing is written over; choose another --out")
    if not source.is_file():
        raise ProbeError(f"there is no file {source}")
    depth = _known_depth(model)
    vector, left = _read(source, written_for, depth)
    if depth is not None and vector.n_layers != depth:
        raise ProbeError(f"{source} holds vectors of a model of {vector.n_layers} blocks, and {depth} were expected")
    name = persona or str(vector.origin.get("persona", source.stem))
    found = directions_of(vector, name, base=base, position=position, source=source.name)
    save_directions(out, found)
    _tell(out, vector, left)
    return found


def _steering(vector: ControlVector, model: str, coefficient: float) -> dict[str, dict[str, Any]]:
    from probe.models import find_model
    from probe.models.block_names import block_names

    return steering_of(vector, block_names(find_model(model)), coefficient=coefficient)


def _save_tensors(out: Path, arrays: Any) -> None:
    """An array, or a mapping of mappings that hold some, as ``torch.save`` writes them for ``weights_only=True``."""
    import torch

    def tensors(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value)
        return {name: tensors(entry) for name, entry in value.items()} if isinstance(value, dict) else value

    torch.save(tensors(arrays), out)


def _read(source: Path, to: str | None, depth: int | None) -> tuple[ControlVector, dict[int, str]]:
    """The vectors of a file, and what it holds beside them, with the reason why that is none."""
    if to is not None and source.suffix != _format(to).suffix:
        raise ProbeError(f"a file for {to} ends in {_format(to).suffix}; found {source}")
    if source.suffix == ".gguf":
        return read_gguf(source, n_layers=depth), {}
    if source.suffix == ".safetensors":
        return read_safetensors(source, n_layers=depth), {}
    if source.suffix != ".pt":
        raise ProbeError(f"vectors are read from files that end in .gguf, .safetensors or .pt; found {source}")
    saved = _torch_file(source)
    if to != "lm-eval" and not isinstance(saved, Mapping):
        return vector_of_rows(_array(source, saved))
    if to == "persona-vectors" or not isinstance(saved, Mapping):
        raise ProbeError(f"{source} holds a {type(saved).__name__}, which is no file for {to}; leave --from out")
    if depth is None:
        raise ProbeError(
            f"{source} does not say how many blocks its model has; name the model with --model, or give --n-layers"
        )
    entries = {
        str(name): {**entry, "steering_vector": _array(source, entry.get("steering_vector"))}
        for name, entry in saved.items()
        if isinstance(entry, Mapping)
    }
    if len(entries) < len(saved) or not entries:
        raise ProbeError(f"lm-eval's steering is a mapping of hookpoints to mappings; {source} holds something else")
    return vector_of_steering(entries, depth), {}


def _torch_file(source: Path) -> Any:
    """What a file of ``torch.save`` holds; nothing but tensors and plain values is unpickled."""
    from _pickle import UnpicklingError  # what torch raises where a file asks for more than weights

    import torch

    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ProbeError(
            f"{source} holds more than tensors and plain values, and what could run code is never unpickled; save the "
            "vectors alone"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ProbeError(f"{source} is no file of torch.save: {str(error).splitlines()[0]}") from error


def _array(source: Path, value: Any) -> np.ndarray:
    import torch

    if not isinstance(value, torch.Tensor):
        raise ProbeError(f"{source} must hold tensors; found {type(value).__name__}")
    return np.asarray(value.detach().float().numpy())


def _choose(directions: Sequence[Direction], chosen: Chosen, source: Path) -> list[Direction]:
    """The directions that were asked for.

    Raises:
        ProbeError: a name is not in the file, or no direction has all of them.
    """
    found = list(directions)
    for what, name, of in (
        ("persona", chosen.persona, attrgetter("persona")),
        ("base", chosen.base, attrgetter("base")),
        ("position", chosen.position, attrgetter("site.position")),
        ("maker", chosen.maker, attrgetter("maker")),
    ):
        if name is not None:
            known = tuple(dict.fromkeys(str(of(one)) for one in found))
            found = [one for one in found if of(one) == name]
            if not found:
                raise ProbeError(f"{source} has no direction of the {what} {name!r}. {nearest(name, known, what)}")
    if missing := sorted(set(chosen.points) - {one.site.layer for one in found}):
        raise ProbeError(f"{source} has no such direction at residual point {missing[0]}; leave --layer out for all")
    return [one for one in found if not chosen.points or one.site.layer in chosen.points]


def _depth(directions: Sequence[Direction], model: ForModel, source: Path) -> int:
    """How many blocks the model has: as the files of directions say, or the model that was named."""
    told = {int(one.provenance["n_layers"]) for one in directions if "n_layers" in one.provenance}
    known = _known_depth(model)
    if known is not None and told and told != {known}:
        raise ProbeError(f"{source} was fitted on a model of {min(told)} blocks, and {known} were expected")
    if known is None and len(told) != 1:
        raise ProbeError(
            f"{source} does not say how many blocks its model has, and which point is the last matters; name the model "
            "with --model, or give --n-layers"
        )
    return known if known is not None else told.pop()


def _known_depth(model: ForModel) -> int | None:
    if model.n_layers is not None or model.id is None:
        return model.n_layers
    from probe.models import find_model, read_shape

    return read_shape(find_model(model.id)).n_layers


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ProbeError(f"vectors have no format {name!r}. {nearest(name, tuple(FORMATS), 'format')}")
    return FORMATS[name]


def _tell(out: Path, vector: ControlVector, left: Mapping[int, str]) -> None:
    """Where each vector is added, in one line for each, and what was left out."""
    say(f"wrote {len(vector.vectors)} vector{'s' * (len(vector.vectors) > 1)} to {out}")
    for point, array in sorted(vector.vectors.items()):
        where = "the embedding" if point == 0 else f"output of block {block_before(point, vector.n_layers)}"
        say(f"  residual point {point} ({where}): norm {np.linalg.norm(array):.4g}")
    for reason in dict.fromkeys(left.values()):
        say(f"  left out: {reason}")
