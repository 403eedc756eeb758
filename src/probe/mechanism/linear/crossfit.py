"""Predictions of rows whose case families did not fit them, twice nested. Knows arrays and folds; knows no persona.

``double_crossfit`` gives, for every fold f that is to be judged, predictions of *all* rows that neither f nor the row's
own fold had a part in: those of f itself judge, the others can fit a second stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from probe.mechanism.linear.moments import Moments, fewer_columns, standardised

Predict: TypeAlias = Callable[[int, Int[np.ndarray, " inside"]], Float[np.ndarray, "penalty inside target"]]
"""The fold that is judged (each may have targets of its own), and row numbers -> their predictions, under every penalty
that is tried."""

Fit: TypeAlias = Callable[[Bool[np.ndarray, " row"]], Predict]
"""Which rows fit -> how they predict."""

PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Ridge penalties, per fitting row and standardised column, of which the inner folds choose."""

LOGISTIC_PENALTIES = (30.0, 3.0, 0.3)


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


class CrossRidge:
    """:func:`double_crossfit` of ridge regression from the same columns, for any targets: factored once.

    Columns are standardised over all rows, which no target has a part in; more than 512 are read in as many principal
    axes of these. ``penalty`` is per fitting row.
    """

    def __init__(self, x: Float[np.ndarray, "row column"], fold: Int[np.ndarray, " row"]) -> None:
        z = fewer_columns(standardised(x))
        self._fold, self._folds = fold, range(int(fold.max()) + 1)
        self._rows = [np.flatnonzero(fold == f) for f in self._folds]
        self._z = [z[rows] for rows in self._rows]
        parts = [Moments.of(one) for one in self._z]
        self._spectra = {
            (f, g): _Spectrum.of([parts[k] for k in self._folds if k not in (f, g)])
            for f in self._folds
            for g in self._folds
            if f <= g
        }

    def __call__(self, y: Float[np.ndarray, "*fold row target"]) -> Float[np.ndarray, "fold row target"]:
        """Predictions of every row, for each fold that is judged, at the penalty that predicts the other folds best.

        ``y`` may have targets for each fold that is judged: what another fit says without that fold.
        """
        y = np.broadcast_to(np.asarray(y, dtype=np.float64), (len(self._folds), *y.shape[-2:]))
        return np.stack([self._of(f, y[f]) for f in self._folds])

    def _of(self, f: int, y: Float[np.ndarray, "row target"]) -> Float[np.ndarray, "row target"]:
        own = [y[rows] for rows in self._rows]
        cross = [z.T @ part for z, part in zip(self._z, own, strict=True)]
        totals = [part.sum(0) for part in own]
        fitted = {g: self._fit(f, g, cross, totals) for g in self._folds}
        tried = {g: fitted[g](self._z[g], PENALTIES) for g in self._folds if g != f}
        lost = sum(((predicted - own[g][:, None]) ** 2).sum(0) for g, predicted in tried.items())
        best = np.asarray(lost).argmin(0)
        found = np.empty_like(y)
        for g, predicted in tried.items():
            found[self._rows[g]] = np.take_along_axis(predicted, best[None, None, :], axis=1)[:, 0]
        found[self._rows[f]] = fitted[f](self._z[f], np.array(PENALTIES)[best])
        return found

    def _fit(self, f: int, g: int, cross: list[np.ndarray], totals: list[np.ndarray]) -> _RidgeFit:
        spectrum, kept = self._spectra[min(f, g), max(f, g)], [k for k in self._folds if k not in (f, g)]
        label = sum(totals[k] for k in kept) / spectrum.n
        moved = sum(cross[k] for k in kept) / spectrum.n - np.outer(spectrum.mean, label)
        return _RidgeFit(spectrum, np.asarray(label), spectrum.axes.T @ moved)


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """The rows that fit: how many, their mean, and the eigenvalues and axes of their covariance."""

    n: int
    mean: Float[np.ndarray, " column"]
    values: Float[np.ndarray, " axis"]
    axes: Float[np.ndarray, "column axis"]

    @classmethod
    def of(cls, parts: Sequence[Moments]) -> _Spectrum:
        moments = parts[0]
        for part in parts[1:]:
            moments = moments + part
        values, axes = np.linalg.eigh(moments.centred / moments.n)
        return cls(moments.n, moments.mean, np.maximum(values, 0.0), axes)


