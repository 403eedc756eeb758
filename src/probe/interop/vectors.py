"""Vectors that other tools add to the residual stream, by residual point. Knows directions; knows no file format."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from probe.values import Direction, ProbeError, Site, canonical_json

UNKNOWN = "unknown"
"""Where a file does not say at which position, or against which base, its vectors were fitted."""

Name = TypeVar("Name", bound=Hashable)

_KINDS: Mapping[str, Any] = {
    **dict.fromkeys(("persona", "base", "maker", "position"), str),
    **dict.fromkeys(("fitted_on", "cases"), list),
    "n_cases": int,
    "provenance": dict,
}
"""Types of what an origin holds."""


@dataclass(frozen=True, eq=False)
class ControlVector:
    """One vector for each of some residual points of a model, in units of the stream, added there as it is.

    ``vectors[k]`` is ``[d_model]``, float32, for point k of ``n_layers + 1``. ``origin`` holds plain values: whose
    direction it is and what fitted it, by the names of :class:`probe.values.Direction`.

    Raises:
        ProbeError: there is no vector, the widths differ, a value is not finite, or a point is none of the model's.
    """

    n_layers: int
    vectors: Mapping[int, Float[np.ndarray, " d_model"]]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        widths = sorted({len(vector) for vector in self.vectors.values()})
        if len(widths) != 1:
            raise ProbeError(f"a control vector holds vectors of one model width, found {widths or 'no vector'}")
        beyond = [point for point in self.vectors if not 0 <= point <= self.n_layers]
        if beyond:
            raise ProbeError(
                f"a model of {self.n_layers} blocks has residual points 0 to {self.n_layers}; found {beyond[0]}"
            )
        broken = [point for point, vector in self.vectors.items() if not np.isfinite(vector).all()]
        if broken:
            raise ProbeError(f"the vector at residual point {broken[0]} must be finite, and it is not; mend it")

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return len(next(iter(self.vectors.values())))

    def named(self, name_of: Callable[[int], Name]) -> dict[Name, np.ndarray]:
        """The vectors by the names that a format has for their points.

        Raises:
            ProbeError: the format has no name for one of them.
        """
        return {name_of(point): self.vectors[point] for point in sorted(self.vectors)}

    def fitting(self, name_of: Callable[[int], object]) -> tuple[ControlVector, dict[int, str]]:
        """The points that a format has a name for, and why it has none for the others.

        Raises:
            ProbeError: the format has a name for none of them.
        """
        refused: dict[int, str] = {}
        for point in self.vectors:
            try:
                name_of(point)
            except ProbeError as error:
                refused[point] = str(error)
        if len(refused) == len(self.vectors):
            raise ProbeError(next(iter(refused.values())))
        return replace(self, vectors={k: v for k, v in self.vectors.items() if k not in refused}), refused


def control_vector(directions: Sequence[Direction], n_layers: int) -> ControlVector:
    """The directions of one persona as one control vector, unscaled: strength 1 adds each as long as it is.

    Raises:
        ProbeError: they differ in persona, base, position or maker, two are at one point, or one is not in the residual
            stream.
    """
    require_one_kind(directions)
    inner = [one.site.stream for one in directions if one.site.stream != "resid"]
    if inner:
        raise ProbeError(f"a control vector is added to the residual stream; found a direction of {inner[0]}")
    points = [one.site.layer for one in directions]
    twice = [point for point in points if points.count(point) > 1]
    if twice:
        raise ProbeError(f"a control vector has one vector at a residual point; found several at point {twice[0]}")
    vectors = {one.site.layer: np.asarray(one.vector, np.float32) for one in directions}
    return ControlVector(n_layers, vectors, _origin(directions) if directions else {})


def require_one_kind(directions: Sequence[Direction]) -> None:
    """Refuse directions that differ in more than their residual point.

    Raises:
        ProbeError: they differ in persona, base, position or maker.
    """
    kinds = sorted({(one.persona, one.base, one.site.position, one.maker) for one in directions})
    if len(kinds) > 1:
        told = "; ".join(" / ".join(kind) for kind in kinds[:3]) + ("; ..." if len(kinds) > 3 else "")
        raise ProbeError(
            f"a control vector is one persona's, against one base, at one position, by one maker; found {len(kinds)} "
            f"such ({told}); choose with --persona, --base, --position and --maker"
        )


def directions_of(
    vector: ControlVector, persona: str, *, base: str | None = None, position: str | None = None, source: str = ""
) -> tuple[Direction, ...]:
    """A control vector as directions, one for each residual point.

    What the file told of their origin is kept: judging them on the families that fitted them stays refused. Where it
    told nothing, any family may be a training one. ``base`` and ``position`` overrule it; without either they are
    ``unknown``. ``source`` names the file.
    """
    origin = dict(vector.origin)
    provenance = {**origin.get("provenance", {}), "imported_from": source, "n_layers": vector.n_layers}
    return tuple(
        Direction(
            site=Site(point, position or str(origin.get("position", UNKNOWN))),
            vector=np.ascontiguousarray(vector.vectors[point], np.float32),
            persona=persona,
            base=base or str(origin.get("base", UNKNOWN)),
            n_cases=int(origin.get("n_cases", 0)),
            fitted_on=frozenset(map(str, origin.get("fitted_on", ()))),
            cases=frozenset(map(str, origin.get("cases", ()))),
            maker=str(origin.get("maker", "imported")),
            provenance=provenance,
        )
        for point in sorted(vector.vectors)
    )


def written_origin(vector: ControlVector) -> str:
    """What a file keeps of a control vector beside its numbers: the model's depth and the origin, as JSON."""
    return canonical_json({"n_layers": vector.n_layers, **vector.origin})


def read_origin(text: str, source: Path, n_layers: int | None) -> tuple[int, dict[str, Any]]:
    """The model's depth and the origin that a file keeps; ``text`` is empty where it keeps none.

    ``n_layers`` is what the caller knows of the depth.

    Raises:
        ProbeError: the text is not what we write, or the depth is not known, or two depths contradict each other.
    """
    try:
        told = json.loads(text) if text else {}
        depth = told.pop("n_layers", n_layers)
        fits = all(isinstance(told[name], kind) for name, kind in _KINDS.items() if name in told)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ProbeError(f"{source} keeps an origin that is not JSON of ours: {error}") from error
    if not fits or not isinstance(depth, int | None):
        raise ProbeError(f"{source} keeps an origin that is not ours; leave its metadata out to read the vectors alone")
    if depth is None:
        raise ProbeError(
            f"{source} does not say how many blocks its model has; name the model with --model, or give --n-layers"
        )
    if n_layers is not None and depth != n_layers:
        raise ProbeError(f"{source} is for a model of {depth} blocks, and {n_layers} were expected")
    return depth, told


def _origin(directions: Sequence[Direction]) -> dict[str, Any]:
    """What the points of a control vector share, as plain values; families and cases are those of any of them."""
    first = directions[0]
    return {
        "persona": first.persona,
        "base": first.base,
        "position": first.site.position,
        "maker": first.maker,
        "n_cases": first.n_cases,
        "fitted_on": sorted(frozenset().union(*(one.fitted_on for one in directions))),
        "cases": sorted(frozenset().union(*(one.cases for one in directions))),
        "provenance": dict(first.provenance),
    }
