"""Intervals and tests against second implementations, hand-computed numbers and simulated coverage."""

from itertools import product

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from probe.behaviour import agresti_min, holm, mcnemar, paired_difference, paired_t, wilson
from probe.behaviour.intervals import mean, proportion
from probe.behaviour.significance import mcnemar_clustered


@pytest.mark.parametrize(("k", "n"), [(0, 12), (1, 1), (7, 20), (40, 40), (433, 600)])
def test_wilson_agrees_with_statsmodels(k, n):
    assert wilson(k, n) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-12)


@pytest.mark.parametrize(("b", "c"), [(1, 0), (3, 9), (12, 12), (24, 0), (10, 30), (13, 12), (111, 53)])
def test_mcnemar_agrees_with_statsmodels_and_is_exact_below_25_discordant_pairs(b, c):
    table = [[50, b], [c, 50]]
    expected = statsmodels_mcnemar(table, exact=b + c < 25, correction=True).pvalue
    p, name = mcnemar(b, c)
    assert p == pytest.approx(expected, abs=1e-12)
    assert ("exact" in name) == (b + c < 25)


def test_mcnemar_is_one_where_the_pairs_do_not_lean():
    assert mcnemar(0, 0) == (1.0, "McNemar, no discordant pair")  # statsmodels says 0 here
    assert mcnemar(20, 20)[0] == 1.0


def test_agresti_min_on_a_hand_computed_table():
    # b = 8, c = 2, n = 50: b' = 8.5, c' = 2.5, n' = 52, centre 6/52, SE sqrt(11 - 36/52) / 52.
    half = 1.959964 * np.sqrt(11 - 36 / 52) / 52
    assert agresti_min(8, 2, 50) == pytest.approx((6 / 52 - half, 6 / 52 + half), abs=1e-6)
    low, high = agresti_min(0, 0, 50)
    assert low < 0 < high  # no discordant pair is no certainty


def test_agresti_min_covers_at_200_cases():
    rng = np.random.default_rng(0)
    cells = rng.multinomial(200, [0.55, 0.18, 0.10, 0.17], size=2000)  # true difference .08, about 56 discordant
    inside = [low <= 0.08 <= high for low, high in (agresti_min(b, c, 200) for _, b, c, _ in cells)]
    assert 0.93 <= np.mean(inside) <= 0.97


def test_mcnemar_rejects_seldom_without_an_effect_and_often_with_one():
    rng = np.random.default_rng(1)
    null = rng.multinomial(200, [0.6, 0.1, 0.1, 0.2], size=2000)
    real = rng.multinomial(200, [0.5, 0.2, 0.08, 0.22], size=200)
    assert np.mean([mcnemar(b, c)[0] < 0.05 for _, b, c, _ in null]) <= 0.05
    assert np.mean([mcnemar(b, c)[0] < 0.05 for _, b, c, _ in real]) >= 0.75


def test_holm_agrees_with_statsmodels_and_keeps_the_order():
    p = [0.04, 0.001, 0.03, 0.001, 0.9, 1.0]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # by hand
    assert holm([]) == []


def test_paired_t_agrees_with_scipy_and_names_its_degenerate_cases():
    d = np.random.default_rng(2).normal(0.3, 1, 40)
    assert paired_t(d)[0] == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert paired_t(np.zeros(5))[0] == 1.0
    assert paired_t(np.full(5, 0.2))[0] is None
    assert paired_t(np.array([0.2]))[0] is None


def test_rounding_in_a_mean_base_is_no_difference_and_a_real_one_of_the_same_shape_is():
    shape, case = np.array([1.0, 2, 1, 1, 2, 1]), np.arange(6)
    nothing, small = (paired_difference(np.ones(6), 1 + size * shape, case, binary=False) for size in (2.3e-16, 1e-6))
    assert (nothing.estimate.value, nothing.estimate.p) == (0.0, 1.0)
    assert small.estimate.p < 0.01
    infinite = paired_difference(np.append(shape, np.inf), np.ones(7), np.arange(7), binary=False)
    assert infinite.estimate.value is None


