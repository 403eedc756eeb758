"""Inner products of common shifts, free of the bias of noise. Knows shifts and case families; knows no persona.

A mean over n cases is a noisy direction: ``|mean d|^2`` is too large by ``tr(Sigma) / n``, and two means over the same
cases share the noise of their base. ``<E d_p, E d_q>`` is therefore estimated from products of *different case
families* only: ``sum over f != g of <S_pf, S_qg> / sum over f != g of n_f n_g``, with S the sums over a family's n
cases. That is the mean over all ways of taking the two factors from disjoint cases, in closed form: no random halves,
no loss from using half of the cases, and everything that geometry asks (norm, cosine, interaction) is a function of
this one matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse, stats

Statistic: TypeAlias = Callable[[Float[np.ndarray, "*many arm arm"]], np.ndarray]
"""A function of matrices of products, vectorised over leading axes, NaN where it is undefined."""

FEWEST = 3
"""Case families below which nothing is estimated: without one of them there would be no product left."""


@dataclass(frozen=True, eq=False)
class Products:
    """Unbiased inner products of the arms' common shifts, and the same with each case family left out.

    ``products``: estimates of ``<E d_p, E d_q>``; the diagonal may be negative, where a shift is below its noise.
    ``square``: mean square of the base's residual in the same inner product (1 where it has units of its own).
    """

    products: Float[np.ndarray, "arm arm"]
    without: Float[np.ndarray, "family arm arm"]
    square: float
    square_without: Float[np.ndarray, " family"]
    n_cases: int

    @property
    def n_families(self) -> int:
        """How many case families there are."""
        return len(self.without)


def cross_products(
    shifts: Float[np.ndarray, "arm case d"],
    base: Float[np.ndarray, "case d"],
    family: np.ndarray,
    part: Int[np.ndarray, " case"] | None = None,
    *,
    size: Float[np.ndarray, " case"] | None = None,
    square: Float[np.ndarray, " case"] | None = None,
) -> Products:
    """Products of different families, and the leave-one-family-out values in closed form.

    With ``part`` only families of the same part are multiplied (parts that were mapped by different metrics have no
    product); a family lies in one part. Source: ESTIMATORS, Geometry. Where a "case" is the mean over several, ``size``
    is how many, and ``square`` the mean over them of the base's squared length.
    """
    names, member = np.unique(family.astype(str), return_inverse=True)
    size = np.ones(len(family)) if size is None else size
    counts = np.bincount(member, weights=size, minlength=len(names))
    sums = family_sums(shifts * size[:, None], member)
    parts = np.zeros(len(names), dtype=int)
    if part is not None:
        parts[member] = part
    own = np.einsum("fpd,fqd->fpq", sums, sums, optimize=True)
    total, n_inside = np.zeros(sums.shape[1:]), 0.0
    above, below = np.zeros(own.shape[1:]), np.zeros(())
    above_without, below_without = np.empty_like(own), np.empty(len(names))
    for one in np.unique(parts):
        inside = parts == one
        total, n_inside = sums[inside].sum(0), counts[inside].sum()
        above += total @ total.T - own[inside].sum(0)
        below = below + n_inside**2 - (counts[inside] ** 2).sum()
        crossed = sums[inside] @ total.T
        above_without[inside] = 2 * own[inside] - crossed - crossed.transpose(0, 2, 1)
        below_without[inside] = 2 * counts[inside] ** 2 - 2 * counts[inside] * n_inside
    lengths = (base**2).sum(1) if square is None else square
    squares = np.bincount(member, weights=lengths * size, minlength=len(names))
    n = int(size.sum())
    pairs, pairs_without = (np.where(count > 0, count, np.nan) for count in (below, below + below_without))
    with np.errstate(invalid="ignore", divide="ignore"):  # a single family: nothing is left without it
        return Products(
            above / pairs,
            (above + above_without) / pairs_without[:, None, None],
            float(squares.sum() / n) if n else np.nan,
            (squares.sum() - squares) / (n - counts),
            n,
        )


def family_sums(
    shifts: Float[np.ndarray, "*arm case d"], member: Int[np.ndarray, " case"]
) -> Float[np.ndarray, "family *arm d"]:
    """The sum of every arm's shifts over the cases of each family."""
    of_family = sparse.csr_array((np.ones(len(member)), (member, np.arange(len(member)))))
    by_case = np.moveaxis(shifts, -2, 0)
    sums = np.asarray(of_family @ by_case.reshape(len(by_case), -1))
    return sums.reshape(len(sums), *by_case.shape[1:])


def norms(products: Float[np.ndarray, "*many arm arm"]) -> np.ndarray:
    """Squared norms of the common shifts, which may be negative."""
    return np.asarray(np.diagonal(products, axis1=-2, axis2=-1))


def cosines(products: Float[np.ndarray, "*many arm arm"]) -> np.ndarray:
    """Cosines of the common shifts; undefined where the estimate of either squared norm is not positive.

    Nearly unbiased, and not confined to [-1, 1]: noise may carry an estimate past 1.
    """
    squares = norms(products)
    roots = np.sqrt(np.where(squares > 0, squares, np.nan))
    return np.asarray(products / (roots[..., :, None] * roots[..., None, :]))


def centred(products: Float[np.ndarray, "*many arm arm"]) -> np.ndarray:
    """The products after the mean over arms is taken from every arm.

    Centring K arms makes their products sum to nil: the mean cosine of K equally long ones is then -1 / (K - 1).
    """
    k = products.shape[-1]
    centre = np.eye(k) - 1 / k
    return np.asarray(centre @ products @ centre)


def agreement(products: Float[np.ndarray, "*many arm arm"]) -> np.ndarray:
    """Share of the arms' mean squared shift that is common to them: mean product of two arms / mean squared norm.

    1 where all arms shift alike, 0 where their shifts are unrelated, and -1 / (K - 1) after centring, whatever they do.
    """
    k = products.shape[-1]
    trace = norms(products).sum(-1)
    if k < 2:
        return np.full(trace.shape, np.nan)
    return np.asarray((products.sum((-2, -1)) - trace) / (k - 1) / np.where(trace > 0, trace, np.nan))


def jackknifed(
    found: Products, statistic: Statistic, *, relative: bool = False, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A statistic of the products with its jackknife interval over case families: value, low, high.

    ``relative`` divides the products by the base's mean square first. All NaN below three families; the interval alone
    where the statistic is undefined without one of the families.
    """
    whole, without = found.products, found.without
    if relative:
        whole, without = whole / found.square, without / found.square_without[:, None, None]
    value = np.asarray(statistic(whole), dtype=float)
    n = found.n_families
    if n < FEWEST:
        nothing = np.full(value.shape, np.nan)
        return nothing, nothing, nothing
    left_out = np.asarray(statistic(without), dtype=float)
    spread = np.sqrt((n - 1) / n * ((left_out - left_out.mean(0)) ** 2).sum(0))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * spread
    return value, np.asarray(value - half), np.asarray(value + half)
