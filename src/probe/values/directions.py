"""A direction in the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from probe.values.sites import Site


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector at one site, in units of the residual stream; its sign points from the base towards the persona.

    Its length is the distance between the two mean residuals along it, whatever made it, so that adding it once moves
    the base's mean as far as the persona's lies in that direction. ``fitted_on`` names the case families that it was
    fitted on, and ``cases`` their cases: judging it on one of these families is refused. ``maker`` names the function
    that made it. ``provenance`` holds plain values: which model, store, split and versions.
    """

    site: Site
    vector: Float[np.ndarray, " d_model"]
    persona: str
    base: str
    n_cases: int
    fitted_on: frozenset[str] = frozenset()
    cases: frozenset[str] = frozenset()
    maker: str = ""
    provenance: Mapping[str, str | int] = field(default_factory=dict)
