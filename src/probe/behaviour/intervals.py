"""Intervals for proportions, means and paired differences. Knows scores and case ids; knows no persona or metric."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy import stats
from scipy.special import stdtrit

from probe.values import Estimate

Z = float(stats.norm.ppf(0.975))
"""Standard normal quantile of a 95 % interval; every interval here is at 95 %."""

ROUNDING = 1e-12
"""Differences below this part of what was subtracted are rounding, not differences."""

NOTHING = "undefined: no cell qualifies"
ONE_CASE = "one case: no interval"


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927); ``n`` may be an effective, fractional number."""
    p = successes / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low = 0.0 if successes == 0 else max(0.0, float(centre - half))
    return low, 1.0 if successes == n else min(1.0, float(centre + half))


def proportion(score: Float[np.ndarray, " row"], case: np.ndarray) -> Estimate:
    """Share of ones among the rows that are not NaN, with Wilson's interval.

    Where a case stands in several rows (conditions), ``n`` in the interval is replaced by the effective number of
    rows, p (1 - p) / SE^2 with the case-clustered SE, never more than the rows; if p is 0 or 1, which shows no SE, by
    the number of cases.
    """
    kept = ~np.isnan(score)
    x, (n_cases, member) = score[kept], _cases(case[kept])
    n, k = len(x), float(x.sum())
    if n == 0:
        return Estimate(None, note=NOTHING)
    counts = {"k": k, "n": float(n), "cases": float(n_cases)}
    if n_cases == n:
        low, high = wilson(k, n)
        return Estimate(k / n, low, high, n, counts, "Wilson")
    p = k / n
    if k in (0, n) or n_cases < 2:
        effective = float(n_cases)
    else:  # no variance at all, where every case has the same share, is the limit of little: all rows count
        effective = p * (1 - p) / max(_clustered_variance(x, member, n_cases), p * (1 - p) / n)
    low, high = wilson(p * effective, effective)
    counts["effective"] = effective
    return Estimate(p, low, high, n, counts, f"Wilson at the effective n of {effective:.0f} (rows cluster by case)")


def mean(score: Float[np.ndarray, " row"], case: np.ndarray) -> Estimate:
    """Mean of the rows that are not NaN, with a t interval whose SE is clustered by case."""
    kept = ~np.isnan(score)
    x, (n_cases, member) = score[kept], _cases(case[kept])
    if len(x) == 0:
        return Estimate(None, note=NOTHING)
    counts = {"cases": float(n_cases)}
    if not np.isfinite(x).all():
        infinite = int((~np.isfinite(x)).sum())
        return Estimate(None, n=len(x), counts=counts | {"infinite": infinite}, note=f"undefined: {infinite} infinite")
    value = float(x.mean())
    if n_cases < 2:
        return Estimate(value, n=len(x), counts=counts, note=ONE_CASE)
    half = float(stdtrit(n_cases - 1, 0.975)) * float(np.sqrt(_clustered_variance(x, member, n_cases)))
    return Estimate(value, value - half, value + half, len(x), counts, "t, SE clustered by case")


def agresti_min(b: int, c: int, n: int) -> tuple[float, float]:
    """Adjusted Wald interval of a difference of paired proportions, (b - c) / n.

    ``b`` pairs are 1 in the first arm only, ``c`` in the second only. One half is added to each cell of the 2 x 2
    table (Agresti & Min 2005), so the interval is centred on the shrunken difference and has width without
    discordant pairs.
    """
    b2, c2, n2 = b + 0.5, c + 0.5, n + 2
    centre = (b2 - c2) / n2
    half = Z * np.sqrt(b2 + c2 - (b2 - c2) ** 2 / n2) / n2
    return max(-1.0, float(centre - half)), min(1.0, float(centre + half))


def _cases(case: np.ndarray) -> tuple[int, Int[np.ndarray, " row"]]:
    names, member = np.unique(case, return_inverse=True)
    return len(names), member


def _clustered_variance(x: Float[np.ndarray, " row"], member: Int[np.ndarray, " row"], n_cases: int) -> float:
    """Variance of the mean of ``x`` from residual sums per case, with the factor G / (G - 1)."""
    if n_cases < 2:
        return 0.0
    sums = np.bincount(member, weights=x - x.mean(), minlength=n_cases)
    return float(n_cases / (n_cases - 1) * (sums**2).sum() / len(x) ** 2)
