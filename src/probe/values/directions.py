"""A direction in the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probe.values.sites import Site


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector at one site, in units of the residual stream; its sign points from the base towards the persona.

    ``fitted_on`` names the case families that it was fitted on: judging it on one of them is refused.
    """

    site: Site
    vector: Float[np.ndarray, " d_model"]
    persona: str
    base: str
    n_cases: int
    fitted_on: frozenset[str] = frozenset()
