"""Labels read from activations by fits that never saw the row's case family. Knows arrays, labels and folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped
from sklearn.linear_model import LogisticRegression

from probe.mechanism.linear.ridge import ALPHAS, Nested, nested
from probe.values import ProbeError

FIRM = 100.0
"""C of the calibration: all but unpenalised, and finite where inner scores separate the classes."""


@dataclass(frozen=True, eq=False)
class Readout:
    """Out-of-fold scores and probabilities of every row, one column per class; NaN where nothing could be fitted.

    ``score`` are ridge scores of each class against the rest (of two classes, the second's and its negative), which may
    be ranked within a fold. Rows of ``probability`` sum to 1. ``label`` is the most probable class, None where NaN.
    """

    classes: tuple[object, ...]
    score: Float[np.ndarray, "row class"]
    probability: Float[np.ndarray, "row class"]
    label: np.ndarray
    note: str = ""


def out_of_fold(
    x: Shaped[np.ndarray, "row d_model"],
    y: np.ndarray,
    fold: Int[np.ndarray, " row"],
    *,
    classes: Sequence[object] | None = None,
    fit: np.ndarray | None = None,
    apart: np.ndarray | None = None,
    alphas: Sequence[float] = ALPHAS,
) -> Readout:
    """Read a label of every row from fits on the other folds, and with ``apart`` on the other groups too.

    ``y`` are labels as text or numbers; None, NaN, an empty text and a negative integer are undefined: such rows fit
    nothing and are judged all the same. ``fold`` comes of ``splits.fold_of``, so that no case family is on both sides.
    ``fit`` is a mask of the rows that may fit. ``apart`` names a group per row (its persona, or wording); a row is then
    judged by a fit without its group. ``classes`` fixes the columns and their order. Strengths are chosen by the other
    folds; probabilities are a multinomial regression of inner out-of-fold scores (Platt), so that they are calibrated
    on other families too. ``alphas`` of (inf,) are the difference in means.

    Raises:
        ProbeError: a label is not among the classes, there are fewer than two classes, or fewer than three folds.
    """
    codes, names = coded(y, classes)
    may = codes >= 0 if fit is None else (codes >= 0) & fit
    shape = (len(codes), len(names))
    score, probability = np.full(shape, np.nan), np.full(shape, np.nan)
    groups = [None] if apart is None else list(dict.fromkeys(apart.tolist()))
    for group in groups:
        judged = np.full(len(codes), True) if group is None else apart == group
        ours = may if group is None else may & ~judged
        y = one_hot(codes, len(names))
        sets = np.zeros(y.shape[1], dtype=np.int64)  # the classes share one strength
        found = nested(x, y, fold, fit=ours, sets=sets, alphas=alphas, keep=y.shape[1])
        score[judged] = both_ways(found.score, len(names))[judged]
        probability[judged] = calibrated(found, codes, fold, len(names))[judged]
    absent = np.isnan(probability).any(1)
    best = np.where(absent, 0, np.nan_to_num(probability).argmax(1))
    label = np.array([None if gone else names[k] for k, gone in zip(best, absent, strict=True)], dtype=object)
    n = int(absent.sum())
    note = f"{n} of {len(codes)} rows have no readout: one class alone fits or calibrates" if n else ""
    return Readout(names, score, probability, label, note)


def coded(y: np.ndarray, classes: Sequence[object] | None = None) -> tuple[Int[np.ndarray, " row"], tuple[object, ...]]:
    """Labels as indices into their classes (by default those found, sorted); -1 where undefined.

    Raises:
        ProbeError: a label is not among the classes, or there are fewer than two classes.
    """
    values = np.asarray(y)
    undefined = pd.isna(values) | (values == "")
    if np.issubdtype(values.dtype, np.integer):
        undefined = undefined | (values < 0)
    found = sorted(set(values[~undefined].tolist()), key=lambda one: (str(type(one)), one))
    names = tuple(found if classes is None else classes)
    places = {name: k for k, name in enumerate(names)}
    if strange := [name for name in found if name not in places]:
        raise ProbeError(f"a label is one of the classes {list(names)}; found {strange[0]!r}")
    if len(names) < 2:
        raise ProbeError(f"a readout needs two classes, found {list(names)}")
    codes = [-1 if gone else places[one] for one, gone in zip(values.tolist(), undefined, strict=True)]
    return np.array(codes, dtype=np.int64), names


def one_hot(codes: Int[np.ndarray, " row"], n_classes: int) -> Float[np.ndarray, "row column"]:
    """Indicators of the classes; of two classes, that of the second alone (the first's is its mirror image)."""
    first = 1 if n_classes == 2 else 0
    return np.asarray((codes[:, None] == np.arange(first, n_classes)).astype(np.float64))


def both_ways(score: Float[np.ndarray, "row column"], n_classes: int) -> Float[np.ndarray, "row class"]:
    """One score per class, from the columns of :func:`one_hot`."""
    return np.concatenate([-score, score], axis=1) if n_classes == 2 else score


def calibrated(
    found: Nested, codes: Int[np.ndarray, " row"], fold: Int[np.ndarray, " row"], n_classes: int, first: int = 0
) -> Float[np.ndarray, "row class"]:
    """Class probabilities of out-of-fold scores, from a multinomial regression on inner scores, fold by fold.

    The scores are those of :func:`one_hot` columns, from column ``first`` on. A class without an inner row has
    probability 0; a fold whose inner rows have one class only, or no score, has NaN.
    """
    columns = slice(first, first + (1 if n_classes == 2 else n_classes))
    probability = np.full((len(codes), n_classes), np.nan)
    for f, (rows, held) in enumerate(found.inner):
        inside, outside = _whole(held[:, columns]), found.score[fold == f][:, columns]
        ok = ~np.isnan(inside).any(1) & (codes[rows] >= 0)
        known = ~np.isnan(inside[ok]).any(0) if ok.any() else np.zeros(0, dtype=bool)
        here = np.flatnonzero(fold == f)
        usable = ~np.isnan(outside).all(1)
        if not ok.any() or not known.any() or len(np.unique(codes[rows][ok])) < 2 or not usable.any():
            continue
        spread = inside[ok].std(0)
        scale = np.where(spread > 0, spread, 1.0)
        model = LogisticRegression(C=FIRM, max_iter=1000).fit(inside[ok] / scale, codes[rows][ok])
        probability[np.ix_(here[usable], model.classes_)] = model.predict_proba(_whole(outside[usable]) / scale)
        rest = np.setdiff1d(np.arange(n_classes), model.classes_)
        probability[np.ix_(here[usable], rest)] = 0.0
    return probability


def balanced_label(probability: Float[np.ndarray, "row class"], codes: np.ndarray) -> Int[np.ndarray, " row"]:
    """The class most raised over its share among all labels: the decision for equal priors; -1 where NaN."""
    share = np.bincount(codes[codes >= 0], minlength=probability.shape[1]) / max((codes >= 0).sum(), 1)
    raised = np.divide(probability, share, out=np.full_like(probability, -1.0), where=share > 0)
    absent = np.isnan(probability).any(1)
    return np.where(absent, -1, np.nan_to_num(raised, nan=-1.0).argmax(1))


def _whole(score: np.ndarray) -> np.ndarray:
    """Scores with those of a class that no fit had set to nil, unless a row has none at all."""
    return np.where(np.isnan(score) & ~np.isnan(score).all(1, keepdims=True), 0.0, score)
