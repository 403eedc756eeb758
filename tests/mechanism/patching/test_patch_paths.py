"""Contributions of roles are Shapley values: they sum to the total, and both orders are told."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest

from probe.mechanism.patching.paths import (
    DIRECT,
    THROUGH_CASE,
    THROUGH_REST,
    coalition_name,
    path_shares,
    players,
    quantities,
    shapley_weights,
)
from probe.mechanism.patching.reads import LATENT, PATH, STATED, patch_reads
from tests.mechanism.patching.patch_worlds import game


@pytest.mark.parametrize("read", [LATENT, STATED])
def test_shapley_weights_are_the_mean_over_all_orders(read: str) -> None:
    names = players(read)
    rng = np.random.default_rng(0)
    weights = {player: shapley_weights(player, names) for player in names}
    worth = {chosen: float(rng.normal()) for chosen in weights[DIRECT]}
    for player in names:
        gains = []
        for order in permutations(names):
            before = frozenset(order[: order.index(player)])
            gains.append(worth[before | {player}] - worth[before])
        found = sum(weight * worth[chosen] for chosen, weight in weights[player].items())
        assert found == pytest.approx(np.mean(gains))
        assert len(gains) == math.factorial(len(names))


def test_with_two_roles_it_is_the_mean_of_both_orders_and_the_interaction_their_difference() -> None:
    told = quantities("a", ("a", "b"))
    a, b, both, none = (frozenset(each) for each in ({"a"}, {"b"}, {"a", "b"}, set()))
    assert told["shapley"] == {none: -0.5, a: 0.5, b: -0.5, both: 0.5}
    assert told["interaction"] == {a: -1.0, none: 1.0, both: 1.0, b: -1.0}


@pytest.mark.parametrize("together", [0.0, 0.3])
def test_planted_contributions_are_found_and_what_acts_together_is_shared(together: float) -> None:
    alone = {DIRECT: 0.4, THROUGH_CASE: 0.1}
    table = path_shares(patch_reads(game(np.random.default_rng(1), alone, together)), "none")
    own = table[(table["outcome"] == "expected_urgency") & (table["stratum"] == "all")]
    value = own.set_index(["role", "quantity"])["value"]
    assert value["total", "shapley"] == pytest.approx(0.5 + together, abs=1e-6)
    for role in (DIRECT, THROUGH_CASE, THROUGH_REST):
        assert value[role, "shapley"] == pytest.approx(alone.get(role, 0.0) + together / 3, abs=1e-6)
        assert value[role, "first"] == pytest.approx(alone.get(role, 0.0), abs=1e-6)
        assert value[role, "interaction"] == pytest.approx(together, abs=1e-6)
    shares = own[own["quantity"] == "shapley"].set_index("role")["share"]
    assert shares[[DIRECT, THROUGH_CASE, THROUGH_REST]].sum() == pytest.approx(1)


def test_a_persona_whose_paths_were_not_run_has_no_row() -> None:
    whole = game(np.random.default_rng(2), {DIRECT: 0.4})
    missing = coalition_name(frozenset({THROUGH_CASE, DIRECT}), players(LATENT))
    assert missing == "direct + case"
    cut = whole[~((whole["kind"] == PATH) & (whole["group"] == missing))].reset_index(drop=True)
    cut.attrs = whole.attrs
    assert path_shares(patch_reads(cut), "none").empty
    assert len(path_shares(patch_reads(whole), "none"))
