"""The text swap finds paths that are planted, splits a total over them, and says what it cannot tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from probe.mechanism.swap.paths import (
    DIRECT,
    LATENT,
    QUANTITIES,
    TEXT,
    FourReads,
    four_reads,
    path_effects,
    path_verdicts,
)
from probe.values import ProbeError
from tests.mechanism.swap.swap_worlds import NONE, OPTIONS, P, with_urgency, world


def effect(reads: pd.DataFrame, outcome: str = "expected_urgency", stratum: str = "all") -> pd.DataFrame:
    table = path_effects(reads, NONE)
    return table[(table["outcome"] == outcome) & (table["stratum"] == stratum)].set_index("quantity")


def told(reads: pd.DataFrame, **settings: float) -> str:
    table = path_verdicts(reads, NONE, **settings)
    return str(table[table["stratum"] == "all"]["verdict"].iloc[0])


@pytest.mark.parametrize(
    ("planted", "verdict", "expected"),
    [
        ({"text": 0.3}, TEXT, {"total": 0.3, "text": 0.3, "direct": 0.0, "interaction": 0.0}),
        ({"direct": -0.3}, DIRECT, {"total": -0.3, "text": 0.0, "direct": -0.3, "interaction": 0.0}),
        ({"text": 0.3, "direct": 0.25}, "both", {"total": 0.55, "text": 0.3, "direct": 0.25, "interaction": 0.0}),
        ({"text": 0.3, "direct": -0.3}, "opposed", {"total": 0.0, "text": 0.3, "direct": -0.3, "interaction": 0.0}),
        ({"both": 0.4}, "both", {"total": 0.4, "text": 0.2, "direct": 0.2, "interaction": 0.4}),
        ({}, "neither", {"total": 0.0, "text": 0.0, "direct": 0.0, "interaction": 0.0}),
    ],
)
def test_planted_paths_are_found_with_their_sizes(
    planted: dict[str, float], verdict: str, expected: dict[str, float]
) -> None:
    reads = world(np.random.default_rng(1), **planted)
    found = effect(reads)
    for quantity, size in expected.items():
        row = found.loc[quantity]
        assert row["value"] == pytest.approx(size, abs=0.03)
        assert row["low"] - 0.01 <= size <= row["high"] + 0.01
    assert told(reads) == verdict


def test_both_orders_sum_to_the_total_and_differ_by_the_interaction() -> None:
    value = effect(world(np.random.default_rng(2), text=0.2, direct=-0.1, both=0.3))["value"]
    for text, direct in (("text_first", "direct_last"), ("text_last", "direct_first"), ("text", "direct")):
        assert value[text] + value[direct] == pytest.approx(value["total"], abs=1e-12)
    assert value["text_last"] - value["text_first"] == pytest.approx(value["interaction"], abs=1e-12)
    assert value["direct_last"] - value["direct_first"] == pytest.approx(value["interaction"], abs=1e-12)
    assert set(value.index) == set(QUANTITIES)


def test_an_interaction_that_moved_is_told_beside_the_verdict_and_a_still_one_is_not() -> None:
    rng = np.random.default_rng(3)
    with_one = path_verdicts(world(rng, both=0.4), NONE)
    assert with_one["interaction"].iloc[0] == "moved"
    assert "the orders differ" in with_one["note"].iloc[0]
    assert not path_verdicts(world(rng, text=0.4), NONE)["note"].any()


def test_a_persona_that_moves_the_label_before_any_text_alone_is_told_from_one_that_moves_none() -> None:
    rng = np.random.default_rng(11)
    for prompt, verdict in ((0.4, LATENT), (0.0, "neither")):
        reads = world(rng)
        early = with_urgency(1 + prompt * (reads["persona"] == P).to_numpy() + rng.normal(0, 0.05, len(reads)))
        reads = reads.assign(**{f"latent_logp_{option}": early[:, k] for k, option in enumerate(OPTIONS)})
        assert told(reads) == verdict
        table = path_effects(reads, NONE).query("stratum == 'all' and outcome == 'expected_urgency'")
        found = table.set_index("quantity").loc["latent"]
        assert found["value"] == pytest.approx(prompt, abs=0.03)
    reads.loc[0, "latent_logp_home"] = np.nan  # not read everywhere: nothing is said of it
    assert "latent" not in set(path_effects(reads, NONE)["quantity"])
    moved = world(rng, direct=0.4)
    assert told(moved.assign(**{f"latent_logp_{option}": 0.0 for option in OPTIONS})) == DIRECT


def test_too_few_cases_are_no_proof_of_neither() -> None:
    reads = world(np.random.default_rng(4), 8, noise=0.3)
    assert told(reads) == "cannot tell"
    assert told(world(np.random.default_rng(4), 400, noise=0.3)) == "neither"
    one = world(np.random.default_rng(4), 3, 3)
    row = effect(one).loc["total"]
    assert np.isnan(row["low"])
    assert row["note"] == "one case family: no interval"
    assert told(one) == "cannot tell"


@pytest.mark.parametrize("per_family", [1, 4])
def test_intervals_cover_at_their_level_where_reads_cluster_by_family(per_family: int) -> None:
    rng, inside, by_case = np.random.default_rng(5), 0, 0
    case = np.arange(80)
    for _ in range(400):
        # What the text adds differs from family to family, alike for all cases of one; on average it is nothing.
        shift = rng.normal(0, 0.1, 80 // per_family)[case // per_family]
        y = 1 + rng.normal(0, 0.3, (80, 1)) + shift[:, None] * [1, 0, 1, 0] + rng.normal(0, 0.02, (80, 4))
        pairs = FourReads(
            P, False, case, case // per_family, case, {"expected_urgency": y}, {}, {"expected_urgency": 2.0}
        )
        found = pairs.quantity("text", "expected_urgency")
        inside += bool(found.low <= 0 <= found.high)
        alone = replace(pairs, family=case).quantity("text", "expected_urgency")
        by_case += bool(alone.low <= 0 <= alone.high)
    assert 0.92 <= inside / 400 <= 0.98
    assert (by_case / 400 < 0.85) == (per_family > 1)  # clustered by case they would not


def test_only_cases_that_both_wrote_a_text_for_count_and_conditions_of_a_case_are_averaged() -> None:
    reads = world(np.random.default_rng(6), 20, text=0.3)
    lacking = reads[~((reads["author"] == P) & reads["case"].isin(["3", "4"]))]
    assert effect(lacking).loc["total", "n"] == 18
    twice = pd.concat([reads.assign(rotation=0), reads.assign(rotation=1)], ignore_index=True)
    twice.attrs = reads.attrs
    one, two = effect(reads), effect(twice)
    assert two.loc["total", "n"] == 20
    pd.testing.assert_frame_equal(one[["value", "low", "high"]], two[["value", "low", "high"]])


def test_rows_in_any_order_give_the_same_table() -> None:
    reads = world(np.random.default_rng(7), text=0.1, both=0.2)
    shuffled = reads.sample(frac=1, random_state=1)
    shuffled.attrs = reads.attrs
    keys = ["stratum", "outcome", "quantity"]
    one, two = (path_effects(each, NONE).sort_values(keys).reset_index(drop=True) for each in (reads, shuffled))
    np.testing.assert_allclose(one[["value", "low", "high"]], two[["value", "low", "high"]], atol=1e-12)


def test_outcomes_are_those_of_the_label_distribution() -> None:
    reads = world(np.random.default_rng(8), 30, text=0.3, noise=0.0)
    (pairs,) = four_reads(reads, NONE)
    own = reads[(reads["persona"] == P) & (reads["author"] == P)].set_index("case").loc[list(pairs.case)]
    p = np.exp(own[[f"logp_{option}" for option in OPTIONS]].to_numpy())
    np.testing.assert_allclose(pairs.y["expected_urgency"][:, 0], p @ [0, 1, 2])
    np.testing.assert_allclose(pairs.y["p_high_risk"][:, 0], p[:, 2])
    np.testing.assert_allclose(pairs.y["p_target"][:, 0], p[:, 1])
    np.testing.assert_array_equal(pairs.y["accuracy"][:, 0], p.argmax(1) == 1)
    halved = reads.copy()
    halved[[f"logp_{option}" for option in OPTIONS]] -= np.log(2)  # half of the mass is on other tokens
    halved.attrs = reads.attrs
    assert path_effects(halved, NONE)["value"].to_numpy() == pytest.approx(
        path_effects(reads, NONE)["value"].to_numpy()
    )


def test_a_base_without_texts_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ProbeError, match=r"'nobody' wrote none of these texts.*none"):
        path_effects(world(np.random.default_rng(9), 4), "nobody")
