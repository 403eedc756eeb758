"""One arm as a study writes it, as frozen values. Knows keys and their values; knows no file and no other part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import AfterValidator, PlainValidator

from probe.study.checked import CLOSED, Count, Line, Name, distinct
from probe.study.located import kind_of
from probe.study.spec import a_number, layers_or_all
from probe.values import EDIT_POSITIONS, STREAMS
from probe.values.nearest import nearest
from probe.values.recipes import UNITS

DURING = {
    "prefill": {"all": "prompt", "newest": "prompt_end"},
    "decoding": {"all": "response", "newest": "response", "response": "response"},
}
"""What a position rule comes to where an edit acts in one phase alone; the others lie in the prompt."""

OPERATOR_KEYS = {
    "add": ("direction", "strength", "unit"),
    "ablate": ("direction", "directions", "value", "store", "donor", "read_at"),
    "set": ("direction", "to", "unit"),
    "cap": ("direction", "at_most", "at_least", "unit"),
    "swap": ("direction", "directions", "store", "donor", "read_at"),
    "patch": ("donor",),
}
"""The operators, and the keys that an entry has for each beside those of all."""


def _position(name: Any) -> str:
    if name not in EDIT_POSITIONS:
        raise ValueError(
            f"is {kind_of(name)}, where nothing is edited. {nearest(str(name), EDIT_POSITIONS, 'position')}"
        )
    return str(name)


def _stream(name: Any) -> str:
    if name not in STREAMS:
        raise ValueError(f"is {kind_of(name)}, which is no stream. {nearest(str(name), STREAMS, 'stream')}")
    return str(name)


def _unit(name: Any) -> str:
    if name not in UNITS:
        raise ValueError(f"is {kind_of(name)}, which is no unit. {nearest(str(name), UNITS, 'unit')}")
    return str(name)


_Number = Annotated[float, PlainValidator(a_number)]
_Several = Annotated[tuple[Name, ...], AfterValidator(distinct)]


@dataclass(frozen=True)
class GateSpec:
    """Where an edit acts: at tokens whose projection on the direction ``direction`` of a file is ``above`` or ``below``
    a number, in units of the direction's norm or of the stream. ``fitted_at`` is another layer's direction."""

    __pydantic_config__ = CLOSED

    path: Line
    direction: Name
    above: _Number | None = None
    below: _Number | None = None
    unit: Annotated[str, PlainValidator(_unit)] = "direction"
    base: Name | None = None
    fitted_at: Annotated[Count, Ge(0)] | None = None


@dataclass(frozen=True)
class RecipeSpec:
    """One arm as a study writes it: one operator with its source, where and when it acts, and with which personas.

    ``add``, ``ablate``, ``set``, ``cap`` and ``swap`` name a file of directions (or the organism's planted ones),
    ``patch`` a store. ``direction`` is the persona whose direction is taken, against ``base`` (the study's); several
    ``directions`` span a subspace. ``layers`` are residual points; ``all`` are those that the source has, each with its
    own direction, and ``fitted_at`` takes one layer's for all of them. ``donor`` is the persona of ``store`` whose
    value, read at the site ``read_at``, the same case is given.
    """

    __pydantic_config__ = CLOSED

    name: Name
    layers: Annotated[Literal["all"] | tuple[int, ...], PlainValidator(layers_or_all)]
    add: Line | None = None
    ablate: Line | None = None
    set: Line | None = None
    cap: Line | None = None
    swap: Line | None = None
    patch: Line | None = None
    direction: Name | None = None
    directions: _Several | None = None
    base: Name | None = None
    fitted_at: Annotated[Count, Ge(0)] | None = None
    strength: _Number | None = None
    unit: Annotated[str, PlainValidator(_unit)] | None = None
    to: _Number | None = None
    at_most: _Number | None = None
    at_least: _Number | None = None
    value: Literal["base", "zero"] | None = None
    store: Line | None = None
    donor: Name | None = None
    read_at: Literal["prompt_end", "persona_end"] | None = None
    positions: Annotated[str, PlainValidator(_position)] | None = None
    during: Literal["both", "prefill", "decoding"] = "both"
    stream: Annotated[str, PlainValidator(_stream)] = "resid"
    personas: _Several | None = None
    gate: GateSpec | None = None

    @property
    def operator(self) -> str:
        """Which of the operators it is."""
        return next(name for name in OPERATOR_KEYS if getattr(self, name) is not None)

    @property
    def path(self) -> str:
        """The file of directions, or the store of a patch."""
        return str(getattr(self, self.operator))

    @property
    def position(self) -> str:
        """The tokens at which it acts, in the phase that it is for."""
        rule = self.positions or ("prompt_end" if self.operator in ("swap", "patch") else "newest")
        return rule if self.during == "both" else DURING[self.during].get(rule, rule)

    @property
    def names(self) -> tuple[str, ...]:
        """The directions that it takes."""
        return self.directions or ((self.direction,) if self.direction else ())

    def is_for(self, persona: str) -> bool:
        """Whether it is run with the prompts of this persona."""
        return self.personas is None or persona in self.personas