@dataclass(frozen=True, eq=False)
class _RidgeFit:
    spectrum: _Spectrum
    label: Float[np.ndarray, " target"]
    target: Float[np.ndarray, "axis target"]

    def __call__(self, z: Float[np.ndarray, "row column"], penalties: Sequence[float] | np.ndarray) -> np.ndarray:
        """Predictions [row, target] at one penalty for each target (an array), or [row, penalty, target] at each of
        several."""
        along = (z - self.spectrum.mean) @ self.spectrum.axes
        values = self.spectrum.values[:, None]
        if isinstance(penalties, np.ndarray):
            return np.asarray(along @ (self.target / (values + penalties)) + self.label)
        weights = np.stack([self.target / (values + penalty) for penalty in penalties], axis=1)
        found = along @ weights.reshape(len(values), -1)
        return np.asarray(found.reshape(len(z), len(penalties), -1) + self.label)


def logistic(
    x: Float[np.ndarray, "row column"], y: Float[np.ndarray, " row"], fold: Int[np.ndarray, " row"]
) -> Float[np.ndarray, "fold row"]:
    """:func:`double_crossfit` of logistic regression with an L2 penalty on all columns but an intercept: log-odds."""
    own = np.column_stack([np.ones(len(x)), x])
    penalties = [np.append(1e-6, np.full(x.shape[1], penalty)) for penalty in LOGISTIC_PENALTIES]

    def fit(rows: np.ndarray) -> Predict:
        betas: list[np.ndarray] = []
        for penalty in penalties:  # each from where the stronger one before it ended
            betas.append(newton(own[rows][None], y[rows], penalty, betas[-1] if betas else None)[0])
        return lambda _, inside: np.stack([own[inside] @ beta for beta in betas])[:, :, None]

    def loss(predicted: np.ndarray, _: int) -> np.ndarray:
        return log_loss(predicted[:, :, 0], y)[:, :, None]

    return double_crossfit(fit, fold, loss)[:, :, 0]


def newton(
    x: Float[np.ndarray, "batch row column"],
    y: Float[np.ndarray, " row"],
    penalty: Float[np.ndarray, " column"],
    start: Float[np.ndarray, " column"] | None = None,
) -> Float[np.ndarray, "batch column"]:
    """Coefficients of a batch of logistic regressions of one target, with an L2 penalty per column, by Newton steps.

    A step is halved while it would raise the objective; it ends after one in which no coefficient moves by 1e-4: what
    is left is of the order of its square.
    """
    columns = np.ascontiguousarray(np.swapaxes(x, 1, 2))
    beta = np.tile(np.zeros(x.shape[2]) if start is None else start, (len(x), 1))
    value, eta = _objective(columns, beta, y, penalty)
    for _ in range(50):
        p = expit(eta)
        gradient = np.matmul(columns, (p - y)[:, :, None])[:, :, 0] + penalty * beta
        weighted = columns * (p * (1 - p))[:, None, :]
        hessian = np.matmul(weighted, np.swapaxes(columns, 1, 2)) + np.diag(penalty + 1e-9)
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        length = np.ones((len(x), 1))
        for _ in range(20):
            after, moved = _objective(columns, beta - length * step, y, penalty)
            worse = after > value + 1e-9
            if not worse.any():
                break
            length[worse] /= 2
        beta, value, eta = beta - length * step, after, moved
        if np.abs(length * step).max() < 1e-4:
            break
    return np.asarray(beta)


def _objective(
    columns: Float[np.ndarray, "batch column row"],
    beta: Float[np.ndarray, "batch column"],
    y: Float[np.ndarray, " row"],
    penalty: Float[np.ndarray, " column"],
) -> tuple[Float[np.ndarray, " batch"], Float[np.ndarray, "batch row"]]:
    """The penalised log loss, and the log-odds."""
    eta = np.matmul(beta[:, None, :], columns)[:, 0]
    loss = np.maximum(eta, 0) + np.log1p(np.exp(-np.abs(eta)))
    return loss.sum(1) - eta @ y + (penalty * beta**2).sum(1) / 2, eta


def log_loss(eta: Float[np.ndarray, "*batch row"], y: Float[np.ndarray, " row"]) -> Float[np.ndarray, "*batch row"]:
    """Log loss of log-odds, in nats per row."""
    return np.asarray(np.logaddexp(0, eta) - eta * y)
