"""Predictions of rows whose case families did not fit them, twice nested. Knows arrays and folds; knows no persona.

``double_crossfit`` gives, for every fold f that is to be judged, predictions of *all* rows that neither f nor the row's
own fold had a part in: those of f itself judge, the others can fit a second stage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.linalg import cho_factor, cho_solve

Predict: TypeAlias = Callable[[int, Int[np.ndarray, " inside"]], Float[np.ndarray, "penalty inside target"]]
"""The fold that is judged (each may have targets of its own), and row numbers -> their predictions, under every penalty
that is tried."""

Fit: TypeAlias = Callable[[Bool[np.ndarray, " row"]], Predict]
"""Which rows fit -> how they predict."""

PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Ridge penalties, per fitting row and standardised column, of which the inner folds choose."""

LOGISTIC_PENALTIES = (0.3, 3.0, 30.0)


def double_crossfit(
    fit: Fit,
    fold: Int[np.ndarray, " row"],
    loss: Callable[[np.ndarray, int], Float[np.ndarray, "penalty row target"]],
) -> Float[np.ndarray, "fold row target"]:
    """For every fold f: predictions of the rows of f by a fit on all other folds, and of each row in another fold g by
    a fit on all folds but f and g. The penalty with the smallest mean ``loss`` over those other rows is taken, for each
    f and each target on its own."""
    n_folds = int(fold.max()) + 1
    inside = [np.flatnonzero(fold == f) for f in range(n_folds)]
    found: list[np.ndarray | None] = [None] * n_folds
    for f in range(n_folds):
        for g in range(f, n_folds):
            predict = fit((fold != f) & (fold != g))
            for ours, rows in {(f, g), (g, f)}:
                predicted = predict(ours, inside[rows])
                whole = found[ours]
                if whole is None:
                    whole = found[ours] = np.full((len(predicted), len(fold), predicted.shape[2]), np.nan)
                whole[:, inside[rows]] = predicted
    chosen = []
    for f, whole in enumerate(found):
        assert whole is not None
        best = loss(whole, f)[:, fold != f].mean(1).argmin(0)
        chosen.append(np.take_along_axis(whole, best[None, None, :], axis=0)[0])
    return np.stack(chosen)


def judged(predicted: Float[np.ndarray, "fold row target"], fold: Int[np.ndarray, " row"]) -> np.ndarray:
    """The prediction of each row by the fit on all other folds: out of fold."""
    return np.asarray(predicted[fold, np.arange(len(fold))])


