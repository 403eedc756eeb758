"""How well scores rank and sort rows into classes. Knows scores, labels and folds; knows no probe."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats
from sklearn.metrics import average_precision_score

from probe.values import Estimate


def auroc(score: Float[np.ndarray, "row column"], positive: Bool[np.ndarray, "row column"]) -> np.ndarray:
    """Area under the ROC curve of each column (ties count half): [column], NaN where a class or a score is absent.

    Mann and Whitney's U over n_pos n_neg, from ranks: one sort of all columns.
    """
    ranks = stats.rankdata(score, axis=0)
    n_pos = positive.sum(0)
    pairs = n_pos * (len(score) - n_pos)
    u = np.where(positive, ranks, 0).sum(0) - n_pos * (n_pos + 1) / 2
    absent = (pairs == 0) | np.isnan(score).any(0)
    return np.asarray(np.where(absent, np.nan, u / np.where(pairs == 0, 1, pairs)))


def fold_auroc(
    score: Float[np.ndarray, "row column"], positive: Bool[np.ndarray, "row column"], fold: Int[np.ndarray, " row"]
) -> Float[np.ndarray, "fold column"]:
    """:func:`auroc` within each fold; scores of different fits are never ranked against each other."""
    return np.stack([auroc(score[fold == f], positive[fold == f]) for f in range(int(fold.max()) + 1)])


def macro(by_fold: Float[np.ndarray, "fold column"], sets: Int[np.ndarray, " column"]) -> Float[np.ndarray, " set"]:
    """Mean over the classes of a set that a fold has (one against the rest, equally weighted), then over folds."""
    return mean_known(mean_by_set(by_fold, sets).T)


def mean_by_set(values: Float[np.ndarray, "row column"], sets: Int[np.ndarray, " column"]) -> np.ndarray:
    """Mean over the columns of each set, by row: [row, set]; NaN are left out, and a set of them alone is NaN."""
    n_sets = int(sets.max(initial=-1)) + 1
    known = ~np.isnan(values)
    sums, counts = (
        np.array([np.bincount(sets, weights=row, minlength=n_sets) for row in rows]).reshape(len(values), n_sets)
        for rows in (np.where(known, values, 0.0), known.astype(np.float64))
    )
    return np.asarray(np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0))


def mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    counts = known.sum(-1)
    sums = np.where(known, values, 0.0).sum(-1)
    return np.asarray(np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0))


def auroc_estimate(
    score: Float[np.ndarray, "row class"],
    positive: Bool[np.ndarray, "row class"],
    fold: Int[np.ndarray, " row"],
    cluster: np.ndarray,
) -> Estimate:
    """Mean of per-fold AUROC over classes, with a 95 % interval for rows that cluster (DeLong; Obuchowski 1997).

    The interval is that of the judged rows, clusters being drawn anew; the fits are taken as they are. Undefined where
    no fold has both classes of any column, and without an interval below three clusters.
    """
    by_fold = fold_auroc(score, positive, fold)
    value = float(macro(by_fold, np.zeros(score.shape[1], dtype=int))[0])
    names, member = np.unique(cluster.astype(str), return_inverse=True)
    if np.isnan(value):
        return Estimate(None, n=len(names), note="undefined: no fold has both classes in training and judged rows")
    if len(names) < 3:
        return Estimate(value, n=len(names), note="no interval: fewer than three clusters")
    known = ~np.isnan(by_fold)
    n_folds = int(known.any(1).sum())
    pull = np.zeros(len(names))
    for f, c in zip(*np.nonzero(known), strict=True):
        rows = np.flatnonzero(fold == f)
        weight = 1 / (n_folds * known[f].sum())
        np.add.at(pull, member[rows], weight * _influence(score[rows, c], positive[rows, c], by_fold[f, c]))
    se = float(np.sqrt((pull**2).sum() * len(names) / (len(names) - 1)))
    half = float(stats.t.ppf(0.975, len(names) - 1)) * se
    note = "" if known.all() else f"{int((~known).sum())} of {known.size} (fold, class) lack a class and are left out"
    return Estimate(
        value, max(0.0, value - half), min(1.0, value + half), len(names), method="clustered DeLong", note=note
    )


def _influence(score: np.ndarray, positive: np.ndarray, area: float) -> Float[np.ndarray, " row"]:
    """How far each row pulls the AUROC: its share of won pairs, less the mean, over its class's size."""
    all_ranks, n_pos = stats.rankdata(score), int(positive.sum())
    n_neg = len(score) - n_pos
    own = np.empty(len(score))
    own[positive], own[~positive] = stats.rankdata(score[positive]), stats.rankdata(score[~positive])
    beaten = all_ranks - own  # rows of the other class that lie below, ties half
    return np.asarray(np.where(positive, (beaten / n_neg - area) / n_pos, (1 - beaten / n_pos - area) / n_neg))


def average_precision(score: np.ndarray, positive: np.ndarray, fold: np.ndarray) -> float:
    """Area under the precision-recall curve (average precision), mean over classes and folds; NaN where undefined."""
    by_fold = np.full((int(fold.max()) + 1, score.shape[1]), np.nan)
    for f, c in np.ndindex(*by_fold.shape):
        s, t = score[fold == f, c], positive[fold == f, c]
        if t.any() and not t.all() and not np.isnan(s).any():
            by_fold[f, c] = average_precision_score(t, s)
    return float(macro(by_fold, np.zeros(score.shape[1], dtype=int))[0])


def balanced_accuracy(predicted: Int[np.ndarray, " row"], truth: Int[np.ndarray, " row"], fold: np.ndarray) -> float:
    """Mean recall over the classes that a fold has, mean over folds; NaN without a prediction (-1)."""
    values = []
    for f in range(int(fold.max()) + 1):
        rows = (fold == f) & (predicted >= 0)
        recalls = [np.mean(predicted[rows & (truth == c)] == c) for c in np.unique(truth[rows])]
        if recalls:
            values.append(np.mean(recalls))
    return float(np.mean(values)) if values else float("nan")
