"""Ranks and thresholds agree with scikit-learn; intervals cover where rows cluster."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from probe.mechanism.linear.scores import auroc, auroc_estimate, average_precision, balanced_accuracy, fold_auroc, macro


def test_auroc_equals_scikit_learn_with_ties_and_is_undefined_without_both_classes():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 5, (60, 3)).astype(float)
    positive = np.column_stack([rng.random((60, 2)) < 0.3, np.full(60, True)])
    ours = auroc(score, positive)
    assert ours[:2] == pytest.approx([roc_auc_score(positive[:, c], score[:, c]) for c in (0, 1)])
    assert np.isnan(ours[2])


def test_several_classes_are_the_mean_over_those_a_fold_has_and_then_over_folds():
    by_fold = np.array([[0.9, 0.7, np.nan], [0.5, np.nan, np.nan]])
    assert macro(by_fold, np.zeros(3, dtype=int)).tolist() == pytest.approx([(0.8 + 0.5) / 2])
    assert np.isnan(macro(by_fold, np.array([0, 0, 1]))[1])


def test_folds_are_never_ranked_against_each_other():
    fold = np.repeat([0, 1], 20)
    positive = np.tile([True, False], 20)[:, None]
    score = np.where(positive, 1.0, 0.0) - 100 * fold[:, None]  # perfect within, offset between
    assert fold_auroc(score, positive, fold).ravel().tolist() == [1, 1]
    assert auroc(score, positive)[0] < 0.8


def test_the_interval_covers_for_rows_that_cluster_and_is_too_short_without_clusters():
    rng = np.random.default_rng(1)
    truth, hits, naive = 0.7602, [], []  # Phi(1 / sqrt 2)
    for _ in range(300):
        member = np.repeat(np.arange(60), 5)
        positive = np.repeat(rng.random(60) < 0.4, 5)
        score = np.sqrt(0.7) * rng.normal(size=60)[member] + np.sqrt(0.3) * rng.normal(size=300) + positive
        fold = member % 3
        for found, cluster in ((hits, member), (naive, np.arange(300))):
            estimate = auroc_estimate(score[:, None], positive[:, None], fold, cluster)
            found.append(estimate.low <= truth <= estimate.high)
    assert 0.90 <= np.mean(hits) <= 0.99
    assert np.mean(naive) < 0.80


def test_average_precision_of_noise_is_the_base_rate_and_balanced_accuracy_equals_scikit_learn():
    rng = np.random.default_rng(2)
    fold, truth = np.arange(4000) % 4, (rng.random(4000) < 0.2).astype(int)
    noise = average_precision(rng.normal(size=(4000, 1)), truth[:, None] > 0, fold)
    assert noise == pytest.approx(0.2, abs=0.03)
    assert average_precision(truth[:, None].astype(float), truth[:, None] > 0, fold) == 1
    predicted = np.where(rng.random(4000) < 0.7, truth, 1 - truth)
    expected = np.mean([balanced_accuracy_score(truth[fold == f], predicted[fold == f]) for f in range(4)])
    assert balanced_accuracy(predicted, truth, fold) == pytest.approx(expected)
    assert np.isnan(balanced_accuracy(np.full(4000, -1), truth, fold))
