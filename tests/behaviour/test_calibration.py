"""Calibration against worked examples, a loop and the known bias of the ECE."""

import numpy as np
import pytest

from probe.behaviour import ece, null_band, read_outcomes, reliability
from probe.behaviour.calibration import bin_of, ece_difference
from tests.behaviour.synthetic import synthetic_table


def test_bins_are_closed_on_the_right_and_the_first_holds_zero():
    edges = [0.0, 0.05, 0.1, 0.1000001, 0.2, 0.3, 0.7, 0.95, 1.0]
    assert bin_of(np.array(edges), 10).tolist() == [0, 0, 0, 1, 1, 2, 6, 9, 9]


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
    # the same multinomial draws, but rows repeated in a loop
    cases = np.unique(ours.case)
    weights = np.random.default_rng(5).multinomial(len(cases), np.full(len(cases), 1 / len(cases)), size=50)
    values = []
    for draw in weights:
        rows = np.concatenate([np.repeat(np.flatnonzero(ours.case == c), k) for c, k in zip(cases, draw, strict=True)])
        both = []
        for arm in (ours, base):
            confidence = np.exp(arm.latent_logp[rows]).max(1)
            both.append(ece(confidence, (arm.latent[rows] == arm.reference[rows]).astype(float)))
        values.append(both[0] - both[1])
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_reliability_bins_add_up_to_the_ece():
    table = synthetic_table(60)
    bins = reliability(table)
    part = bins[(bins["persona"] == "ed_nurse") & (bins["stratum"] == "emergency")]
    arm = read_outcomes(table).arm("ed_nurse", "emergency")
    confidence = np.exp(arm.latent_logp).max(1)
    expected = ece(confidence, (arm.latent == arm.reference).astype(float))
    assert part["count"].sum() == 60
    assert (part["count"] / 60 * (part["accuracy"] - part["confidence"]).abs()).sum() == pytest.approx(expected)
    assert (part["null_low"] <= part["null_high"]).all()


def test_without_label_distributions_there_is_no_bin():
    table = synthetic_table(5)
    assert reliability(table.drop(columns=[c for c in table if "logp" in c])).empty
