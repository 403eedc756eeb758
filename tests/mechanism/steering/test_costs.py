"""What an arm costs, in pairs by case: planted differences are found, cases without a score are left out."""

from __future__ import annotations

import numpy as np
import pytest

from probe.mechanism.steering.costs import CostsOf, cost_table


def arms(rng: np.random.Generator, n: int) -> list[CostsOf]:
    parsed = rng.random(n) < 0.95
    length = 30 + 5 * rng.standard_normal(n)
    return [
        CostsOf("none", "none", {"parse_rate": parsed * 1.0, "n_tokens": length}),
        CostsOf("prompted", "prompted", {"parse_rate": parsed * 1.0, "n_tokens": length + 4}),
        CostsOf("steered", "a", {"parse_rate": (parsed & (rng.random(n) < 0.8)) * 1.0, "n_tokens": length + 9}),
    ]


def test_a_planted_cost_is_found_against_each_reference_and_the_same_scores_cost_nothing() -> None:
    family = np.array([f"f{i}" for i in range(300)])
    table = cost_table("p", arms(np.random.default_rng(0), 300), family).set_index(["kind", "cost"])
    steered = table.loc["steered", "parse_rate"]
    assert steered["from_none"] == pytest.approx(-0.2, abs=0.08) and steered["from_none_high"] < 0
    assert table.loc[("steered", "n_tokens"), "from_none"] == pytest.approx(9)
    assert table.loc[("steered", "n_tokens"), "from_prompted"] == pytest.approx(5)
    same = table.loc[("prompted", "parse_rate")]
    assert same["from_none_low"] <= 0 <= same["from_none_high"]
    assert np.isnan(table.loc[("none", "parse_rate"), "from_none"])


def test_cases_without_a_score_are_left_out_of_value_and_difference() -> None:
    score = np.array([1.0, 0.0, np.nan, 1.0])
    both = [CostsOf("none", "none", {"parse_rate": np.array([1.0, 1.0, 1.0, np.nan])})]
    both.append(CostsOf("steered", "a", {"parse_rate": score}))
    row = cost_table("p", both, np.array(list("abcd"))).set_index("kind").loc["steered"]
    assert row["n"] == 3 and row["value"] == pytest.approx(2 / 3) and row["from_none"] == pytest.approx(-0.5)


def test_the_health_of_an_arm_is_of_all_its_scores() -> None:
    scores = {
        "label_mass": np.array([0.2, 0.4]),
        "entropy": np.array([1.0, 1.0]),
        "parse_rate": np.array([1.0, np.nan]),
    }
    health = CostsOf("steered", "a", scores).health
    assert health.label_mass == pytest.approx(0.3) and health.parse_rate == 1 and np.isnan(health.repetition)
