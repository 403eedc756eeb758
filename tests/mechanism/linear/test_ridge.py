"""The closed form is the ridge that scikit-learn fits, row by row and fold by fold, and nothing of a fold leaks in."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from probe.mechanism.linear.ridge import fit_ridge, nested
from probe.values import ProbeError


def drawn(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = 40 + 5 * rng.normal(size=(n, d)) * rng.uniform(0.1, 10, d)
    y = (x[:, :2].sum(1) + rng.normal(0, 20, n) > 80).astype(float)
    return x, np.column_stack([y, rng.permutation(y)]), np.arange(n) % 5


def sklearn_scores(x, y, fold, alpha):
    score = np.empty_like(y)
    for f in np.unique(fold):
        train, test = fold != f, fold == f
        scaler = StandardScaler().fit(x[train])
        model = Ridge(alpha=alpha * train.sum()).fit(scaler.transform(x[train]), y[train])
        score[test] = model.predict(scaler.transform(x[test]))
    return score


@pytest.mark.parametrize("width", [7, 300], ids=["solved in features", "solved in rows"])
@pytest.mark.parametrize("alpha", [0.01, 1.0])
def test_scores_equal_those_of_scikit_learn_at_a_fixed_strength(width, alpha):
    x, y, fold = drawn(120, width)
    ours = nested(x, y, fold, alphas=(alpha,)).score
    np.testing.assert_allclose(ours, sklearn_scores(x, y, fold, alpha), atol=1e-8)


def test_the_chosen_strength_is_the_one_a_plain_loop_over_neighbouring_folds_chooses():
    x, y, fold = drawn(150, 40, seed=1)
    alphas = (0.001, 0.1, 10.0)
    found = nested(x, y, fold, alphas=alphas)
    for f in range(5):
        gains = np.zeros((3, 2))
        for g in ((f + 1) % 5, (f - 1) % 5):
            train, judged = ~np.isin(fold, [f, g]), fold == g
            for a, alpha in enumerate(alphas):
                scaler = StandardScaler().fit(x[train])
                model = Ridge(alpha=alpha * train.sum()).fit(scaler.transform(x[train]), y[train])
                score = model.predict(scaler.transform(x[judged]))
                gains[a] += [np.corrcoef(score[:, c], y[judged, c])[0, 1] / 2 for c in range(2)]
        assert found.alpha[f].tolist() == [alphas[a] for a in gains.argmax(0)]


def test_an_infinite_strength_is_the_difference_in_means_and_a_great_one_approaches_it():
    x, y, _ = drawn(200, 30, seed=2)
    means = fit_ridge(x, y, np.inf).weight
    z, on = x.std(0), y[:, 0] == 1
    expected = (x[on].mean(0) - x[~on].mean(0)) / z**2
    np.testing.assert_allclose(means[:, 0] / expected, y[:, 0].mean() * (1 - y[:, 0].mean()), rtol=1e-9)
    great = fit_ridge(x, y, 1e8).weight
    np.testing.assert_allclose(great * 1e8, means, rtol=1e-5)


def test_nothing_of_a_fold_reaches_its_own_scores():
    x, y, fold = drawn(150, 20, seed=3)
    x2, y2 = x.copy(), y.copy()
    x2[fold == 2], y2[fold == 2] = x2[fold == 2] * 3 + 100, 1 - y2[fold == 2]
    weights = [nested(a, b, fold, alphas=(1.0,)).score for a, b in ((x, y), (x2, y))]
    assert not np.allclose(weights[0][fold == 2], weights[1][fold == 2])  # the rows themselves did change
    # The same rows judged, under other labels of their own: not a bit may change; other folds' scores do.
    one, two = nested(x, y, fold), nested(x, y2, fold)
    np.testing.assert_allclose(one.score[fold == 2], two.score[fold == 2], atol=1e-10)
    assert not np.allclose(one.score[fold == 3], two.score[fold == 3])
    for rows, _ in one.inner:
        assert len(rows)


def test_direction_does_not_depend_on_coding_or_prior():
    x, y, _ = drawn(200, 30, seed=4)
    plain = fit_ridge(x, y, 0.5)
    recoded = fit_ridge(x, np.where(y > 0, 0.9, 0.2), 0.5)
    np.testing.assert_allclose(recoded.weight, 0.7 * plain.weight, rtol=1e-8)


def test_constant_features_are_left_out_and_the_others_score_as_without_them():
    x, y, fold = drawn(100, 10, seed=5)
    padded = np.column_stack([x, np.full(100, 3.3), np.zeros(100)])
    np.testing.assert_allclose(nested(padded, y, fold).score, nested(x, y, fold).score, atol=1e-9)
    assert np.isfinite(nested(np.full((100, 3), 7.0), y, fold).score).all()


def test_a_class_that_no_training_row_has_gives_no_score_in_that_fold_and_scores_elsewhere():
    x, _, fold = drawn(100, 10, seed=6)
    y = (fold == 1).astype(float)[:, None]
    score = nested(x, y, fold).score
    assert np.isnan(score[fold == 1]).all() and np.isfinite(score[fold != 1]).all()


def test_rows_that_may_not_fit_are_judged_and_change_nothing():
    x, y, fold = drawn(150, 20, seed=7)
    fit = np.arange(150) % 3 > 0
    x2, y2 = x.copy(), y.copy()
    y2[~fit] = 1 - y2[~fit]
    x2[~fit] += 1000
    ours, other = nested(x, y, fold, fit=fit).score, nested(x2, y2, fold, fit=fit).score
    np.testing.assert_allclose(ours[fit], other[fit], atol=1e-8)
    assert np.isfinite(other[~fit]).all()


def test_two_folds_are_refused():
    x, y, _ = drawn(20, 3)
    with pytest.raises(ProbeError, match="at least three folds, found 2"):
        nested(x, y, np.arange(20) % 2)
