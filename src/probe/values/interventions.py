"""Edits of a forward pass, as values. Knows arrays; knows no model and no tensor library."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from probe.values.canonical import canonical_json
from probe.values.errors import ProbeError

OPERATORS = ("add", "ablate", "set", "patch")
"""``add`` a vector; ``ablate`` a subspace; ``set`` the coordinates in one; ``patch``: replace the whole vector."""

EDIT_POSITIONS = ("all", "prompt", "response", "prompt_end", "persona_end", "persona", "case")
"""At which tokens an intervention acts. ``prompt`` and ``response`` are all tokens of one; ``response`` begins with
the first generated token, and with what is fed in its place. ``persona`` are the tokens that overlap the persona's
text, up to ``persona_end``; ``case`` those wholly inside the case's, as for ``case_mean``; the rest are single tokens,
as for sites."""

_ORTHONORMAL = 1e-4


@dataclass(frozen=True, eq=False)
class Intervention:
    """An operator on one stream at one layer, at the tokens of a position rule, during a whole pass.

    ``vector`` ``[width]`` is added (``add``) or put in place (``patch``), in units of the stream. ``basis``
    ``[k width]`` has orthonormal rows: ``ablate`` removes their span, ``set`` gives it the ``coordinates`` ``[k]``.
    ``layer`` counts as in :class:`probe.values.Site`.

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

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise ProbeError(f"an intervention's operator is one of {', '.join(OPERATORS)}, found {self.operator!r}")
        if self.position not in EDIT_POSITIONS:
            raise ProbeError(f"an intervention acts at {', '.join(EDIT_POSITIONS)}, found {self.position!r}")
        needed = {"add": ("vector",), "patch": ("vector",), "ablate": ("basis",), "set": ("basis", "coordinates")}
        given = tuple(name for name in ("vector", "basis", "coordinates") if getattr(self, name) is not None)
        if given != needed[self.operator]:
            raise ProbeError(
                f"the operator {self.operator!r} takes {' and '.join(needed[self.operator])}, "
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

    @cached_property
    def sha256(self) -> str:
        """The hash by which a condition names this intervention: of its operator, place and arrays as float32."""
        digest = hashlib.sha256(canonical_json([self.operator, self.stream, self.layer, self.position]).encode())
        for array in (self.vector, self.basis, self.coordinates):
            shape = None if array is None else list(array.shape)
            digest.update(canonical_json(shape).encode())
            if array is not None:
                digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
        return digest.hexdigest()
