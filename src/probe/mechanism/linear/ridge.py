"""Ridge regression in closed form over folds, strengths and many label columns at once. Knows arrays, no case or label.

A linear probe is a ridge regression of class indicators on standardised features. With an intercept its *direction* is
(S_w + alpha I)^-1 (m_1 - m_0), regularised linear discriminant analysis, whatever the two classes are coded as and
however rare one is; so ranks, and AUROC, need no class weights. At infinite strength it is the difference in means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import linalg

from probe.mechanism.linear.moments import Moments
from probe.mechanism.linear.scores import mean_by_set
from probe.values import ProbeError

ALPHAS = (0.01, 0.1, 1.0, 10.0, np.inf)
"""Strengths that inner folds choose among, per training row, for standardised features."""


@dataclass(frozen=True, eq=False)
class Linear:
    """Linear scores ``x @ weight + intercept``, in units of ``x``: one column per label column.

    NaN where a label column was the same in every row that fitted.
    """

    weight: Float[np.ndarray, "d_model column"]
    intercept: Float[np.ndarray, " column"]

    def __call__(self, x: Float[np.ndarray, "row d_model"]) -> Float[np.ndarray, "row column"]:
        """The score of each row."""
        return np.asarray(x @ self.weight + self.intercept)


@dataclass(frozen=True, eq=False)
class Nested:
    """Out-of-fold scores, the strength chosen for each fold, and what that choice was made on.

    ``score`` of a row comes from a fit on the other folds. ``inner[f]`` are rows of other folds, with their scores
    from fits without fold f and without the row's own, at the strength chosen for f: what a threshold or a calibration
    for fold f may be fitted on.
    """

    score: Float[np.ndarray, "row column"]
    alpha: Float[np.ndarray, "fold set"]
    inner: tuple[tuple[Int[np.ndarray, " _"], Float[np.ndarray, "_ kept"]], ...]


def fit_ridge(x: Shaped[np.ndarray, "row d_model"], y: Float[np.ndarray, "row column"], alpha: float) -> Linear:
    """One fit on all rows: ridge on standardised features at strength ``alpha`` per row; infinite, the class means.

    With y the indicator of a class and an infinite ``alpha``, the weight is p (1 - p) (m_1 - m_0) / sigma^2 for the
    class share p: the difference in means of standardised features.
    """
    moments = _Moments.of(x, y, np.zeros(len(x), dtype=int), np.full(len(x), True))
    fitted = _Training(moments, (0,)).fit(alpha, np.arange(y.shape[1]))
    return Linear(fitted.weight, fitted.intercept - moments.centre @ fitted.weight)


def nested(
    x: Shaped[np.ndarray, "row d_model"],
    y: Float[np.ndarray, "row column"],
    fold: Int[np.ndarray, " row"],
    *,
    sets: Int[np.ndarray, " column"] | None = None,
    fit: Bool[np.ndarray, " row"] | None = None,
    alphas: Sequence[float] = ALPHAS,
    keep: int = 0,
) -> Nested:
    """Scores of every row by a fit on the other folds, with the strength chosen inside those folds.

    The strength for fold f is that at which fits without f and without a neighbouring fold (f - 1, f + 1, cyclically)
    rank the neighbour's rows best: the mean correlation of score and label over both neighbours and over the columns
    of one ``sets`` entry (by default each column stands alone). Leaving out f and f + 1 serves both, so that one
    factorisation per strength, and five folds ten training sets, serve any number of columns. Means and standard
    deviations are those of the rows that fit. ``fit`` are the rows that may fit (all by default); all are judged.
    ``keep``: of so many leading columns, ``inner`` scores are kept.

    Raises:
        ProbeError: there are fewer than three folds.
    """
    folds = int(fold.max(initial=-1)) + 1
    if folds < 3:
        raise ProbeError(f"nested cross-validation needs at least three folds, found {folds}")
    sets = np.arange(y.shape[1]) if sets is None else sets
    moments = _Moments.of(x, y, fold, np.full(len(x), True) if fit is None else fit)
    gain, held = _inner(moments, folds, alphas, keep)
    of_set = np.stack([mean_by_set(by_alpha, sets) for by_alpha in gain])
    chosen = np.nan_to_num(of_set, nan=-np.inf).argmax(1)  # [fold set]; the least strength where all are alike
    strength = np.asarray(alphas, dtype=float)
    score = np.full(y.shape, np.nan)
    for f in range(folds):
        training = _Training(moments, _without(folds, f))
        here, of_column = moments.rows[f], chosen[f][sets]
        for a in np.unique(of_column):
            columns = np.flatnonzero(of_column == a)
            score[np.ix_(here, columns)] = training.fit(strength[a], columns)(moments.x[here])
    inner = tuple(_at_choice(held, moments, f, folds, chosen[f][sets[:keep]]) for f in range(folds)) if keep else ()
    return Nested(score, strength[chosen], inner)


def _inner(
    moments: _Moments, folds: int, alphas: Sequence[float], keep: int
) -> tuple[Float[np.ndarray, "fold alpha column"], dict[tuple[int, int, int], np.ndarray]]:
    """How well each strength ranks the folds beside each, and first scores: (fold, neighbour, strength) -> scores."""
    gain = np.zeros((folds, len(alphas), moments.y.shape[1]))
    held: dict[tuple[int, int, int], np.ndarray] = {}
    columns = np.arange(moments.y.shape[1])
    for f in range(folds):
        g = (f + 1) % folds
        training = _Training(moments, _without(folds, f, g))
        for a, alpha in enumerate(alphas):
            fitted = training.fit(alpha, columns)
            for outer, judged in ((f, g), (g, f)):
                rows = moments.rows[judged]
                scores = fitted(moments.x[rows])
                may = moments.fit[rows]
                gain[outer, a] += _correlation(scores[may], moments.y[rows[may]])
                if keep:
                    held[outer, judged, a] = scores[:, :keep]
    return gain, held


def _at_choice(
    held: dict[tuple[int, int, int], np.ndarray], moments: _Moments, f: int, folds: int, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    beside = sorted({(f + 1) % folds, (f - 1) % folds})
    scores = [
        np.stack([held[f, g, int(a)][:, c] for c, a in enumerate(chosen)], axis=1).reshape(len(moments.rows[g]), -1)
        for g in beside
    ]
    rows = np.concatenate([moments.rows[g] for g in beside])
    may = moments.fit[rows]
    return rows[may], np.concatenate(scores)[may]


def _without(folds: int, *out: int) -> tuple[int, ...]:
    return tuple(f for f in range(folds) if f not in out)


def _correlation(score: np.ndarray, y: np.ndarray) -> Float[np.ndarray, " column"]:
    """Pearson's r of each column, 0 where either is constant or undefined."""
    if len(score) == 0:
        return np.zeros(y.shape[1])
    s, t = score - score.mean(0), y - y.mean(0)
    norms = np.sqrt(np.einsum("rc,rc->c", s, s) * np.einsum("rc,rc->c", t, t))
    products = np.einsum("rc,rc->c", s, t)
    return np.asarray(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0))


