"""What makes an arm: named interventions, some of them another for each case. Knows arrays; knows no file or model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from probe.values.canonical import canonical_json, sha256_of
from probe.values.cells import Cell
from probe.values.directions import Direction
from probe.values.errors import ProbeError, RowRefused
from probe.values.interventions import Gate, Intervention, hash_of

Prompted = tuple[str, int, int]
"""What a value of another cell is looked up by: case, instruction wording, rotation of the letters."""

UNITS = ("direction", "residual", "stream")
"""Of a strength. ``direction``: times the direction itself, whose norm is the distance of two means; ``residual``:
times the norm that the stream has at the token which is edited; ``stream``: in the stream's own units."""


@dataclass(frozen=True, eq=False)
class PerCase:
    """An intervention whose vector (``add``, ``patch``) or coordinates (``set``, ``cap``) are another for each case.

    ``values`` ``[width]`` or ``[k]`` are those of the same case, instruction and rotation in another run. A cell
    without one is refused. ``set`` with the base's coordinates ablates to the value that the base has for the case.

    Raises:
        ProbeError: as :class:`Intervention`, of any of the values.
    """

    layer: int
    operator: str
    values: Mapping[Prompted, Float[np.ndarray, " _"]]
    basis: Float[np.ndarray, "k width"] | None = None
    position: str = "prompt_end"
    stream: str = "resid"
    gate: Gate | None = None

    def __post_init__(self) -> None:
        if self.operator == "ablate":
            raise ProbeError("what is ablated is zero for every case; `set` gives a subspace each case's own value")
        if not self.values:
            raise ProbeError("an intervention that takes a value for each case has none; give it one at least")
        for prompted in [*self.values][:1]:  # the others when they are used: a basis is checked each time
            self.on(prompted)

    def on(self, prompted: Prompted) -> Intervention:
        """The intervention on one case under one instruction and rotation; KeyError where there is no value."""
        value = self.values[prompted]
        vector, coordinates = (value, None) if self.operator in ("add", "patch") else (None, value)
        return Intervention(
            self.layer,
            self.operator,
            vector,
            self.basis,
            coordinates,
            self.position,
            self.stream,
            gate=self.gate,
        )

    @property
    def width(self) -> int:
        """The width of the stream that it edits."""
        if self.basis is not None:
            return int(self.basis.shape[-1])
        return len(next(iter(self.values.values())))

    @cached_property
    def sha256(self) -> str:
        """The hash of what is the same for every case; each row's own value is in its prompt's hash."""
        gate = (None, None) if self.gate is None else (self.gate.vector, np.array([self.gate.above]))
        return hash_of(["per case", self.operator, self.stream, self.layer, self.position], self.basis, *gate)


