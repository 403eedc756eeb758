"""Variance components of crossed and nested random factors, by moments. Knows numbers and levels; knows no persona."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int


def henderson(value: Float[np.ndarray, " row"], factors: Mapping[str, Int[np.ndarray, " row"]]) -> dict[str, float]:
    """Variance of each random factor, and of ``residual``, by Henderson's method 1 (1953); estimates may be negative.

    The model is a mean plus one independent random effect per level of every factor plus a residual. For each factor
    the raw sum of squares of its level totals, T = sum over levels of total^2 / n, is set equal to its expectation,
    which is linear in the variances; unbiased for any pattern of missing cells. A nested factor has levels of its own
    in every level of its parent. On balanced data this is the analysis of variance.

    Two factors that cut the rows into the same groups, or one level only, cannot be told apart: pass each partition
    once (see :func:`same_partition`). Where the variances cannot be told apart for another reason all are NaN.
    """
    y, n = value - value.mean(), len(value)
    names = list(factors)
    sizes = {name: np.bincount(levels) for name, levels in factors.items()}
    mean_part = np.array([(sizes[name] ** 2).sum() / n for name in names])
    matrix, squares = np.zeros((len(names) + 1, len(names) + 1)), np.zeros(len(names) + 1)
    for i, name in enumerate(names):
        size = np.maximum(sizes[name], 1)
        squares[i] = (np.bincount(factors[name], weights=y) ** 2 / size).sum()
        matrix[i, :-1] = [_shared(factors[name], factors[other], size) for other in names] - mean_part
        matrix[i, -1] = (sizes[name] > 0).sum() - 1
    squares[-1] = (y**2).sum()
    matrix[-1, :-1], matrix[-1, -1] = n - mean_part, n - 1
    scaled = matrix / np.maximum(np.abs(matrix).max(1, keepdims=True), 1e-300)
    known = np.linalg.matrix_rank(scaled, tol=1e-9) == len(matrix)
    solved = np.linalg.solve(matrix, squares) if known else np.full(len(matrix), np.nan)
    return dict(zip([*names, "residual"], map(float, solved), strict=True))


def levels_of(*parts: np.ndarray) -> Int[np.ndarray, " row"]:
    """Level numbers 0, 1, ... of the combination of these names, row by row."""
    code = np.zeros(len(parts[0]), dtype=np.int64)
    for part in parts:
        _, number = np.unique(part, return_inverse=True)
        _, code = np.unique(code * (number.max(initial=0) + 1) + number, return_inverse=True)
    return code


def same_partition(first: Int[np.ndarray, " row"], second: Int[np.ndarray, " row"]) -> bool:
    """Do two factors cut the rows into the same groups?"""
    together = len(np.unique(levels_of(first, second)))
    return together == len(np.unique(first)) == len(np.unique(second))


def _shared(rows: Int[np.ndarray, " row"], others: Int[np.ndarray, " row"], size: np.ndarray) -> float:
    """Sum over pairs of levels of n_ij^2 / n_i."""
    width = int(others.max()) + 1
    pairs, counts = np.unique(rows * width + others, return_counts=True)
    return float((counts**2 / size[pairs // width]).sum())
