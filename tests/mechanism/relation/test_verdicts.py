"""A verdict by equivalence says *still* only of what was shown to be small; its intervals are those of the books."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import statsmodels.api as sm

from probe.behaviour import agresti_min
from probe.mechanism.relation.verdicts import Change, change, fieller, joint_status, status, true_verdict, verdict


def found(value: float, half: float) -> Change:
    return Change(value, value - half, value + half, value - 0.84 * half, value + 0.84 * half, 100, 100)


def test_the_interval_of_a_mean_is_that_of_a_regression_with_clustered_errors_and_wider_than_one_by_case() -> None:
    rng = np.random.default_rng(0)
    family = np.repeat(np.arange(40), 3)
    d = rng.normal(0.2, 0.3, 120) + rng.normal(0, 0.5, 40)[family]
    ours = change(d, family, 2.0)
    theirs = sm.OLS(d, np.ones(120)).fit(cov_type="cluster", cov_kwds={"groups": family}, use_t=True)
    np.testing.assert_allclose([ours.low, ours.high], theirs.conf_int(0.05)[0], rtol=1e-10)
    np.testing.assert_allclose([ours.low_90, ours.high_90], theirs.conf_int(0.10)[0], rtol=1e-10)
    rows = change(d, np.arange(120), 2.0)
    assert rows.high - rows.low < 0.8 * (ours.high - ours.low)


def test_two_shares_have_agresti_and_mins_interval_and_one_that_is_clustered_has_not() -> None:
    d = np.array([1.0] * 9 + [-1.0] * 4 + [0.0] * 37)
    alone = change(d, np.arange(50), 1.0, binary=True)
    assert (alone.low, alone.high) == pytest.approx(agresti_min(9, 4, 50))
    assert alone.low < alone.low_90 < alone.high_90 < alone.high
    assert change(d, np.arange(50) // 2, 1.0, binary=True).method.startswith("t,")


@pytest.mark.parametrize("n", [10, 40, 600])
def test_no_difference_in_any_case_is_still_only_where_so_many_cases_can_say_so(n: int) -> None:
    nothing = change(np.zeros(n), np.arange(n), 1.0)
    # The share of differing cases that would have shown none of itself in n cases once in ten times.
    assert (1 - nothing.high_90) ** n == pytest.approx(0.10)
    assert status(nothing, 0.1) == ("cannot tell" if n == 10 else "still")


def test_cases_without_a_difference_are_left_out_and_one_family_has_no_interval() -> None:
    some = change(np.array([0.1, np.nan, 0.3]), np.array([0, 1, 2]), 1.0)
    assert (some.n, some.families, some.value) == (2, 2, pytest.approx(0.2))
    one = change(np.array([0.1, 0.2]), np.array([0, 0]), 1.0)
    assert np.isnan(one.low)
    assert status(one, 0.1) == "cannot tell"
    assert change(np.array([np.nan]), np.array([0]), 1.0).note


def test_fieller_ends_are_the_ratios_whose_difference_is_just_not_rejected() -> None:
    rng = np.random.default_rng(1)
    family = np.arange(60) // 2
    total = rng.normal(0.4, 0.5, 60)
    latent = 0.7 * total + rng.normal(0, 0.2, 60)
    ratio = fieller(latent, total, family)
    assert ratio.low is not None
    assert ratio.high is not None
    for end in (ratio.low, ratio.high):
        residual = change(latent - end * total, family, 10.0)
        assert min(abs(residual.low), abs(residual.high)) == pytest.approx(0, abs=1e-9)
    nothing = fieller(latent, total - total.mean(), family)
    assert nothing.value is None
    assert "holds 0" in nothing.note


def test_a_fieller_set_covers_the_ratio_as_often_as_it_says() -> None:
    rng, covered, n = np.random.default_rng(2), 0, 600
    for _ in range(n):
        total = rng.normal(0.3, 0.8, 80)
        ratio = fieller(0.5 * total + rng.normal(0.15, 0.4, 80), total, np.arange(80))
        covered += ratio.value is None or bool(ratio.low <= 1.0 <= ratio.high)  # E latent / E total = 1
    assert 0.92 < covered / n < 0.985


def test_the_verdict_of_every_pair_of_statuses() -> None:
    told = {(a, b, s): verdict(a, b, same_sign=s) for a in STATES for b in STATES for s in (True, False)}
    assert told[("moved", "still", True)] == "latent"
    assert told[("still", "moved", False)] == "decoding"
    assert (told[("moved", "moved", True)], told[("moved", "moved", False)]) == ("both", "opposed")
    assert told[("still", "still", True)] == "neither"
    unsure = [key for key in told if "cannot tell" in key]
    assert {told[key] for key in unsure} == {"cannot tell"}


STATES = ("moved", "still", "cannot tell")


def test_what_is_not_significant_is_not_still() -> None:
    assert status(found(0.02, 0.20), 0.1) == "cannot tell"
    assert status(found(0.02, 0.05), 0.1) == "still"
    assert status(found(0.07, 0.02), 0.1) == "still"  # resolved, and smaller than the margin
    assert status(found(0.15, 0.20), 0.1) == "cannot tell"
    assert status(found(-0.15, 0.10), 0.1) == "moved"


def test_no_estimate_is_both_moved_and_still() -> None:
    for value, half in itertools.product(np.linspace(-0.3, 0.3, 61), np.linspace(0.001, 0.3, 40)):
        one = found(float(value), float(half))
        moved = (one.low > 0 or one.high < 0) and abs(one.value) > 0.1
        still = one.low_90 > -0.1 and one.high_90 < 0.1
        assert not (moved and still)


def test_a_status_must_hold_at_both_ends_of_what_is_not_known_and_in_the_same_direction() -> None:
    up, down, small = found(0.3, 0.1), found(-0.3, 0.1), found(0.0, 0.05)
    assert joint_status([up, up, found(0.2, 0.05)], 0.1) == "moved"
    assert joint_status([small, down, up], 0.1) == "cannot tell"
    assert joint_status([up, down], 0.1) == "cannot tell"


def test_a_truth_near_the_margin_is_held_to_no_verdict() -> None:
    assert true_verdict(0.3, 0.01) == "latent"
    assert true_verdict(0.3, -0.3) == "opposed"
    assert true_verdict(0.0, 0.0) == "neither"
    assert true_verdict(0.12, 0.0) is None
