"""Directions that a persona's direction has to beat at equal dose. Knows residuals of base cases; knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float

from probe.values import ProbeError

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "none": "no persona",
        "prompted": "prompted",
        "reworded": "reworded prompt",
        "steered": "steered",
        "ablated": "prompted, own direction ablated",
        "zeroed": "prompted, own direction set to 0",
        "zeroed_base": "no persona, the direction set to 0",
        "isotropic": "random direction",
        "covariance": "random, drawn like the cases",
        "base_split": "random split of base cases",
        "other_persona": "another persona's direction",
        "nonsense": "the nonsense persona's direction",
        "label_contrast": "label contrast",
    }
)
"""Every kind of arm, and how it is called."""

RANDOM = ("isotropic", "covariance")
"""Kinds of control that are drawn many times."""

CONTROLS = (*RANDOM, "base_split", "other_persona", "nonsense", "label_contrast")
"""Kinds of arm that a steered arm is compared with, each at its own equal dose."""


def isotropic(n: int, width: int, rng: np.random.Generator) -> Float[np.ndarray, "draw width"]:
    """Unit vectors, every direction equally likely."""
    return _units(rng.standard_normal((n, width)))


def covariance_drawn(
    n: int, x: Float[np.ndarray, "row width"], rng: np.random.Generator
) -> Float[np.ndarray, "draw width"]:
    """Unit vectors of draws from a normal distribution with the covariance of these residuals: where cases differ."""
    centred = x - x.mean(0)
    return _units(rng.standard_normal((n, len(x))) @ centred)


def base_split(
    x: Float[np.ndarray, "row width"], family: np.ndarray, n: int, rng: np.random.Generator
) -> Float[np.ndarray, "draw width"]:
    """Unit vectors of differences between the means of two random halves of the base's case families.

    What a difference in means finds where there is no persona.

    Raises:
        ProbeError: there are fewer than two families.
    """
    names, member = np.unique(family.astype(str), return_inverse=True)
    if len(names) < 2:
        raise ProbeError(f"a random split needs two case families at least, found {len(names)}; capture more cases")
    drawn = []
    for _ in range(n):
        half = np.zeros(len(names), dtype=bool)
        half[rng.permutation(len(names))[: len(names) // 2]] = True
        drawn.append(x[half[member]].mean(0) - x[~half[member]].mean(0))
    return _units(np.array(drawn))


def label_contrast(
    x: Float[np.ndarray, "row width"], score: Float[np.ndarray, " row"], *, sign: float = 1.0
) -> Float[np.ndarray, " width"]:
    """The unit vector from base cases with a low score to those with a high one (their means, split at the median).

    With the expected urgency as the score it pushes towards the most urgent label; ``sign`` is that of the persona's
    own effect. A persona's direction that does no better at equal dose does no more than that.

    Raises:
        ProbeError: every case has the same score.
    """
    middle = float(np.median(score))
    high: Bool[np.ndarray, " row"] = score > middle
    if not high.any() or high.all():
        raise ProbeError("a label contrast needs base cases whose scores differ, and all of these have the same")
    return np.asarray(_units((x[high].mean(0) - x[~high].mean(0))[None])[0] * np.sign(sign))


def drawn(
    x: Float[np.ndarray, "row width"], family: np.ndarray, *, n_random: int, n_splits: int, rng: np.random.Generator
) -> Iterator[tuple[str, Float[np.ndarray, "draw width"]]]:
    """The random controls at one site, by kind: :func:`isotropic`, :func:`covariance_drawn`, :func:`base_split`."""
    yield "isotropic", isotropic(n_random, x.shape[1], rng)
    yield "covariance", covariance_drawn(n_random, x, rng)
    yield "base_split", base_split(x, family, n_splits, rng)


def _units(vectors: Float[np.ndarray, "draw width"]) -> Float[np.ndarray, "draw width"]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise ProbeError("a direction has a length, and the residuals of these cases do not differ")
    return np.asarray(vectors / lengths)
