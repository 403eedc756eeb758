"""Counts, means and central sums of powers of groups of rows, which add up. Knows arrays; knows no case and no store.

Those of any union of groups follow without cancellation (Chan, Golub and LeVeque 1983). All of it is float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class Sums:
    """Of each of some groups of rows at one site: how many, their mean, and central sums of powers.

    ``squares`` are the sums of the squared departures from the mean, dimension by dimension. With y the departures in
    the coordinates of the second moments (:func:`projection`, or the stream's own), ``products`` are the sums of
    ``y y'``, ``cubes`` those of ``|y|^2 y`` and ``fourths`` those of ``|y|^4``, which shrinkage needs. float64.
    """

    n: Float[np.ndarray, " group"]
    mean: Float[np.ndarray, "group width"]
    squares: Float[np.ndarray, "group width"]
    products: Float[np.ndarray, "group axis axis"]
    cubes: Float[np.ndarray, "group axis"]
    fourths: Float[np.ndarray, " group"]

    @property
    def axes(self) -> Float[np.ndarray, "axis width"] | None:
        """What takes a vector into the coordinates of the second moments; None where these are the stream's own."""
        k, width = self.products.shape[-1], self.mean.shape[-1]
        return None if k == width else projection(width, k)

    def inside(self, x: Float[np.ndarray, "*many width"]) -> Float[np.ndarray, "*many axis"]:
        """Vectors in the coordinates of the second moments."""
        axes = self.axes
        return x if axes is None else np.asarray(x @ axes.T)

    def take(self, groups: np.ndarray) -> Sums:
        """Those of some groups, in the order given."""
        return Sums(**{name: array[groups] for name, array in vars(self).items()})

    def merged(self, into: Int[np.ndarray, " group"]) -> Sums:
        """The sums of unions of groups: group i goes to ``into[i]``, 0, 1, ...; added in the order of the groups."""
        found = [self._union(np.flatnonzero(into == one)) for one in range(int(into.max(initial=-1)) + 1)]
        return Sums(**{name: np.stack([one[name] for one in found]) for name in vars(self)})

    def _union(self, members: np.ndarray) -> dict[str, np.ndarray]:
        own = self.take(members)
        n = own.n.sum()
        mean = (own.n[:, None] * own.mean).sum(0) / n
        apart = own.mean - mean
        at, size = own.inside(apart), own.n[:, None]
        lengths, traces = (at**2).sum(1), np.einsum("gaa->g", own.products)
        turned = np.einsum("gab,gb->ga", own.products, at)
        cubes = own.cubes + at * traces[:, None] + 2 * turned + size * lengths[:, None] * at
        fourths = own.fourths + 4 * (at * turned).sum(1) + own.n * lengths**2
        fourths += 4 * (own.cubes * at).sum(1) + 2 * traces * lengths
        return {
            "n": np.asarray(n),
            "mean": mean,
            "squares": (own.squares + size * apart**2).sum(0),
            "products": own.products.sum(0) + (size * at).T @ at,
            "cubes": cubes.sum(0),
            "fourths": np.asarray(fourths.sum()),
        }


def sums_of(x: Float[np.ndarray, "row width"], group: Int[np.ndarray, " row"], axes: int) -> Sums:
    """The sums of rows over their groups 0, 1, ..., second moments in ``axes`` dimensions."""
    wide = x.astype(np.float64)
    found = []
    for one in range(int(group.max(initial=-1)) + 1):
        rows = wide[group == one]
        mean = rows.mean(0)
        apart = rows - mean
        y = apart if axes == x.shape[1] else apart @ projection(x.shape[1], axes).T
        lengths = (y**2).sum(1)
        powers = {"products": y.T @ y, "cubes": lengths @ y, "fourths": np.asarray((lengths**2).sum())}
        found.append({"n": np.asarray(float(len(rows))), "mean": mean, "squares": (apart**2).sum(0), **powers})
    return Sums(**{name: np.stack([one[name] for one in found]) for name in found[0]})


@lru_cache(maxsize=8)
def projection(width: int, axes: int) -> Float[np.ndarray, "axis width"]:
    """Random signs over the root of ``axes`` (Achlioptas 2003): lengths are kept on average. The same everywhere.

    The signs are the bits of SHAKE-256, highest first, of the text ``persona-acts projection <axes> x <width>``.
    """
    told = f"persona-acts projection {axes} x {width}".encode()
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(told).digest(-(-axes * width // 8)), np.uint8))
    signs = 1.0 - 2.0 * bits[: axes * width].reshape(axes, width)
    return np.asarray(signs / np.sqrt(max(axes, 1)))


def stacked(parts: Sequence[Sums]) -> Sums:
    """The groups of several sums, one after the other."""
    return Sums(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})