def test_clustered_intervals_equal_the_plain_ones_with_one_row_per_case():
    x, case = np.random.default_rng(3).normal(size=30), np.arange(30)
    t = stats.ttest_1samp(x, 0).confidence_interval()
    assert (mean(x, case).low, mean(x, case).high) == pytest.approx((t.low, t.high))
    for b, c in ((3, 1), (0, 5), (2, 2), (17, 7), (19, 7), (40, 20)):
        assert mcnemar_clustered(np.repeat([1.0, -1, 0], [b, c, 9]))[0] == pytest.approx(mcnemar(b, c)[0])


def test_a_few_leaning_cases_are_referred_to_every_change_of_their_signs():
    d = np.array([3.0, 3, 2, -1, 4, 0, 2])
    sums = [abs(np.dot(signs, d)) for signs in product((1, -1), repeat=len(d))]
    assert mcnemar_clustered(d)[0] == pytest.approx(np.mean(np.array(sums) >= d.sum()))
    # Four cases that lean one way by three wordings each are four coins, not a z of 2 with a p of .046.
    assert mcnemar_clustered(np.full(4, 3.0)) == (0.125, "McNemar clustered by case, exact")
    many = np.repeat([3.0, -3], [20, 10])  # sums go in steps of 6
    assert mcnemar_clustered(many)[0] == pytest.approx(stats.chi2.sf((30 - 3) ** 2 / (30 * 9), 1))


def test_cases_of_one_share_each_have_the_interval_of_all_rows_and_none_is_lost_to_rounding():
    case = np.repeat(np.arange(10), 3)
    balanced = proportion(np.tile([1.0, 0, 0], 10), case)
    assert (balanced.low, balanced.high) == pytest.approx(wilson(10, 30))
    fourths = proportion(np.tile([1.0, 0, 0, 0], 10), np.repeat(np.arange(10), 4))  # p without rounding
    assert (fourths.low, fourths.high) == pytest.approx(wilson(10, 40))
    assert (proportion(np.ones(30), case).low) == pytest.approx(wilson(10, 10)[0])  # the control: no SE at 0 and 1


def test_repeating_every_row_of_a_case_adds_no_information():
    rng = np.random.default_rng(4)
    x, case = rng.normal(size=50), np.arange(50)
    once, thrice = mean(x, case), mean(np.tile(x, 3), np.tile(case, 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    ones = (rng.random(50) < 0.3).astype(float)
    single, triple = proportion(ones, case), proportion(np.tile(ones, 3), np.tile(case, 3))
    assert triple.high - triple.low == pytest.approx(single.high - single.low, rel=0.03)
    naive = wilson(3 * ones.sum(), 150)
    assert triple.high - triple.low > 1.5 * (naive[1] - naive[0])


def test_nothing_to_count_is_undefined_and_one_case_has_no_interval():
    nan = np.full(4, np.nan)
    assert proportion(nan, np.arange(4)).value is None
    assert mean(nan, np.arange(4)).value is None
    assert paired_difference(nan, nan, np.arange(4), True).estimate.value is None
    one = mean(np.array([0.5]), np.array(["a"]))
    assert one.value == 0.5
    assert one.low is None


def test_an_infinite_score_makes_the_mean_undefined_and_is_counted():
    estimate = mean(np.array([0.1, np.inf, 0.2]), np.arange(3))
    assert estimate.value is None
    assert estimate.counts["infinite"] == 1


def test_a_binary_difference_counts_pairs_and_skips_those_with_a_gap():
    ours, theirs = np.array([1, 1, 0, 1, np.nan]), np.array([0, 1, 1, 0, 1.0])
    found = paired_difference(ours, theirs, np.arange(5), True)
    estimate, test = found.estimate, found.test
    assert (estimate.value, estimate.n) == (0.25, 4)
    assert (estimate.counts["b"], estimate.counts["c"]) == (2, 1)
    assert test == "McNemar, exact"