def ridge(
    x: Float[np.ndarray, "row column"], y: Float[np.ndarray, "*fold row target"], fold: Int[np.ndarray, " row"]
) -> Float[np.ndarray, "fold row target"]:
    """:func:`double_crossfit` of ridge regression on columns that are standardised on the fitting rows.

    ``y`` may have targets for each fold that is judged: what another fit says without that fold. With fewer columns
    than rows from Gram matrices that are computed once per fold and added up, else in the dual.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    x = x - x.mean(0)  # a shift only, for the precision of the sums
    y = np.broadcast_to(y, (int(fold.max()) + 1, *y.shape[-2:]))
    fit = _primal(x, y, fold) if x.shape[1] < len(x) else _dual(x, y)
    return double_crossfit(fit, fold, lambda predicted, f: (predicted - y[f]) ** 2)


def _primal(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> Fit:
    parts = [_sums(x[fold == f]) for f in range(int(fold.max()) + 1)]

    def fit(rows: np.ndarray) -> Predict:
        n, sx, xx = (sum(parts[f][i] for f in set(fold[rows].tolist())) for i in range(3))
        mean = sx / n
        gram = xx / n - np.outer(mean, mean)
        scale = _spread(np.diag(gram))
        gram = gram / np.outer(scale, scale)
        factors = [cho_factor(gram + penalty * np.eye(len(gram))) for penalty in PENALTIES]

        def predict(judged: int, inside: np.ndarray) -> np.ndarray:
            own = y[judged][rows]
            target = own.mean(0)
            cross = (x[rows].T @ (own - target) - np.outer(mean, (own - target).sum(0))) / (n * scale[:, None])
            solved = [cho_solve(factor, cross) for factor in factors]
            return np.stack([(x[inside] - mean) @ (one / scale[:, None]) + target for one in solved])

        return predict

    return fit


def _dual(x: np.ndarray, y: np.ndarray) -> Fit:
    def fit(rows: np.ndarray) -> Predict:
        mean, n = x[rows].mean(0), int(rows.sum())
        scaled = (x - mean) / _spread(x[rows].var(0))
        kernel = scaled @ scaled[rows].T / n
        factors = [cho_factor(kernel[rows] + penalty * np.eye(n)) for penalty in PENALTIES]

        def predict(judged: int, inside: np.ndarray) -> np.ndarray:
            target = y[judged][rows].mean(0)
            solved = [cho_solve(factor, y[judged][rows] - target) for factor in factors]
            return np.stack([kernel[inside] @ one + target for one in solved])

        return predict

    return fit


def _spread(variance: np.ndarray) -> Float[np.ndarray, " column"]:
    """Standard deviations; infinite for a column that does not vary, so that it says nothing."""
    scale = np.sqrt(np.maximum(variance, 0))
    return np.where(scale > 1e-9 * max(float(scale.max(initial=0)), 1e-300), scale, np.inf)


def logistic(
    x: Float[np.ndarray, "row column"], y: Float[np.ndarray, " row"], fold: Int[np.ndarray, " row"]
) -> Float[np.ndarray, "fold row"]:
    """:func:`double_crossfit` of logistic regression with an L2 penalty on all columns but an intercept: log-odds."""
    own = np.column_stack([np.ones(len(x)), x])
    penalties = [np.append(1e-6, np.full(x.shape[1], penalty)) for penalty in LOGISTIC_PENALTIES]

    def fit(rows: np.ndarray) -> Predict:
        betas = [newton(own[rows][None], y[rows], penalty)[0] for penalty in penalties]
        return lambda _, inside: np.stack([own[inside] @ beta for beta in betas])[:, :, None]

    def loss(predicted: np.ndarray, _: int) -> np.ndarray:
        return log_loss(predicted[:, :, 0], y)[:, :, None]

    return double_crossfit(fit, fold, loss)[:, :, 0]


def newton(
    x: Float[np.ndarray, "batch row column"], y: Float[np.ndarray, " row"], penalty: Float[np.ndarray, " column"]
) -> Float[np.ndarray, "batch column"]:
    """Coefficients of a batch of logistic regressions of one target, with an L2 penalty per column, by Newton steps.

    A step is halved while it would raise the objective; it ends where no coefficient moves by 1e-6.
    """
    beta = np.zeros((len(x), x.shape[2]))

    def objective(at: np.ndarray) -> np.ndarray:
        eta = np.matmul(x, at[:, :, None])[:, :, 0]
        return np.asarray(np.logaddexp(0, eta).sum(1) - eta @ y + (penalty * at**2).sum(1) / 2)

    value = objective(beta)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.matmul(x, beta[:, :, None])[:, :, 0]))
        gradient = np.matmul((p - y)[:, None, :], x)[:, 0] + penalty * beta
        weighted = x * (p * (1 - p))[:, :, None]
        hessian = np.matmul(weighted.transpose(0, 2, 1), x) + np.diag(penalty + 1e-9)
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        length = np.ones((len(x), 1))
        for _ in range(20):
            after = objective(beta - length * step)
            worse = after > value + 1e-9
            if not worse.any():
                break
            length[worse] /= 2
        beta, value = beta - length * step, after
        if np.abs(length * step).max() < 1e-6:
            break
    return np.asarray(beta)


def log_loss(eta: Float[np.ndarray, "*batch row"], y: Float[np.ndarray, " row"]) -> Float[np.ndarray, "*batch row"]:
    """Log loss of log-odds, in nats per row."""
    return np.asarray(np.logaddexp(0, eta) - eta * y)


def _sums(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    return float(len(x)), x.sum(0), x.T @ x
