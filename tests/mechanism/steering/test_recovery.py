"""Recovered fraction, pattern and verdict: what was planted is found, what was not planted is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probe.mechanism.relation.verdicts import change
from probe.mechanism.steering.recovery import pattern, rank_p, recovered_fraction, verdict
from tests.mechanism.steering.steering_world import World


def families(n: int, per: int = 1) -> np.ndarray:
    return np.array([f"f{i // per}" for i in range(n)], dtype=object)


@pytest.mark.parametrize("share", [-0.5, 0.0, 0.4, 1.0, 1.7])
def test_a_planted_share_is_recovered(share: float) -> None:
    rng = np.random.default_rng(0)
    none = rng.random(400)
    effect = 0.3 + 0.2 * rng.standard_normal(400)
    steered = none + share * effect + 0.1 * rng.standard_normal(400)
    found = recovered_fraction(steered, none, none + effect, families(400))
    assert found.value is not None and found.low is not None and found.high is not None
    assert found.low < share < found.high and found.value == pytest.approx(share, abs=0.05)


def test_a_prompt_without_an_effect_leaves_nothing_to_recover_and_with_one_it_does() -> None:
    rng = np.random.default_rng(1)
    none, noise = rng.random(300), 0.2 * rng.standard_normal(300)
    noise -= noise.mean()
    steered = none + 0.1
    nothing = recovered_fraction(steered, none, none + noise, families(300))
    assert nothing.value is None and "holds 0" in nothing.note
    assert recovered_fraction(steered, none, none + noise + 0.1, families(300)).value == pytest.approx(1.0)


def test_the_fieller_set_covers_where_a_ratio_of_case_shares_would_not() -> None:
    """A mean of per-case shares has no expectation; the ratio of means covers its truth, families of two included."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        effect = 0.15 + 0.5 * np.repeat(rng.standard_normal(60), 2)
        steered = 0.6 * effect + 0.1 * rng.standard_normal(120)
        found = recovered_fraction(steered, np.zeros(120), effect, families(120, 2))
        hits += found.low is None or found.high is None or found.low <= 0.6 <= found.high
    assert hits / 400 >= 0.93


def test_the_same_shifts_fit_wholly_and_scaled_ones_have_their_slope() -> None:
    rng = np.random.default_rng(4)
    prompted = rng.standard_normal((80, 3)) + 0.7
    same = pattern(prompted, prompted, families(80))
    half = pattern(0.5 * prompted, prompted, families(80))
    assert same.fit.value == pytest.approx(1) and same.slope.value == pytest.approx(1)
    assert half.slope.value == pytest.approx(0.5) and half.fit.value == pytest.approx(1 - 0.25)
    assert half.slope_centred.value == pytest.approx(0.5)


def test_a_uniform_push_has_the_mean_and_not_the_cases() -> None:
    """The mean is met exactly; which cases move is not: only the fit without the means says so."""
    rng = np.random.default_rng(5)
    prompted = np.array([-1.0, 0.0, 1.0]) * np.abs(1 + rng.standard_normal((200, 1)))
    uniform = np.broadcast_to(prompted.mean(0), prompted.shape)
    found = pattern(uniform, prompted, families(200))
    assert found.fit.value is not None and found.fit.value > 0.4
    assert found.slope_centred.value == pytest.approx(0, abs=1e-9)
    assert found.fit_centred.value == pytest.approx(0, abs=1e-9)
    shuffled = pattern(prompted[rng.permutation(200)], prompted, families(200))
    assert shuffled.fit_centred.value is not None and shuffled.fit_centred.value < -0.5


def test_shifts_that_lead_away_fit_below_zero() -> None:
    prompted = np.tile([1.0, -1.0], (30, 1))
    assert pattern(-prompted, prompted, families(30)).fit.value == pytest.approx(-3)