@dataclass(frozen=True, eq=False)
class _Moments:
    """What every training set is a sum of: counts, sums and products of the rows that fit, by fold."""

    x: Float[np.ndarray, "row d_model"]
    y: Float[np.ndarray, "row column"]
    fit: Bool[np.ndarray, " row"]
    centre: Float[np.ndarray, " d_model"]
    rows: tuple[Int[np.ndarray, " _"], ...]
    of_x: tuple[Moments, ...]
    y_sum: Float[np.ndarray, "fold column"]
    cross: Float[np.ndarray, "fold d_model column"]

    @staticmethod
    def of(x: np.ndarray, y: np.ndarray, fold: np.ndarray, fit: np.ndarray) -> _Moments:
        # Products of sums cancel where means are large: the common mean goes first, and changes no score.
        wide = np.asarray(x, dtype=np.float64)
        centre = wide[fit].mean(0) if fit.any() else np.zeros(wide.shape[1])
        wide = wide - centre
        folds = int(fold.max(initial=-1)) + 1
        rows = tuple(np.flatnonzero(fold == f) for f in range(folds))
        ours = [(wide[r[fit[r]]], y[r[fit[r]]]) for r in rows]
        primal = wide.shape[1] <= int(fit.sum())
        return _Moments(
            wide,
            y,
            fit,
            centre,
            rows,
            tuple(Moments.of(a, products=primal) for a, _ in ours),
            np.stack([b.sum(0) for _, b in ours]),
            np.stack([a.T @ b for a, b in ours]),
        )


class _Training:
    """Some folds as one training set; solves at any strength, in features or in rows, whichever are fewer."""

    def __init__(self, moments: _Moments, folds: tuple[int, ...]):
        at = list(folds)
        whole = reduce(add, (moments.of_x[f] for f in folds))
        self.n, self.mean, self.inverse = whole.n, whole.mean, whole.inverse_spread
        self.label = moments.y_sum[at].sum(0) / max(self.n, 1)
        self.cross = moments.cross[at].sum(0) - self.n * np.outer(self.mean, self.label)
        self.cross *= self.inverse[:, None]
        self.z: np.ndarray | None = None
        if whole.gram is not None:
            self.gram = whole.centred
            self.gram *= self.inverse[:, None]
            self.gram *= self.inverse
        else:
            rows = np.concatenate([moments.rows[f] for f in folds])
            rows = rows[moments.fit[rows]]
            self.z = (moments.x[rows] - self.mean) * self.inverse
            self.y = moments.y[rows] - self.label
            self.gram = self.z @ self.z.T
        # A column that is the same in all training rows says nothing about another value.
        self.same = (self.label <= 0) | (self.label >= 1) if self.n else np.full(len(self.label), True)

    def fit(self, alpha: float, columns: np.ndarray) -> Linear:
        """Ridge weights of these columns, for the centred features."""
        if np.isinf(alpha) or self.n == 0:
            weight = self.cross[:, columns] / max(self.n, 1)
        else:
            # Symmetric, so the transpose is the same matrix in the order that LAPACK works on in place.
            ridge = self.gram.copy().T
            ridge[np.diag_indices_from(ridge)] += alpha * self.n
            factor = linalg.cho_factor(ridge, lower=True, overwrite_a=True, check_finite=False)
            right = self.cross[:, columns] if self.z is None else self.y[:, columns]
            solved = linalg.cho_solve(factor, right, check_finite=False)
            weight = solved if self.z is None else self.z.T @ solved
        weight = weight * self.inverse[:, None]
        weight[:, self.same[columns]] = np.nan
        return Linear(weight, self.label[columns] - self.mean @ weight)
