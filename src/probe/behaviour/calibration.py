"""Does confidence match correctness? Knows confidences, correctness and cases of one arm; knows no persona or table.

Bins are closed on the right, (a, b], the first one [0, b], as in the papers: a confidence of exactly .1 falls into the
first of ten equal-width bins, and so does one that misses .1 by rounding errors only (:data:`DECIMALS`). Equal-mass
bins have the quantiles of the confidences as edges, so that ties stay in one bin; where many confidences are equal
there are fewer bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from probe.values import Estimate

DRAWS = 1000
"""Simulated data sets behind a null band."""

DECIMALS = 12
"""Confidences are binned at this precision: exp(log(.7)) after a softmax is .7 plus or minus an ulp, on either side."""

Bins: TypeAlias = int | Float[np.ndarray, " edge"]
"""A number of equal-width bins, or the inner edges of any bins."""


@dataclass(frozen=True)
class NullBand:
    """What the ECE of a *perfectly calibrated* model with these very confidences would be: mean and 95 % range."""

    mean: float
    low: float
    high: float


def inner_edges(bins: Bins) -> Float[np.ndarray, " edge"]:
    """The inner edges of these bins, rising."""
    return np.arange(1, bins) / bins if isinstance(bins, int) else bins


def equal_mass(confidence: Float[np.ndarray, " row"], n_bins: int) -> Float[np.ndarray, " edge"]:
    """Inner edges of at most ``n_bins`` bins that hold about equally many of these confidences each."""
    rounded = confidence.round(DECIMALS)
    edges = np.unique(np.quantile(rounded, np.arange(1, n_bins) / n_bins, method="inverted_cdf"))
    return np.asarray(edges[edges < rounded.max()])


def bin_of(confidence: Float[np.ndarray, " row"], bins: Bins) -> Int[np.ndarray, " row"]:
    """Index of the bin (a, b] of each confidence; 0 belongs to the first bin."""
    return np.searchsorted(inner_edges(bins).round(DECIMALS), confidence.round(DECIMALS), side="left")


def ece(confidence: Float[np.ndarray, " row"], correct: Float[np.ndarray, " row"], bins: Bins = 10) -> float:
    """Expected calibration error, sum over bins of |sum of (correct - confidence)| / N (Naeini et al. 2015)."""
    return float(_ece_of_gaps((correct - confidence)[None, :], bin_of(confidence, bins))[0])


def classwise_ece(
    probability: Float[np.ndarray, "row label"], label: Int[np.ndarray, " row"], bins: Bins = 10
) -> float:
    """Mean over labels of the ECE of that label's probability against its occurrence (Kull et al. 2019)."""
    occurs = np.eye(probability.shape[1])[label]
    return float(np.mean([ece(p, o, bins) for p, o in zip(probability.T, occurs.T, strict=True)]))


def debiased_ece_squared(
    confidence: Float[np.ndarray, " row"], correct: Float[np.ndarray, " row"], case: np.ndarray, bins: Bins = 10
) -> Estimate:
    """Debiased ECE^2, sum over bins of (S^2 - Q) / (N (n - 1)), with a jackknife interval over cases; may be negative.

    S and Q are the sum and the sum of squares of correct - confidence in a bin, n its rows. Only products of different
    cases enter: where a case has several rows in a bin, Q sums the squares of its sums and n - 1 becomes
    n - (sum over cases of squared row counts) / n. A bin of one case holds no such product; its rows are not counted
    in N. Perfect calibration has the expectation 0, at every n.
    """
    value, left_out = debiased_and_left_out(confidence, correct, case, bins)
    counts = {"cases": float(len(left_out)), "bins": float(len(inner_edges(bins)) + 1)}
    if np.isnan(value):
        return Estimate(None, n=len(confidence), counts=counts, note="undefined: no bin holds two cases")
    return jackknifed(value, left_out, len(confidence), counts)


def debiased_and_left_out(
    confidence: Float[np.ndarray, " row"], correct: Float[np.ndarray, " row"], case: np.ndarray, bins: Bins = 10
) -> tuple[float, Float[np.ndarray, " case"]]:
    """Debiased ECE^2, and what it is without each case in turn (sorted by name); NaN where no bin holds two cases."""
    sums, rows = _bin_sums(confidence, correct, case, bins)
    totals = [sums.sum(0), (sums**2).sum(0), rows.sum(0), (rows**2).sum(0)]
    parts = [sums, sums**2, rows, rows**2]
    return float(_debiased(*totals)), _debiased(*(total - part for total, part in zip(totals, parts, strict=True)))


def jackknifed(value: float, left_out: Float[np.ndarray, " case"], n: int, counts: Mapping[str, float]) -> Estimate:
    """An estimate with the jackknife interval of a statistic, without one where it is undefined without some case."""
    if len(left_out) < 3 or np.isnan(left_out).any():
        return Estimate(value, n=n, counts=counts, note="too few cases for an interval")
    return Estimate(value, *jackknife_interval(value, left_out), n, counts, "jackknife over cases, t")