def test_a_pattern_is_undefined_where_the_prompt_shifts_nothing_or_all_alike() -> None:
    steered = np.ones((20, 3))
    nothing = pattern(steered, np.zeros((20, 3)), families(20))
    alike = pattern(steered, np.ones((20, 3)), families(20))
    assert nothing.fit.value is None and "no log-ratio" in nothing.fit.note
    assert alike.fit.value == pytest.approx(1) and alike.fit_centred.value is None


@pytest.mark.parametrize("per", [1, 3])
def test_the_intervals_of_slope_and_fit_cover_the_truth(per: int) -> None:
    """Against the values of a population of 200,000 cases drawn in the same way."""
    rng = np.random.default_rng(6)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        shared = np.repeat(rng.standard_normal((-(-n // per), 3)), per, axis=0)[:n]
        prompted = 0.8 + 0.6 * shared + 0.4 * rng.standard_normal((n, 3))
        return 0.3 + 0.5 * prompted + 0.5 * np.repeat(rng.standard_normal((-(-n // per), 3)), per, axis=0)[:n], prompted

    truth = pattern(*draw(200_001), families(200_001, per))
    hits = dict.fromkeys(vars(truth), 0)
    for _ in range(300):
        found = pattern(*draw(180), families(180, per))
        for name in hits:
            one, true = getattr(found, name), getattr(truth, name).value
            hits[name] += one.low <= true <= one.high
    assert all(0.91 <= n / 300 <= 0.985 for n in hits.values()), hits


@pytest.mark.parametrize(
    ("steered", "expected"),
    [(0.0, "not moved"), (0.2, "partly"), (0.5, "as prompted"), (0.9, "too far"), (-0.4, "opposite")],
)
def test_the_verdict_says_where_the_steered_run_stands(steered: float, expected: str) -> None:
    rng = np.random.default_rng(7)
    noise = 0.05 * rng.standard_normal((2, 300))
    p, s = 0.5 + noise[0], steered + noise[1]
    told = [change(one, families(300), 2.0) for one in (p, s, s - p)]
    assert verdict(*told, margin=0.1) == expected
    assert verdict(*told, margin=0.1, broken=True) == "broken"


def test_a_still_prompt_leaves_nothing_and_a_noisy_one_cannot_be_told() -> None:
    rng = np.random.default_rng(8)
    still, noisy = 0.02 + 0.05 * rng.standard_normal(300), 0.1 + 1.5 * rng.standard_normal(40)
    moved = change(np.full(300, 0.5), families(300), 2.0)
    assert verdict(change(still, families(300), 2.0), moved, moved, 0.1) == "nothing to recover"
    assert verdict(change(noisy, families(40), 2.0), moved, moved, 0.1) == "cannot tell"


def test_a_rank_p_is_uniform_where_the_direction_is_one_of_its_controls() -> None:
    rng = np.random.default_rng(9)
    draws = rng.standard_normal((2000, 100))
    p = np.array([rank_p(float(row[0]), row[1:]) for row in draws])
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.015)
    assert p.min() >= 1 / 100 and np.isnan(rank_p(0.0, np.array([])))


def test_tuned_to_the_answer_the_best_of_twenty_random_directions_recovers_the_mean_shift() -> None:
    """Why doses are equal and not tuned: with three labels random directions reach the mean by search alone."""
    rng = np.random.default_rng(10)
    world = replace(World.drawn(rng, n=200, size=2.0), own=np.zeros((200, 24)))
    rank = np.arange(3)

    def urgency(added: np.ndarray | float) -> np.ndarray:
        p = np.exp(world.logp(added))
        return np.asarray(p @ rank / p.sum(1))

    whole = float((urgency(world.prompted) - urgency(0.0)).mean())
    units = rng.standard_normal((20, 24))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    tuned = [
        min(abs(float((urgency(s * unit) - urgency(0.0)).mean()) / whole - 1) for s in np.geomspace(0.2, 60, 80))
        for unit in units
    ]
    assert min(tuned) < 0.05
