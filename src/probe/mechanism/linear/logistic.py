"""Logistic probes, nested as the ridge ones are, and slower by far. Knows arrays and folds; knows no permutation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probe.mechanism.linear.ridge import Nested
from probe.mechanism.linear.scores import auroc

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values of C (inverse strength, summed loss) that inner folds choose among."""


def nested_logistic(
    x: Shaped[np.ndarray, "row d_model"],
    y: Float[np.ndarray, "row column"],
    fold: Int[np.ndarray, " row"],
    strengths: Sequence[float] = STRENGTHS,
) -> Nested:
    """Out-of-fold log odds of every column against the rest, on standardised features; L2 penalty, no class weights.

    C for fold f is the one at which fits without f and without a neighbouring fold (f - 1, f + 1, cyclically) rank the
    neighbour's rows best (AUROC): the scheme of :func:`probe.mechanism.linear.ridge.nested`, column by column.
    ``alpha`` holds the chosen C.
    """
    folds, columns = int(fold.max(initial=-1)) + 1, y.shape[1]
    score, chosen = np.full(y.shape, np.nan), np.full((folds, columns), np.nan)
    inner = []
    for f in range(folds):
        beside = sorted({(f + 1) % folds, (f - 1) % folds})
        rows = np.concatenate([np.flatnonzero(fold == g) for g in beside])
        held = np.full((len(strengths), len(rows), columns), np.nan)
        at = np.zeros(columns, dtype=int)
        for c in range(columns):
            for a, strength in enumerate(strengths):
                held[a, :, c] = np.concatenate(
                    [_log_odds(x, y[:, c], ~np.isin(fold, [f, g]), fold == g, strength) for g in beside]
                )
            gains = np.zeros(len(strengths))
            for g in beside:
                here = fold[rows] == g
                truth = np.repeat(y[rows][here, c][:, None] > 0, len(strengths), axis=1)
                gains += np.nan_to_num(auroc(held[:, here, c].T, truth), nan=0.5)
            at[c] = int(gains.argmax())
            chosen[f, c] = strengths[at[c]]
            score[fold == f, c] = _log_odds(x, y[:, c], fold != f, fold == f, chosen[f, c])
        inner.append((rows, held[at, :, np.arange(columns)].T))
    return Nested(score, chosen, tuple(inner))


def _log_odds(x: np.ndarray, y: np.ndarray, train: np.ndarray, judged: np.ndarray, strength: float) -> np.ndarray:
    """Log odds of the judged rows; NaN where the training rows have one class only."""
    if len(np.unique(y[train])) < 2 or not judged.any():
        return np.full(int(judged.sum()), np.nan)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    return np.asarray(model.fit(x[train], y[train]).decision_function(x[judged]))
