"""Disagreement causes on a hand-made table: overlapping rates on both sides, exclusive shares by precedence."""

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import confint_proportions_2indep

from probe.behaviour import causes
from probe.values import ProbeError
from tests.behaviour.synthetic import synthetic_table

TIED, CLEAR = (-0.70, -0.72, -5.0), (-0.1, -3.0, -5.0)


def cell(y_gen, latent, letter_first, slot=None, status=None):
    """A cell whose latent label is A; ``slot`` is the distribution at the answer site."""
    slot = slot or {"A": (-0.1, -4, -4), "B": (-4, -0.1, -4), "C": (-4, -4, -0.1)}.get(y_gen, (np.nan,) * 3)
    row = {"y_gen": y_gen, "status": status or "parsed", "letter_first": letter_first, "target": "A"}
    row |= dict(zip(("logp_A", "logp_B", "logp_C"), latent, strict=True))
    return row | dict(zip(("stated_logp_A", "stated_logp_B", "stated_logp_C"), slot, strict=True))


def arm(rows):
    table = pd.DataFrame(rows).assign(case=lambda t: np.arange(len(t)), persona="none")
    table.attrs = {"options": ["A", "B", "C"]}
    return table


HAND = [
    cell(None, TIED, False, status="refused"),  # disagrees: unparsed, near tie
    cell("B", TIED, False),  # near tie, late letter
    cell("B", CLEAR, False, slot=(-0.1, -3, -3)),  # token variant, late letter
    cell("B", CLEAR, False),  # late letter
    cell("C", CLEAR, True),  # none
    cell("A", CLEAR, False),  # agrees, late letter
    cell("A", CLEAR, True),
    cell("A", TIED, True),  # agrees, near tie
    cell("A", CLEAR, True),
]


def test_causes_are_counted_on_both_sides_and_every_disagreeing_cell_once():
    found = causes(arm(HAND)).set_index("cause")
    seen = {name: (row["k_disagree"], row["k_agree"], row["k_share"]) for name, row in found.iterrows()}
    assert seen == {
        "unparsed": (1, 0, 1),
        "near_tie": (2, 1, 1),
        "token_variant": (1, 0, 1),
        "late_letter": (3, 1, 1),
        "none": (1, 2, 1),
    }
    assert (found["n_disagree"] == 5).all()
    assert (found["n_agree"] == 4).all()
    assert found["share"].sum() == pytest.approx(1)
    assert found.loc["late_letter", "ratio"] == pytest.approx((3 / 5) / (1 / 4))
    assert np.isnan(found.loc["unparsed", "ratio"])
    assert "by definition" in found.loc["unparsed", "note"]
    assert "never seen where the labels agree" in found.loc["token_variant", "note"]


def test_the_interval_of_the_ratio_agrees_with_statsmodels():
    row = causes(arm(HAND * 10)).set_index("cause").loc["late_letter"]
    expected = confint_proportions_2indep(30, 50, 10, 40, compare="ratio", method="log")
    assert (row["ratio_low"], row["ratio_high"]) == pytest.approx(expected)


def test_a_wider_near_tie_takes_cells_from_the_causes_behind_it():
    wide = causes(arm(HAND), near_tie=10.0).set_index("cause")
    assert wide.loc["near_tie", "k_share"] == 4
    assert wide.loc["late_letter", "k_share"] == 0
    assert wide.loc["late_letter", "k_disagree"] == 3  # the overlapping rate does not move


def test_where_all_agree_or_none_does_the_ratio_is_undefined_and_says_why():
    agreeing = causes(arm(HAND[5:])).set_index("cause")
    assert agreeing["note"].str.contains("no cell disagrees").all()
    assert agreeing["share"].isna().all()
    silent = causes(arm([cell(None, CLEAR, False, status="unparsable")] * 3)).set_index("cause")
    assert silent.loc["unparsed", "share"] == 1
    assert silent.loc["near_tie", "note"] == "undefined: no cell agrees"


def test_a_cause_that_every_cell_shows_has_the_ratio_one_and_no_interval():
    row = causes(arm([cell("B", CLEAR, False), cell("A", CLEAR, False)])).set_index("cause").loc["late_letter"]
    assert row["ratio"] == 1
    assert np.isnan(row["ratio_low"])
    assert row["note"].startswith("seen in every cell")


def test_a_cause_whose_column_is_missing_is_absent_and_its_cells_fall_to_the_next():
    table = arm(HAND).drop(columns="letter_first")
    found = causes(table)
    assert "late_letter" not in set(found["cause"])
    assert found.attrs["absent"] == ["late_letter needs the column letter_first, which the table does not have"]
    assert found.set_index("cause").loc["none", "k_share"] == 2
    with pytest.raises(ProbeError, match="lacks y_gen"):
        causes(table.drop(columns="y_gen"))


def test_a_letter_off_its_slot_is_a_draw_where_the_answer_was_sampled_and_a_token_variant_where_it_was_greedy():
    found = {seed: causes(arm(HAND).assign(seed=seed)).set_index("cause") for seed in (0, 3)}
    assert "draw" not in found[0].index
    assert "token_variant" not in found[3].index
    pd.testing.assert_series_equal(found[0].loc["token_variant"], found[3].loc["draw"], check_names=False)
    mixed = causes(pd.concat([arm(HAND).assign(seed=seed, condition=str(seed)) for seed in (0, 3)])).set_index("cause")
    assert (mixed.loc["token_variant", "k_share"], mixed.loc["draw", "k_share"]) == (1, 1)
    assert mixed["share"].sum() == pytest.approx(1)


def test_shares_add_up_in_every_arm():
    table = synthetic_table(60).assign(letter_first=False)
    total = causes(table).groupby(["persona", "stratum"])["share"].sum()
    assert total.to_numpy() == pytest.approx(np.ones(len(total)))
