"""Calibration against worked examples, a loop and the known bias of the ECE."""

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve

from probe.behaviour import ece, metrics, null_band, read_outcomes, reliability
from probe.behaviour.calibration import (
    band_of,
    bin_of,
    classwise_ece,
    classwise_null_draws,
    debiased_ece_squared,
    equal_mass,
    jackknife_interval,
    shared_draws,
    smooth_ece,
)
from probe.behaviour.reliability import ece_difference
from tests.behaviour.simulated_worlds import draw_labels
from tests.behaviour.synthetic import synthetic_table


def test_bins_are_closed_on_the_right_and_the_first_holds_zero():
    edges = [0.0, 0.05, 0.1, 0.1000001, 0.2, 0.3, 0.7, 0.95, 1.0]
    assert bin_of(np.array(edges), 10).tolist() == [0, 0, 0, 1, 1, 2, 6, 9, 9]


@pytest.mark.parametrize("n_bins", [10, 15])
def test_a_probability_that_misses_an_edge_by_rounding_lies_in_the_bin_of_its_equals(n_bins):
    # log and softmax bring 2 / 3 (or .7) back an ulp above or below, as the other labels' probabilities happen to be.
    edge = 0.7 if n_bins == 10 else 2 / 3
    rest = np.linspace(0.01, 0.99, 99)[:, None] * (1 - edge)
    probability = np.hstack([np.full((99, 1), edge), rest, 1 - edge - rest])
    back = np.exp(log_softmax(np.log(probability) - 3.0, axis=1))[:, 0]
    assert len(set(back)) > 1  # else nothing is tested
    assert set(bin_of(back, n_bins)) == set(bin_of(np.array([edge]), n_bins)) == {round(edge * n_bins) - 1}
    assert len(equal_mass(back, n_bins)) == 0  # one value is one bin
    assert bin_of(np.array([edge + 1e-9]), n_bins)[0] == round(edge * n_bins)  # the control


def test_ece_on_a_worked_example():
    # bin (.5, .6]: two at .6, one right: |.5 - .6| * 2/5; bin (.8, .9]: three at .9, all right: |1 - .9| * 3/5.
    confidence, correct = np.array([0.6, 0.6, 0.9, 0.9, 0.9]), np.array([1.0, 0, 1, 1, 1])
    assert ece(confidence, correct) == pytest.approx(0.4 * 0.1 + 0.6 * 0.1)


def test_ece_equals_a_loop_over_bins():
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(500), (rng.random(500) < 0.7).astype(float)
    total = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert ece(confidence, correct, 15) == pytest.approx(total)


@pytest.mark.parametrize(("n", "low", "high"), [(45, 0.09, 0.16), (1466, 0.01, 0.03)])
def test_a_perfectly_calibrated_model_has_the_ece_of_its_null_band(n, low, high):
    rng = np.random.default_rng(1)
    confidence = rng.uniform(1 / 3, 1, n)
    band = null_band(confidence, np.arange(n), 10, rng)
    assert low < band.mean < high
    inside = [band.low <= ece(confidence, (rng.random(n) < confidence).astype(float)) <= band.high for _ in range(400)]
    assert 0.91 <= np.mean(inside) <= 0.98


def test_overconfidence_stands_above_the_null_band():
    rng = np.random.default_rng(2)
    confidence = rng.uniform(0.5, 1, 300)
    band = null_band(confidence, np.arange(300), 10, rng)
    assert ece(confidence, (rng.random(300) < confidence - 0.2).astype(float)) > band.high


def test_repeating_every_case_widens_nothing_away():
    rng = np.random.default_rng(3)
    confidence, case = rng.uniform(0.5, 1, 100), np.arange(100)
    once = null_band(confidence, case, 10, np.random.default_rng(0))
    thrice = null_band(np.tile(confidence, 3), np.tile(case, 3), 10, np.random.default_rng(0))
    assert thrice.high == pytest.approx(once.high, abs=1e-9)  # as independent rows it would shrink by sqrt(3)


