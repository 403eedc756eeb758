"""Geometry of lines that are each the mean over many cases. Knows sums over blocks of case families; knows no rows.

Where every row was added up, a block of families takes the place of a family. Sums of shifts are linear: the sum of
the paired shifts of a block's cases is the difference of two sums over the same cases, and a product of two blocks is
one of different families. Where the arms of a block have *not* the same cases (a site that some answers lack), the
difference is one of means, unpaired, and is told to be.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float

from probe.mechanism.activations import LineSums, SiteRows
from probe.mechanism.geometry.arms import ROUNDING, ShiftRows
from probe.mechanism.geometry.products import Products, cross_products
from probe.mechanism.geometry.views import VIEWS, Metric, leaving_out_largest, of_its_own, powered, shrunk_by
from probe.mechanism.splits import fold_of
from probe.values.sums import Sums

PROJECTED = "_projected"
"""What the name of a view ends in whose second moments are those of a random projection."""


def sized(rows: ShiftRows, lines: LineSums) -> ShiftRows:
    """The same shifts, with the number of cases behind each, and a note where the arms' cases differ."""
    n_arms, n = len(rows.arms), len(rows.case)
    known: dict[frozenset[str], int] = {}
    codes = np.array([known.setdefault(cases, len(known)) for cases in lines.cases])
    size, uneven = np.zeros(n), 0
    for at in range(n):
        of_arms = rows.weights[np.arange(n_arms) * n + at].indices
        own = np.union1d(of_arms, rows.base_weights[[at]].indices)
        size[at] = lines.sums.n[own].min()
        uneven += len(np.unique(codes[own])) > 1
    told = [f"not paired in {uneven} of {n} blocks, where the arms have not the same cases: means are compared there"]
    told = told if uneven else []
    if n < (most := max(rows.paired.values(), default=0)):
        told.append(f"{n} of {most} blocks have the site in every arm")
    return replace(rows, size=size, told="; ".join(told))


def views_of(lines: LineSums) -> tuple[tuple[str, str], ...]:
    """Every view that the sums allow, with the name that it has there."""
    named = {view: view for view in VIEWS}
    if lines.sums.axes is not None:
        named["whitened"] += PROJECTED
    if not lines.sums.products.shape[-1]:
        del named["whitened"]
    return tuple(named.items())


def products_of_lines(
    view: str, rows: ShiftRows, site: SiteRows, shifts: Float[np.ndarray, "arm case d_model"], seed: int
) -> Products | None:
    """As :func:`probe.mechanism.geometry.views.products_in`, from the sums at one site."""
    assert site.lines is not None
    base, square = rows.base_of(site.x), base_squares(rows, site)
    if VIEWS[view] is None:
        return cross_products(shifts, base, rows.family, size=rows.size, square=square.sum(1))
    if len(set(rows.family.tolist())) < 2:
        return None
    half = fold_of(rows.family, 2, seed)
    metrics = [_metric(view, _base(rows, site.lines, half != one)) for one in (0, 1)]
    first, second = metrics
    if first is None or second is None:
        return None
    order = np.concatenate([np.flatnonzero(half == one) for one in (0, 1)])
    whole = np.concatenate([shifts, base[None]])
    both = np.concatenate([metric(whole[:, half == one]) for one, metric in enumerate((first, second))], axis=1)
    of, size = (rows.family[order], half[order]), rows.sizes[order]
    if view == "whitened":  # in units of its own: the base's length is not asked
        return of_its_own(cross_products(both[:-1], both[-1], *of, size=size))
    # This metric leaves dimensions out, of squares as of vectors.
    kept = np.concatenate([metric(square[half == one]).sum(-1) for one, metric in enumerate((first, second))])
    return cross_products(both[:-1], both[-1], *of, size=size, square=kept)


def base_squares(rows: ShiftRows, site: SiteRows) -> Float[np.ndarray, "case d_model"]:
    """The mean over the cases behind each "case" of the base's squared residual, dimension by dimension.

    Of a base of several personas or conditions it holds the variance over cases of single rows, which is no less than
    that of their mean.
    """
    assert site.lines is not None
    variances = site.lines.sums.squares / site.lines.sums.n[:, None]
    return np.asarray(rows.base_of(site.x) ** 2 + rows.base_weights @ variances)


def _base(rows: ShiftRows, lines: LineSums, kept: Bool[np.ndarray, " case"]) -> Sums:
    """The base's sums over some cases, as one group.

    Of a base of several personas or conditions these are the sums of its single rows: the mean over its kinds, within
    each. What its mean over them varies by was not kept.
    """
    own = np.unique(rows.base_weights[np.flatnonzero(kept)].indices)
    into = np.unique(lines.kind[own], return_inverse=True)[1]
    by_kind = lines.sums.take(own).merged(into)
    return Sums(**{name: array.mean(0, keepdims=True) for name, array in vars(by_kind).items()})


def _metric(view: str, base: Sums) -> Metric | None:
    """The metric of a fitted view; None where the base does not vary, or is no more than two cases."""
    n, variance = float(base.n[0]), base.squares[0] / base.n[0]
    if n <= 2 or variance.sum() <= ROUNDING**2 * ((base.mean[0] ** 2).sum() + variance.sum()):
        return None
    if view == "without_largest":
        return leaving_out_largest(variance)
    whiten = whitening_of(base)
    return lambda x: whiten(base.inside(x))


def whitening_of(group: Sums, power: float = -0.5) -> Metric:
    """Multiply by a power of the covariance of one group, shrunk as by Ledoit and Wolf (2004), in its coordinates."""
    n, covariance = float(group.n[0]), group.products[0] / group.n[0]
    variances, axes = np.linalg.eigh(covariance)
    kept = variances > variances.max() * 1e-10
    squares = float((covariance**2).sum())
    share = shrunk_by(n, len(covariance), float(np.trace(covariance)), squares, float(group.fourths[0]) / n)
    return powered(variances[kept], axes[:, kept].T, share, power)
