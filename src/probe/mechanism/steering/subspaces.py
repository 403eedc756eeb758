"""How much of a known effect an estimated subspace finds, when only it is exchanged. Knows arrays; knows no model.

Exchanging span(Q) of a persona's residual for the base's tells what is *used* from what can only be *decoded*: a
subspace may name every persona and move nothing (Geiger et al. 2022, interchange interventions).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg import subspace_angles

from probe.mechanism.relation.verdicts import fieller
from probe.values import Estimate, ProbeError


@dataclass(frozen=True)
class SubspaceScore:
    """An estimated subspace against a known one, or against the whole vector where none is known.

    ``share``: effect of exchanging its span over that of exchanging the known one (1: it finds all of it).
    ``complement``: effect of exchanging all but its span, over the same (0: nothing of the effect is left outside).
    ``cosines``: of the principal angles with the known subspace, largest first; empty without one.
    """

    share: Estimate
    complement: Estimate
    cosines: tuple[float, ...] = ()


def score_subspace(
    swapped: Float[np.ndarray, " case"],
    complement: Float[np.ndarray, " case"],
    known: Float[np.ndarray, " case"],
    none: Float[np.ndarray, " case"],
    family: np.ndarray,
    *,
    cosines: tuple[float, ...] = (),
) -> SubspaceScore:
    """Ratios of mean effects (Fieller sets, clustered by family) of one outcome, case by case.

    ``swapped``, ``complement``, ``known``: after the estimated span, all but it, and the known span (or the whole
    vector) was exchanged in the unprompted run; ``none``: that run itself. Undefined where the known exchange moves
    nothing.
    """
    whole = known - none
    return SubspaceScore(
        fieller(swapped - none, whole, family), fieller(complement - none, whole, family), tuple(cosines)
    )


def principal_cosines(one: Float[np.ndarray, "k width"], other: Float[np.ndarray, "m width"]) -> tuple[float, ...]:
    """Cosines of the principal angles between two row spaces, largest first: min(k, m) of them.

    Raises:
        ProbeError: the widths differ, or a space has no dimension.
    """
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or not len(one) or not len(other):
        raise ProbeError(
            f"principal angles are between two sets of rows of one width, found {one.shape} and {other.shape}"
        )
    return tuple(float(value) for value in np.sort(np.cos(subspace_angles(one.T, other.T)))[::-1])


def exchanged(
    base: Float[np.ndarray, "*rows width"], donor: Float[np.ndarray, "*rows width"], q: Float[np.ndarray, "k width"]
) -> Float[np.ndarray, "*rows width"]:
    """The base's vectors with the donor's component in the span of the orthonormal rows of ``q``."""
    return np.asarray(base + (donor - base) @ q.T @ q)
