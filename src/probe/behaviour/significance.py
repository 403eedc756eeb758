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
    """McNemar's test where a case has several pairs: ``difference`` is b - c, whole numbers, summed within each case.

    Without an effect every case leans either way equally often. Where fewer than :data:`EXACT_BELOW` cases lean, the
    sum is referred to all its sign changes; else z = (|sum d| - g) / sqrt(sum d^2) with g, half the step between two
    possible sums, as continuity correction. With one pair per case both are :func:`mcnemar`.
    """
    leaning = np.abs(difference[difference != 0]).round().astype(int)
    if len(leaning) == 0:
        return 1.0, "McNemar clustered by case, no case leans either way"
    reached = abs(round(float(difference.sum())))
    if len(leaning) < EXACT_BELOW:
        chances = np.ones(1)  # of every sum of the cases that lean towards the first arm
        for size in leaning:
            chances = (np.pad(chances, (size, 0)) + np.pad(chances, (0, size))) / 2
        sums = 2 * np.arange(len(chances)) - leaning.sum()
        return float(chances[np.abs(sums) >= reached].sum()), "McNemar clustered by case, exact"
    z = max(reached - int(np.gcd.reduce(leaning)), 0) / float(np.sqrt((leaning**2).sum()))
    return float(2 * stats.norm.sf(z)), "McNemar clustered by case, corrected"


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
