"""Edits of a forward pass, as values. Knows arrays; knows no model and no tensor library."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from probe.values.canonical import canonical_json
from probe.values.errors import ProbeError
from probe.values.sites import STREAMS

OPERATORS = ("add", "ablate", "set", "cap", "patch")
"""``add`` a vector; ``ablate`` a subspace; ``set`` the coordinates in one; ``cap`` them from above; ``patch``: replace
the whole vector."""

EDIT_POSITIONS = ("all", "prompt", "response", "prompt_end", "persona_end", "persona", "case", "newest")
"""At which tokens an intervention acts. ``prompt`` and ``response`` are all tokens of one; ``response`` begins with
the first generated token, and with what is fed in its place. ``newest`` is ``prompt_end`` and ``response``: at every
step the token from which the next one is chosen. ``persona`` are the tokens that overlap the persona's text, up to
``persona_end``; ``case`` those wholly inside the case's, as for ``case_mean``; the rest are single tokens, as for
sites."""

_ORTHONORMAL = 1e-4
_TAKES = {
    "add": ("vector",),
    "patch": ("vector",),
    "ablate": ("basis",),
    "set": ("basis", "coordinates"),
    "cap": ("basis", "coordinates"),
}


@dataclass(frozen=True, eq=False)
class Gate:
    """The condition of an edit: it acts at a token only where ``x . vector > above``.

    ``x`` is the stream at the place of the edit, before it; ``vector`` ``[width]`` and ``above`` are in units of the
    stream. The opposite of both asks for ``x . vector < above``.

    Raises:
        ProbeError: a value is not finite.
    """

    vector: Float[np.ndarray, " width"]
    above: float

    def __post_init__(self) -> None:
        if not np.isfinite(self.vector).all() or not np.isfinite(self.above):
            raise ProbeError("a gate's direction and threshold must be finite, and these are not; mend them")


@dataclass(frozen=True, eq=False)
class Intervention:
    """An operator on one stream at one layer, at the tokens of a position rule, during a whole pass.

    ``vector`` ``[width]`` is added (``add``) or put in place (``patch``), in units of the stream; added ``relative`` it
    is in units of the stream's own norm at each token, ``x + |x| vector``. ``basis`` ``[k width]`` has orthonormal
    rows: ``ablate`` removes their span, ``set`` gives it the ``coordinates`` ``[k]``, ``cap`` lowers to them what is
    above. ``layer`` counts as in :class:`probe.values.Site`. With a ``gate`` it acts only at tokens that meet it.

    Raises:
        ProbeError: an unknown operator or position, or arrays that the operator does not take.
    """

    layer: int
    operator: str
    vector: Float[np.ndarray, " width"] | None = None
    basis: Float[np.ndarray, "k width"] | None = None
    coordinates: Float[np.ndarray, " k"] | None = None
    position: str = "all"
    stream: str = "resid"
    relative: bool = False
    gate: Gate | None = None

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise ProbeError(f"an intervention's operator is one of {', '.join(OPERATORS)}, found {self.operator!r}")
        if self.position not in EDIT_POSITIONS:
            raise ProbeError(f"an intervention acts at {', '.join(EDIT_POSITIONS)}, found {self.position!r}")
        if self.stream not in STREAMS:
            raise ProbeError(f"an intervention acts on a stream ({', '.join(STREAMS)}), found {self.stream!r}")
        if self.relative and self.operator != "add":
            raise ProbeError(f"only what is added can be relative to the stream's norm, found {self.operator!r}")
        given = tuple(name for name in ("vector", "basis", "coordinates") if getattr(self, name) is not None)
        if given != _TAKES[self.operator]:
            raise ProbeError(
                f"the operator {self.operator!r} takes {' and '.join(_TAKES[self.operator])}, "
                f"found {' and '.join(given) or 'nothing'}; give just that"
            )
        for name in given:
            if not np.isfinite(getattr(self, name)).all():
                raise ProbeError(f"an intervention's {name} must be finite, and this one is not; mend it")
        if self.basis is not None:
            off = float(np.abs(self.basis @ self.basis.T - np.eye(len(self.basis))).max(initial=0.0))
            if off > _ORTHONORMAL:
                raise ProbeError(
                    f"the rows of an intervention's basis must be orthonormal, and these are off by {off:.2g}; "
                    "take the rows of Q from numpy.linalg.qr(basis.T)"
                )
            if self.coordinates is not None and len(self.coordinates) != len(self.basis):
                raise ProbeError(
                    f"{len(self.basis)} basis vectors take as many coordinates, found {len(self.coordinates)}; "
                    "give one for each row"
                )
        if self.gate is not None and len(self.gate.vector) != self.width:
            raise ProbeError(
                f"a gate reads the stream that is edited, {self.width} wide, and its direction has "
                f"{len(self.gate.vector)} numbers; give one of that width"
            )

    @property
    def width(self) -> int:
        """The width of the stream that it edits."""
        array = self.vector if self.basis is None else self.basis
        assert array is not None
        return int(array.shape[-1])

    @cached_property
    def sha256(self) -> str:
        """The hash of all that changes numbers: operator, place, gate, and arrays as float32."""
        where = [self.operator, self.stream, self.layer, self.position, self.relative]
        gate = (None, None) if self.gate is None else (self.gate.vector, np.array([self.gate.above]))
        return hash_of(where, self.vector, self.basis, self.coordinates, *gate)


def hash_of(plain: object, *arrays: np.ndarray | None) -> str:
    """Hex sha256 of a plain JSON value and of the shapes and float32 values of arrays, in their order."""
    digest = hashlib.sha256(canonical_json(plain).encode())
    for array in arrays:
        digest.update(canonical_json(None if array is None else list(array.shape)).encode())
        if array is not None:
            digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
    return digest.hexdigest()