def test_the_band_of_an_ece_difference_equals_resampling_by_hand():
    outcomes = read_outcomes(synthetic_table(40, unparsed=0))
    ours, base = outcomes.arm("ed_physician"), outcomes.arm("none")
    estimate = ece_difference(ours, base, 10, np.random.default_rng(5), n_boot=50)
    # the same cases drawn, but their rows gathered in a loop
    cases = np.unique(ours.case)
    drawn = np.random.default_rng(5).integers(0, len(cases), (50, len(cases)))
    values = []
    for draw in drawn:
        rows = np.concatenate([np.flatnonzero(ours.case == cases[k]) for k in draw])
        both = []
        for arm in (ours, base):
            confidence = np.exp(arm.latent_logp[rows]).max(1)
            both.append(ece(confidence, (arm.latent[rows] == arm.reference[rows]).astype(float)))
        values.append(both[0] - both[1])
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_reliability_bins_add_up_to_the_ece():
    table = synthetic_table(60)
    bins = reliability(table)
    part = bins[(bins["persona"] == "ed_nurse") & (bins["stratum"] == "emergency") & (bins["labels"] == "latent")]
    arm = read_outcomes(table).arm("ed_nurse", "emergency")
    confidence = np.exp(arm.latent_logp).max(1)
    expected = ece(confidence, (arm.latent == arm.reference).astype(float))
    assert part["count"].sum() == 60
    assert (part["count"] / 60 * (part["accuracy"] - part["confidence"]).abs()).sum() == pytest.approx(expected)
    assert (part["null_low"] <= part["null_high"]).all()


def test_without_label_distributions_there_is_no_bin():
    table = synthetic_table(5)
    assert reliability(table.drop(columns=[c for c in table if "logp" in c])).empty


def test_equal_mass_bins_hold_equally_many_and_ties_stay_together():
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(300), rng.random(300) < 0.6
    edges = equal_mass(confidence, 10)
    assert np.bincount(bin_of(confidence, edges)).tolist() == [30] * 10
    order = np.argsort(confidence).reshape(10, 30)  # the usual way: sort and cut
    by_hand = np.mean([abs(confidence[rows].mean() - correct[rows].mean()) for rows in order])
    assert ece(confidence, correct, edges) == pytest.approx(by_hand)
    tied = np.array([0.9] * 8 + [0.5, 0.6])
    assert bin_of(tied, equal_mass(tied, 5)).tolist() == [1] * 8 + [0, 0]


def test_equal_width_bins_agree_with_scikit_learn():
    rng = np.random.default_rng(1)
    confidence = rng.random(400)
    correct = (rng.random(400) < confidence**2).astype(float)
    shares, means = calibration_curve(correct, confidence, n_bins=10, strategy="uniform")
    counts = np.bincount(bin_of(confidence, 10), minlength=10)
    assert ece(confidence, correct) == pytest.approx((counts / 400 * np.abs(shares - means)).sum())


def test_classwise_ece_equals_a_loop_over_labels_and_its_null_band_holds_a_calibrated_model():
    rng = np.random.default_rng(2)
    p = rng.dirichlet([1, 1, 1], 300)
    label = draw_labels(p, rng)
    by_hand = np.mean([ece(p[:, k], (label == k).astype(float)) for k in range(3)])
    assert classwise_ece(p, label) == pytest.approx(by_hand)
    band = band_of(classwise_null_draws(p, shared_draws(np.arange(300), rng), 10))
    inside = [band.low <= classwise_ece(p, draw_labels(p, rng)) <= band.high for _ in range(300)]
    assert 0.9 <= np.mean(inside) <= 0.99
    assert classwise_ece(p, (label + 1) % 3) > band.high


def pairs_by_loop(confidence, correct, case, n_bins):
    """Mean product of residuals over pairs of rows of different cases in one bin, weighted by the rows of the bin."""
    total, rows = 0.0, 0
    for b in range(n_bins):
        inside = np.flatnonzero((confidence > b / n_bins) & (confidence <= (b + 1) / n_bins))
        products = [
            (correct[i] - confidence[i]) * (correct[j] - confidence[j])
            for i in inside
            for j in inside
            if case[i] != case[j]
        ]
        if products:
            total, rows = total + len(inside) * np.mean(products), rows + len(inside)
    return total / rows


