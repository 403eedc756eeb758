"""Tests of paired differences and the correction for many of them. Knows counts and differences; knows no metric."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

EXACT_BELOW = 25
"""Below this many discordant pairs McNemar's test is exact, from it on the chi-square is continuity-corrected."""


def mcnemar(b: int, c: int) -> tuple[float, str]:
    """Two-sided p that discordant pairs fall either way equally often, and the name of the test that was used.

    Without a discordant pair p is 1. The continuity-corrected statistic is max(|b - c| - 1, 0)^2 / (b + c).
    """
    n = b + c
    if n == 0:
        return 1.0, "McNemar, no discordant pair"
    if n < EXACT_BELOW:
        return float(stats.binomtest(min(b, c), n, 0.5).pvalue), "McNemar, exact"
    statistic = max(abs(b - c) - 1, 0) ** 2 / n
    return float(stats.chi2.sf(statistic, 1)), "McNemar, corrected"


def mcnemar_clustered(difference: Float[np.ndarray, " case"]) -> tuple[float, str]:
    """McNemar's test where a case has several pairs: ``difference`` is b - c summed within each case.

    z = sum d / sqrt(sum d^2); with one pair per case its square is the uncorrected McNemar statistic.
    """
    scale = float(np.sqrt((difference**2).sum()))
    if scale == 0:
        return 1.0, "McNemar clustered by case, no case leans either way"
    return float(2 * stats.norm.sf(abs(difference.sum()) / scale)), "McNemar clustered by case"


def paired_t(difference: Float[np.ndarray, " case"]) -> tuple[float | None, str]:
    """Two-sided p that the mean per-case difference is nil; None with fewer than two cases.

    Where every difference is nil p is 1; where all are equal and not nil the test is undefined.
    """
    if len(difference) < 2:
        return None, "paired t needs two cases"
    if not difference.any():
        return 1.0, "paired t, no case differs"
    spread = float(difference.std(ddof=1))
    if spread <= 1e-12 * float(np.abs(difference).max()):
        return None, "paired t undefined: every case differs by the same amount"
    t = float(difference.mean()) / (spread / np.sqrt(len(difference)))
    return float(2 * stats.t.sf(abs(t), len(difference) - 1)), "paired t"


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979) of a whole family of p-values, in their order."""
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    stepped = np.minimum(1.0, np.maximum.accumulate(np.asarray(p, dtype=float)[order] * factors))
    adjusted = np.empty(len(p))
    adjusted[order] = stepped
    return [float(value) for value in adjusted]


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's step-up adjustment (1995), the smallest false discovery rate at which each is found."""
    order = np.argsort(p, kind="stable")
    factors = len(p) / np.arange(1, len(p) + 1)
    stepped = np.minimum.accumulate((np.asarray(p, dtype=float)[order] * factors)[::-1])[::-1]
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, stepped)
    return [float(value) for value in adjusted]