Edit = Intervention | PerCase
"""What a recipe is made of."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """The interventions of one arm, acting in their order, and the name under which results speak of it.

    ``personas`` are those whose prompts it is run with, None for all. ``fitted_on`` are the case families on which its
    directions were fitted: cases of theirs do not judge it. ``about`` holds plain values for a reader: the direction,
    the strength and its unit. ``source`` tells two recipes apart that differ in the values of cases alone.

    Raises:
        ProbeError: there is no name or no edit, or ``about`` does not hold plain JSON values.
    """

    name: str
    edits: tuple[Edit, ...]
    personas: tuple[str, ...] | None = None
    fitted_on: frozenset[str] = frozenset()
    about: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        if not self.name.strip() or len(self.name) > 200 or not self.name.isprintable():
            raise ProbeError(f"an intervention needs a name of 1 to 200 printable characters, found {self.name!r}")
        if not self.edits:
            raise ProbeError(f"the intervention {self.name!r} edits nothing; give it at least one operator")
        try:
            canonical_json(dict(self.about))
        except (TypeError, ValueError) as error:
            raise ProbeError(f"what is told of the intervention {self.name!r} must be plain JSON: {error}") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self._all == other._all

    def __hash__(self) -> int:
        return hash(self.sha256)

    @cached_property
    def sha256(self) -> str:
        """The hash by which a condition names this recipe: of everything that changes numbers, and of no name."""
        return sha256_of([[edit.sha256 for edit in self.edits], self.source])

    @property
    def depends_on_case(self) -> bool:
        """Whether a cell's edits are its own."""
        return any(isinstance(edit, PerCase) for edit in self.edits)

    def is_for(self, persona: str) -> bool:
        """Whether it is run with the prompts of this persona."""
        return self.personas is None or persona in self.personas

    def on(self, cell: Cell) -> tuple[Intervention, ...]:
        """The interventions on one cell.

        Raises:
            RowRefused: the case has no value in the run that it is taken from.
        """
        prompted = (cell.case, cell.condition.instruction, cell.condition.rotation)
        for edit in self.edits:
            if isinstance(edit, PerCase) and prompted not in edit.values:
                raise RowRefused(
                    "NoDonor",
                    f"the intervention {self.name!r} takes a value from another run, which has none for this case "
                    f"under instruction {prompted[1]} and rotation {prompted[2]}",
                )
        return tuple(edit.on(prompted) if isinstance(edit, PerCase) else edit for edit in self.edits)

    def told(self) -> dict[str, Any]:
        """Plain values that say what this recipe is, for a plan and its readers; norms are in units of the stream."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "personas": None if self.personas is None else list(self.personas),
            "edits": [_told(edit) for edit in self.edits],
            "fitted_on": len(self.fitted_on),
            "about": dict(self.about),
        }

    @property
    def _all(self) -> tuple[object, ...]:
        own = [
            (place, prompted, edit.on(prompted).sha256)
            for place, edit in enumerate(self.edits)
            if isinstance(edit, PerCase)
            for prompted in sorted(edit.values)
        ]
        return self.name, self.sha256, self.personas, self.fitted_on, canonical_json(dict(self.about)), own


def steering(
    direction: Direction,
    strength: float,
    *,
    unit: str = "direction",
    position: str = "newest",
    layer: int | None = None,
    gate: Gate | None = None,
) -> Intervention:
    """The intervention that adds a direction, ``strength`` times in a unit of ``UNITS``.

    ``layer`` is by default that of the direction's own site.

    Raises:
        ProbeError: an unknown unit, or the direction is zero where its length is to be set.
    """
    vector = strength * scaled(direction.vector, unit)
    at = direction.site.layer if layer is None else layer
    return Intervention(
        at,
        "add",
        vector.astype(np.float32),
        position=position,
        stream=direction.site.stream,
        relative=unit == "residual",
        gate=gate,
    )


def scaled(vector: Float[np.ndarray, " width"], unit: str) -> Float[np.ndarray, " width"]:
    """One unit of strength along a vector, float64: itself for ``direction``, else of length 1.

    Raises:
        ProbeError: an unknown unit, or the vector is zero where its length is to be set.
    """
    if unit not in UNITS:
        raise ProbeError(f"the unit of a strength is one of {', '.join(UNITS)}, found {unit!r}")
    wide = np.asarray(vector, dtype=np.float64)
    if unit == "direction":
        return wide
    norm = float(np.linalg.norm(wide))
    if norm == 0:
        raise ProbeError(f"a direction of length 0 has no unit vector, which the unit {unit!r} needs; leave it out")
    return np.asarray(wide / norm)


def _told(edit: Edit) -> dict[str, Any]:
    found: dict[str, Any] = {name: getattr(edit, name) for name in ("operator", "stream", "layer", "position")}
    if isinstance(edit, PerCase):
        found["cases"] = len(edit.values)
    elif edit.vector is not None:
        found["norm"] = float(np.linalg.norm(edit.vector.astype(np.float64)))
        found |= {"relative": True} if edit.relative else {}
    elif edit.coordinates is not None:
        found["coordinates"] = [float(one) for one in edit.coordinates]
    if edit.basis is not None:
        found["dimensions"] = len(edit.basis)
    if edit.gate is not None:
        found["gate_above"] = float(edit.gate.above)
    return found