def jackknife_interval(value: float, left_out: Float[np.ndarray, " case"]) -> tuple[float, float]:
    """95 % t interval of a smooth statistic from its values without each case in turn (Tukey's jackknife)."""
    n = len(left_out)
    spread = np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    half = float(stats.t.ppf(0.975, n - 1) * spread)
    return value - half, value + half


def smooth_ece(confidence: Float[np.ndarray, " row"], correct: Float[np.ndarray, " row"]) -> float:
    """SmoothECE (Blasiok & Nakkiran 2023) by its authors' package relplot: no bins, a bandwidth found from the data."""
    from relplot import smECE

    return float(smECE(confidence, correct.astype(float)))


def has_smooth_ece() -> bool:
    """Is relplot installed?"""
    return find_spec("relplot") is not None


def null_band(
    confidence: Float[np.ndarray, " row"], case: np.ndarray, bins: Bins, rng: np.random.Generator
) -> NullBand:
    """ECE under perfect calibration: correctness drawn from this arm's own confidences.

    Rows of one case share one uniform draw, the most dependent they can be, so the band is not too narrow where a
    case stands under several conditions.
    """
    return band_of(null_draws(confidence, shared_draws(case, rng), bins))


def shared_draws(case: np.ndarray, rng: np.random.Generator) -> Float[np.ndarray, "draw row"]:
    """Uniform numbers for :data:`DRAWS` data sets, one per case and data set, repeated on the rows of the case."""
    _, member = np.unique(case, return_inverse=True)
    return np.asarray(rng.random((DRAWS, int(member.max()) + 1))[:, member])


def null_draws(
    confidence: Float[np.ndarray, " row"], uniform: Float[np.ndarray, "draw row"], bins: Bins
) -> Float[np.ndarray, " draw"]:
    """ECEs of data sets whose rows are correct where ``uniform`` lies below their confidence."""
    return _ece_of_gaps((uniform < confidence) - confidence, bin_of(confidence, bins))


def classwise_null_draws(
    probability: Float[np.ndarray, "row label"], uniform: Float[np.ndarray, "draw row"], bins: Bins
) -> Float[np.ndarray, " draw"]:
    """Classwise ECEs of data sets whose labels are drawn from these very probabilities."""
    upper = probability.cumsum(1)
    total: Float[np.ndarray, " draw"] = np.zeros(len(uniform))
    for label, p in enumerate(probability.T):
        below = uniform < upper[:, label]
        drawn: Bool[np.ndarray, "draw row"] = below if label == 0 else below & (uniform >= upper[:, label - 1])
        total += _ece_of_gaps(drawn - p, bin_of(p, bins))
    return np.asarray(total / probability.shape[1])


def band_of(draws: Float[np.ndarray, " draw"]) -> NullBand:
    """Mean and 95 % range of these ECEs."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return NullBand(float(draws.mean()), float(low), float(high))


def joint_limits(draws: Sequence[Float[np.ndarray, " draw"]]) -> list[float]:
    """For each arm the ECE that *no* arm exceeds in 95 % of studies where all are perfectly calibrated.

    The 95 % quantile of the largest standardised null ECE over the arms, in the units of each: looking at many arms,
    some pass their own band by chance. Arms are drawn independently, which errs on the side of a high limit.
    """
    means, spreads = np.array([d.mean() for d in draws]), np.array([max(d.std(), 1e-12) for d in draws])
    largest = ((np.stack(draws) - means[:, None]) / spreads[:, None]).max(0)
    return [float(limit) for limit in means + np.quantile(largest, 0.95) * spreads]


def _ece_of_gaps(gap: np.ndarray, index: Int[np.ndarray, " row"]) -> Float[np.ndarray, " draw"]:
    return np.asarray(np.abs(gap @ np.eye(int(index.max()) + 1)[index]).sum(1) / gap.shape[1])


def _bin_sums(
    confidence: np.ndarray, correct: np.ndarray, case: np.ndarray, bins: Bins
) -> tuple[Float[np.ndarray, "case bin"], Float[np.ndarray, "case bin"]]:
    """Sum of correct - confidence, and number of rows, of each case in each bin."""
    names, member = np.unique(case, return_inverse=True)
    place = (member, bin_of(confidence, bins))
    sums = np.zeros((len(names), len(inner_edges(bins)) + 1))
    rows = np.zeros_like(sums)
    np.add.at(sums, place, correct - confidence)
    np.add.at(rows, place, 1.0)
    return sums, rows


def _debiased(total: np.ndarray, squares: np.ndarray, n: np.ndarray, n_squares: np.ndarray) -> np.ndarray:
    """Debiased ECE^2 from sums over cases, bins on the last axis; NaN where no bin holds two cases."""
    pairs = n**2 - n_squares
    usable = pairs > 0.5
    term = np.where(usable, (total**2 - squares) * n / np.where(usable, pairs, 1.0), 0.0)
    counted = np.where(usable, n, 0.0).sum(-1)
    return np.asarray(np.where(counted > 0, term.sum(-1) / np.maximum(counted, 1.0), np.nan))
