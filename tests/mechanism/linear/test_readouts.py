"""Readouts: calibrated on other families, blind to their own fold and group, honest about what is absent."""

from __future__ import annotations

import numpy as np
import pytest

from probe.mechanism.linear.readouts import balanced_label, coded, out_of_fold
from probe.values import ProbeError
from tests.mechanism.probes.probing import alike, cells, folds


def planted(cases=120, width=12, n_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    table = cells(cases, 4)
    y = rng.integers(0, n_classes, len(table))
    x = alike(table, width, 0.3, rng)
    x[np.arange(len(y)), y] += 2
    return table, x, np.array(["home", "clinic", "emergency"], dtype=object)[y], folds(table)


def test_a_planted_label_is_read_with_calibrated_probabilities_and_a_shuffled_one_is_not():
    _, x, y, fold = planted()
    read = out_of_fold(x, y, fold, classes=("home", "clinic", "emergency"))
    assert np.mean(read.label == y) > 0.75 and read.note == ""
    np.testing.assert_allclose(read.probability.sum(1), 1)
    truth = y[:, None] == np.array(read.classes, dtype=object)
    assert abs((read.probability.max(1) - truth[np.arange(len(y)), read.probability.argmax(1)]).mean()) < 0.05
    shuffled = np.random.default_rng(1).permutation(y)
    blind = out_of_fold(x, shuffled, fold)
    assert np.mean(blind.label == shuffled) < 0.45 and blind.probability.max() < 0.7


def test_two_classes_have_mirrored_scores_and_numbers_are_labels_too():
    _, x, y, fold = planted(n_classes=2)
    read = out_of_fold(x, (y == "clinic").astype(int), fold)
    assert read.classes == (0, 1)
    np.testing.assert_array_equal(read.score[:, 0], -read.score[:, 1])
    assert np.mean(read.label == (y == "clinic")) > 0.8


def test_a_row_is_judged_by_fits_without_its_fold_and_its_group():
    table, x, y, fold = planted()
    persona = table["persona"].to_numpy(dtype=object)
    mine = (fold == 0) | (persona == "p1")
    wrong = y.copy()
    wrong[mine] = "home"
    kept = (fold == 0) & (persona == "p1")
    ours, other = (out_of_fold(x, labels, fold, apart=persona) for labels in (y, wrong))
    np.testing.assert_allclose(ours.probability[kept], other.probability[kept], atol=1e-9)
    control = out_of_fold(x, wrong, fold)  # without apart, p1's other folds do fit
    assert np.abs(control.probability[kept] - out_of_fold(x, y, fold).probability[kept]).max() > 0.01


def test_rows_without_a_label_fit_nothing_and_are_judged():
    _, x, y, fold = planted()
    gaps = y.copy()
    gaps[::3] = None
    read, moved = out_of_fold(x, gaps, fold), x.copy()
    moved[::3] += 50
    np.testing.assert_allclose(out_of_fold(moved, gaps, fold).score[1::3], read.score[1::3], atol=1e-8)
    assert np.mean(read.label[::3] == y[::3]) > 0.7


def test_a_class_without_training_rows_has_probability_nil_and_one_class_alone_no_readout():
    _, x, y, fold = planted()
    rare = np.where((y == "emergency") & (fold != 2), "clinic", y)
    read = out_of_fold(x, rare, fold, classes=("home", "clinic", "emergency"))
    assert (read.probability[fold == 2, 2] == 0).all() and np.isfinite(read.probability).all()
    lone = np.where(fold == 2, "clinic", "home")
    gone = out_of_fold(x, lone, fold)
    assert np.isnan(gone.score[fold == 2]).all() and np.isfinite(gone.score[fold == 0]).all()
    assert np.isnan(gone.probability).all() and gone.label[0] is None  # no two inner folds have both classes
    assert gone.note.startswith(f"{len(fold)} of {len(fold)} rows have no readout")


def test_the_balanced_decision_finds_a_rare_class_that_the_most_probable_one_hides():
    codes = np.array([0] * 90 + [1] * 10)
    probability = np.column_stack([np.full(100, 0.7), np.full(100, 0.3)])
    assert (probability.argmax(1) == 0).all() and (balanced_label(probability, codes) == 1).all()


def test_labels_outside_the_classes_and_lone_classes_are_refused():
    with pytest.raises(ProbeError, match="found 'c'"):
        coded(np.array(["a", "c"], dtype=object), ("a", "b"))
    with pytest.raises(ProbeError, match="two classes"):
        coded(np.array([3, 3, -1]))
    assert coded(np.array([2.0, np.nan, 5.0]))[0].tolist() == [0, -1, 1]
