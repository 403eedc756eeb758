"""Ways of measuring length and angle in the residual stream. Knows base residuals of training cases; no persona.

A few dimensions of the residual stream can be a hundred times larger than all others and then decide every plain norm
and cosine. So each figure is given three times: raw; without the three dimensions of largest variance; and whitened by
the covariance of the base's residuals over cases. The last two are fitted on other case families than they measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from probe.mechanism.geometry.arms import ROUNDING
from probe.mechanism.geometry.products import Products, cross_products
from probe.mechanism.splits import fold_of

LARGEST = 3
"""Dimensions of largest variance that the second view leaves out."""

Metric: TypeAlias = Callable[[Float[np.ndarray, "*many d_model"]], Float[np.ndarray, "*many d"]]
"""A linear map after which plain inner products are those of the metric."""

Fit: TypeAlias = Callable[[Float[np.ndarray, "case d_model"]], Metric | None]
"""Base residuals of training cases -> the metric; None where they cannot define it."""


def without_largest(base: Float[np.ndarray, "case d_model"]) -> Metric | None:
    """Leave out the three dimensions in which the base varies most over cases; None where it varies in fewer."""
    return leaving_out_largest(base.var(0)) if _varies(base) else None


def leaving_out_largest(variance: Float[np.ndarray, " d_model"]) -> Metric | None:
    """Leave out the three dimensions of largest variance; None where no others vary."""
    if np.count_nonzero(variance) <= LARGEST:
        return None
    kept = np.sort(np.argsort(-variance, kind="stable")[LARGEST:])
    return lambda x: x[..., kept]


def whitened(base: Float[np.ndarray, "case d_model"]) -> Metric | None:
    """Multiply by the inverse root of the base's covariance over cases, shrunk as by Ledoit and Wolf (2004).

    The product is then that of Mahalanobis, in standard deviations. None below three cases or without variance.
    """
    return whitening(base - base.mean(0), shrinkage_of(base)) if _varies(base) else None


def _varies(base: Float[np.ndarray, "case d_model"]) -> bool:
    """Is there more variance over at least three cases than rounding makes?"""
    return len(base) > 2 and bool(base.var(0).sum() > ROUNDING**2 * (base**2).sum(1).mean())


def whitening(
    rows: Float[np.ndarray, "case d_model"], shrinkage: float, degrees: int | None = None, power: float = -0.5
) -> Metric:
    """Multiply by a power of ``(1 - a) S + a (tr S / d) I`` with ``S = rows' rows / degrees``; the rows are centred.

    Never forms the square matrix: S has the rank of the rows, and outside of their span the metric is a number.
    """
    n, d = rows.shape
    squares, vectors = np.linalg.eigh(rows @ rows.T if n < d else rows.T @ rows)
    kept = squares > squares.max() * 1e-10
    axes = (rows.T @ vectors[:, kept] / np.sqrt(squares[kept])).T if n < d else vectors[:, kept].T
    return powered(squares[kept] / (degrees or n), axes, shrinkage, power)


def powered(
    spectrum: Float[np.ndarray, " axis"], axes: Float[np.ndarray, "axis d_model"], shrinkage: float, power: float = -0.5
) -> Metric:
    """Multiply by a power of ``(1 - a) S + a (tr S / d) I``, given where S is not nil: its variances and their axes."""
    d = axes.shape[1]
    ridge = shrinkage * spectrum.sum() / d
    inside = (1 - shrinkage) * spectrum + ridge
    if ridge <= 0:  # nothing was shrunk: only what varies can be divided by its variance
        return lambda x: (x @ axes.T * inside**power) @ axes
    scale = inside**power - ridge**power
    return lambda x: x * ridge**power + (x @ axes.T * scale) @ axes


def shrinkage_of(rows: Float[np.ndarray, "case d_model"]) -> float:
    """The share ``a`` of the shrinkage of Ledoit and Wolf (2004), as in scikit-learn, at the cost of ``n^2 d``.

    ``sum_jk S_jk^2 = |X X'|^2 / n^2`` and ``sum_jk sum_i x_ij^2 x_ik^2 = sum_i |x_i|^4``: no matrix of d by d.
    """
    x = rows - rows.mean(0)
    n, d = x.shape
    gram = x @ x.T if n <= d else x.T @ x
    lengths = (x**2).sum(1)
    return shrunk_by(float(n), d, lengths.sum() / n, (gram**2).sum() / n**2, (lengths**2).sum() / n)


def shrunk_by(n: float, d: int, trace: float, squares: float, fourth: float) -> float:
    """The same from the trace of S, its sum of squares and the mean of ``|x_i|^4``."""
    mean = trace / d
    noise = (fourth - squares) / (d * n)
    distance = squares / d - mean**2
    return float(min(noise, distance) / distance) if distance > 0 else 1.0


VIEWS: Mapping[str, Fit | None] = MappingProxyType(
    {"raw": None, "without_largest": without_largest, "whitened": whitened}
)
"""Every view with what fits it. In the third, norms are in standard deviations of the base over cases; in the others,
shares of the base's root mean square norm."""


def products_in(
    view: str,
    shifts: Float[np.ndarray, "arm case d_model"],
    base: Float[np.ndarray, "case d_model"],
    family: np.ndarray,
    seed: int = 0,
) -> Products | None:
    """The products of the shifts in one view; None where its metric cannot be fitted.

    A fitted view halves the case families by their hash with ``seed``: the metric of each half is fitted on the other,
    and only families of one half are multiplied.
    """
    fit = VIEWS[view]
    if fit is None:
        return cross_products(shifts, base, family)
    if len(set(family.tolist())) < 2:
        return None
    half = fold_of(family, 2, seed)
    metrics = [fit(base[half != one]) for one in (0, 1)]
    first, second = metrics
    if first is None or second is None:
        return None
    mapped = [np.concatenate([shifts, base[None]])[:, half == one] for one in (0, 1)]
    mapped = [first(mapped[0]), second(mapped[1])]
    both = np.concatenate(mapped, axis=1)
    order = np.concatenate([np.flatnonzero(half == one) for one in (0, 1)])
    found = cross_products(both[:-1], both[-1], family[order], half[order])
    if view != "whitened":
        return found
    return of_its_own(found)


def of_its_own(found: Products) -> Products:
    """Whitened products are in squared standard deviations already: nothing to divide by."""
    return Products(found.products, found.without, 1.0, np.ones(found.n_families), found.n_cases)