@pytest.mark.parametrize("copies", [1, 3])
def test_debiased_ece_equals_a_loop_over_pairs_of_different_cases(copies):
    rng = np.random.default_rng(3)
    case = np.repeat(np.arange(30), copies)
    confidence = rng.uniform(0.3, 1, 30 * copies)
    correct = (rng.random(30)[case] < confidence).astype(float)
    found = debiased_ece_squared(confidence, correct, case, 5)
    assert found.value == pytest.approx(pairs_by_loop(confidence, correct, case, 5))
    if copies == 1:  # the formula as it is printed: sum_b (S^2 - Q) / (N (n - 1))
        gap, b = correct - confidence, bin_of(confidence, 5)
        n, s, q = np.bincount(b), np.bincount(b, gap), np.bincount(b, gap**2)
        assert found.value == pytest.approx(((s**2 - q)[n > 1] / (n[n > 1] - 1)).sum() / n[n > 1].sum())


def test_the_jackknife_behind_its_interval_equals_leaving_cases_out_one_by_one():
    rng = np.random.default_rng(4)
    case = np.repeat(np.arange(25), 2)
    confidence, correct = rng.uniform(0.3, 1, 50), (rng.random(50) < 0.7).astype(float)
    found = debiased_ece_squared(confidence, correct, case, 4)
    left = []
    for name in range(25):
        kept = case != name
        left.append(debiased_ece_squared(confidence[kept], correct[kept], case[kept], 4).value)
    assert (found.low, found.high) == pytest.approx(jackknife_interval(found.value, np.array(left)))


def test_debiased_ece_without_two_cases_in_a_bin_is_undefined():
    assert debiased_ece_squared(np.array([0.15, 0.95]), np.array([1.0, 1]), np.arange(2)).value is None
    same = debiased_ece_squared(np.array([0.95, 0.95]), np.array([1.0, 1]), np.array(["a", "a"]))
    assert same.note == "undefined: no bin holds two cases"


def test_calibration_of_the_stated_answer_is_that_of_its_latent_probability():
    table = synthetic_table(60, unparsed=0.2)
    rows = metrics(table).set_index(["metric", "persona", "stratum"]).sort_index()
    arm = table[(table["persona"] == "ed_nurse") & table["y_gen"].notna()]
    p = np.exp(arm[["logp_A", "logp_B", "logp_C"]].to_numpy())
    p /= p.sum(1, keepdims=True)
    confidence = p[np.arange(len(arm)), ["ABC".index(letter) for letter in arm["y_gen"]]]
    correct = (arm["y_gen"] == arm["target"]).to_numpy(dtype=float)
    found = rows.xs(("ed_nurse", "all"), level=(1, 2))
    assert found.loc["stated_overconfidence", "value"] == pytest.approx((confidence - correct).mean())
    assert found.loc["stated_brier", "value"] == pytest.approx(((confidence - correct) ** 2).mean())
    assert found.loc["stated_ece", "value"] == pytest.approx(ece(confidence, correct))
    assert found.loc["stated_ece", "null_low"] < found.loc["stated_ece", "null_high"]
    stated = reliability(table).query("labels == 'stated' and persona == 'ed_nurse' and stratum == 'all'")
    assert stated["count"].sum() == len(arm)


def test_smooth_ece_is_small_for_a_calibrated_model_and_near_the_gap_for_an_overconfident_one():
    pytest.importorskip("relplot")
    rng = np.random.default_rng(5)
    confidence = rng.uniform(0.5, 1, 2000)
    assert smooth_ece(confidence, (rng.random(2000) < confidence).astype(float)) < 0.05
    assert smooth_ece(confidence, (rng.random(2000) < confidence - 0.2).astype(float)) == pytest.approx(0.2, abs=0.04)
