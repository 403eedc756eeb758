"""Logistic probes rank as the ridge does where both may, and choose their strength on other folds."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from probe.mechanism.linear.logistic import nested_logistic
from probe.mechanism.linear.ridge import nested
from probe.mechanism.linear.scores import fold_auroc


def drawn(seed=0, n=300, d=10):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(float)[:, None]
    return rng.normal(size=(n, d)) + np.outer(y, np.arange(d) == 0) * 1.5, y, np.arange(n) % 5


def test_scores_equal_scikit_learn_at_a_fixed_strength_and_rank_as_the_ridge_does():
    x, y, fold = drawn()
    found = nested_logistic(x, y, fold, (0.1,))
    for f in range(5):
        scaler = StandardScaler().fit(x[fold != f])
        model = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.transform(x[fold != f]), y[fold != f, 0])
        np.testing.assert_allclose(found.score[fold == f, 0], model.decision_function(scaler.transform(x[fold == f])))
    areas = [fold_auroc(each.score, y > 0, fold).mean() for each in (found, nested(x, y, fold))]
    assert areas[0] > 0.75 and abs(areas[0] - areas[1]) < 0.02


def test_inner_scores_are_of_other_folds_at_the_chosen_strength_and_a_lone_class_has_none():
    x, y, fold = drawn(1)
    found = nested_logistic(x, y, fold, (1e-4, 1.0))
    rows, held = found.inner[2]
    assert set(fold[rows]) == {1, 3} and held.shape == (len(rows), 1) and np.isfinite(held).all()
    lone = nested_logistic(x, (fold == 4).astype(float)[:, None], fold, (1.0,))
    assert np.isnan(lone.score[fold == 4]).all()
