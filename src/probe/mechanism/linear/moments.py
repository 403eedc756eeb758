"""Counts, sums and products of rows, from which every ridge regression here follows. Knows arrays; knows no label.

A training set is a sum of folds: their moments are computed once and added up, whatever is fitted on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from sklearn.utils.extmath import randomized_svd

CONSTANT = 1e-10
"""A column whose variance over the training rows is this share of its mean square, or less, is left out."""

DIMENSIONS = 512
"""Principal axes in which a wider residual stream may be read."""


@dataclass(frozen=True, eq=False)
class Moments:
    """How many rows, the sums of their columns and of the columns' squares, and their products ``x^T x``.

    Moments of disjoint rows add up. Without ``gram`` (rows fewer than columns) they say only means and spreads. Columns
    should be centred by a common mean beforehand: products of large sums cancel.
    """

    n: int
    x: Float[np.ndarray, " column"]
    square: Float[np.ndarray, " column"]
    gram: Float[np.ndarray, "column column"] | None

    @classmethod
    def of(cls, x: Float[np.ndarray, "row column"], *, products: bool = True) -> Moments:
        """The moments of these rows."""
        return cls(len(x), x.sum(0), np.einsum("rc,rc->c", x, x), x.T @ x if products else None)

    def __add__(self, other: Moments) -> Moments:
        gram = None if self.gram is None or other.gram is None else self.gram + other.gram
        return Moments(self.n + other.n, self.x + other.x, self.square + other.square, gram)

    @property
    def mean(self) -> Float[np.ndarray, " column"]:
        """The means; nil where there is no row."""
        return np.asarray(self.x / max(self.n, 1))

    @property
    def inverse_spread(self) -> Float[np.ndarray, " column"]:
        """1 / standard deviation of each column; 0 for one that does not vary, so that it says nothing."""
        square = self.square / max(self.n, 1)
        variance = square - self.mean**2
        varies = variance > CONSTANT * square
        return np.asarray(np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0.0))

    @property
    def centred(self) -> Float[np.ndarray, "column column"]:
        """The products of the columns less their means, summed over rows."""
        assert self.gram is not None
        return np.asarray(self.gram - self.n * np.outer(self.mean, self.mean))


def standardised(x: Shaped[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
    """Columns less their means, in units of their standard deviations, over all rows: no label has a part in it."""
    wide = np.asarray(x, dtype=np.float64)
    wide = wide - wide.mean(0)
    return np.asarray(wide * Moments.of(wide, products=False).inverse_spread)


def fewer_columns(x: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row axis"]:
    """The same rows in few columns: exactly where rows or columns are few, else in their leading principal axes.

    Ridge knows inner products only: turned axes change nothing. No label has a part in it.
    """
    x = x - x.mean(0)
    if x.shape[1] <= min(DIMENSIONS, len(x)):
        return x
    if len(x) <= DIMENSIONS:
        values, axes = np.linalg.eigh(x @ x.T)
        return np.asarray(axes * np.sqrt(np.maximum(values, 0.0)))
    left, sizes, _ = randomized_svd(x, DIMENSIONS, random_state=0)
    return np.asarray(left * sizes)
