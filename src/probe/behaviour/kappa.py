"""Agreement of two labellings beyond chance. Knows codes and cases; knows no label's meaning and no judge."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from probe.values import Estimate


def kappa_of(first: Int[np.ndarray, " row"], second: Int[np.ndarray, " row"], case: np.ndarray) -> Estimate:
    """Cohen's kappa of two labellings of the same rows, with a t interval clustered by case (delta method).

    kappa = (p_o - p_e) / (1 - p_e); undefined where both labellings use one and the same label throughout (p_e = 1).
    The linearised row contributions, whose mean square is the large-sample variance of Fleiss, Cohen and Everitt
    (1969), are summed within cases; with one row per case the standard error is theirs times sqrt(G / (G - 1)).
    """
    n, size = len(first), int(max(first.max(), second.max())) + 1
    table = np.zeros((size, size))
    np.add.at(table, (first, second), 1.0 / n)
    rows, columns = table.sum(1), table.sum(0)
    observed, expected = float(np.trace(table)), float(rows @ columns)
    counts = {"k": float((first == second).sum()), "observed": observed, "expected": expected}
    if expected > 1 - 1e-12:
        return Estimate(None, n=n, counts=counts, note="undefined: both use one and the same label throughout")
    kappa = (observed - expected) / (1 - expected)
    names, member = np.unique(case, return_inverse=True)
    if len(names) < 2:
        return Estimate(kappa, n=n, counts=counts, note="one case: no interval")
    score = _influence(first, second, rows, columns, kappa) / (1 - expected)
    sums = np.bincount(member, weights=score - score.mean())
    spread = float(np.sqrt(len(names) / (len(names) - 1) * (sums**2).sum())) / n
    half = float(stats.t.ppf(0.975, len(names) - 1)) * spread
    return Estimate(kappa, kappa - half, min(1.0, kappa + half), n, counts, "delta method, t, SE clustered by case")


def _influence(
    first: np.ndarray, second: np.ndarray, rows: np.ndarray, columns: np.ndarray, kappa: float
) -> Float[np.ndarray, " row"]:
    """Derivative of the numerator minus kappa times that of the denominator, per row."""
    chance = columns[first] + rows[second]
    return np.asarray((first == second) - (1 - kappa) * chance)
