"""What is planted in a grid of reads is recovered with intervals that cover it, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest

from probe.mechanism.patching.estimates import construction_check, patch_effects, patch_labels, run_totals
from probe.mechanism.patching.grid import DENOISING, NOISING, OTHER_CASE, RESID, Place
from probe.mechanism.patching.groups import ALL_TOKENS, CASE, PROMPT_END
from probe.mechanism.patching.reads import BASE_RUN, patch_reads
from probe.values import ProbeError
from tests.mechanism.patching.patch_worlds import world

CELLS = {
    Place(RESID, 2, PROMPT_END): 1.0,
    Place(RESID, 1, PROMPT_END): 0.35,
    Place(RESID, 1, CASE): 0.0,
    Place(RESID, 4, PROMPT_END): 1.0,
}


def test_planted_shares_are_recovered_in_both_directions_and_covered() -> None:
    reads = patch_reads(world(np.random.default_rng(0), CELLS, per_family=2))
    table = patch_effects(reads, "none", 4)
    own = table[(table["outcome"] == "expected_urgency") & (table["stratum"] == "all") & (table["control"] == "")]
    assert len(own) == 2 * len(CELLS)
    for row in own.to_dict("records"):
        planted = CELLS[Place(row["stream"], row["layer"], row["group"])]
        assert row["fraction"] == pytest.approx(planted, abs=0.03)
        assert row["fraction_low"] - 0.01 <= planted <= row["fraction_high"] + 0.01
        assert row["shift"] == pytest.approx(planted * row["total"], abs=0.01)
        assert (row["n"], row["families"]) == (120, 60)
    assert set(own["direction"]) == {DENOISING, NOISING}
    assert set(table["stratum"]) == {"all", "even", "odd"}


def test_without_an_effect_there_is_no_fraction_but_a_difference() -> None:
    table = patch_effects(patch_reads(world(np.random.default_rng(1), CELLS, effect=0.0)), "none", 4)
    own = table[table["outcome"] == "expected_urgency"]
    assert own["fraction"].isna().all()
    assert own["shift"].abs().max() < 0.02
    assert own["note"].str.contains("the interval of the denominator holds 0").all()


def test_cells_that_are_known_beforehand_are_marked_and_checked() -> None:
    cells = {Place(RESID, 4, PROMPT_END): 1.0, Place(RESID, 2, ALL_TOKENS): 1.0, Place(RESID, 0, CASE): 0.0}
    exact = patch_reads(world(np.random.default_rng(2), cells, noise=0.0))
    assert construction_check(exact, 4)["same"].all()
    assert patch_effects(exact, "none", 4)["by_construction"].notna().all()
    off = construction_check(patch_reads(world(np.random.default_rng(2), cells, noise=0.01)), 4).iloc[0]
    assert not off["same"]
    assert off["cells"] == 6
    inner = patch_reads(world(np.random.default_rng(2), {Place(RESID, 2, PROMPT_END): 0.5}, noise=0.0))
    nothing = construction_check(inner, 4).iloc[0]
    assert nothing["cells"] == 0
    assert np.isnan(nothing["largest"])
    assert nothing["same"] is None


def test_another_case_counts_beyond_what_its_own_base_state_brings() -> None:
    table = patch_effects(patch_reads(world(np.random.default_rng(3), CELLS, other_case=0.8)), "none", 4)
    own = table[(table["control"] == OTHER_CASE) & (table["stratum"] == "all")]
    own = own[own["outcome"] == "expected_urgency"]
    assert own["fraction"].to_numpy() == pytest.approx(0.8, abs=0.05)
    assert set(table["control"]) == {"", OTHER_CASE}


def test_labels_that_flip_are_counted_among_cases_whose_labels_differ() -> None:
    table = patch_labels(patch_reads(world(np.random.default_rng(4), CELLS, other_case=1.0)), "none")
    own = table[(table["stratum"] == "all") & (table["direction"] == DENOISING)].set_index(
        ["control", "layer", "group"]
    )
    whole, none = own.loc[("", 2, PROMPT_END)], own.loc[("", 1, CASE)]
    assert whole["reached"] > 0.85
    assert whole["n_changed"] + whole["n_kept"] == 120
    assert none["reached"] < 0.2
    assert (whole["fit"], none["fit"]) == (pytest.approx(1, abs=0.05), pytest.approx(0, abs=0.1))
    # The mean shift of another case's state is all there, and in the wrong cases.
    assert own.loc[(OTHER_CASE, 2, PROMPT_END)]["fit"] < whole["fit"] - 0.02
    assert table["mass"].round(6).eq(0.9).all()


def test_totals_tell_the_neutral_sentence_from_the_base() -> None:
    table = run_totals(patch_reads(world(np.random.default_rng(5), CELLS)), "none")
    own = table[(table["outcome"] == "expected_urgency") & (table["stratum"] == "all")].set_index("quantity")["value"]
    assert own["neutral - base"] == pytest.approx(0.01)
    assert own["persona - base"] == pytest.approx(own["persona - neutral"] + own["neutral - base"])


def test_units_of_one_case_are_one_case_and_absent_arms_are_left_out() -> None:
    single = world(np.random.default_rng(6), CELLS, n=40)
    double = single.copy()
    double["rotation"] = 1
    both = np.concatenate([np.arange(len(single)), np.arange(len(single))])
    whole = single.iloc[both].assign(rotation=np.repeat([0, 1], len(single))).reset_index(drop=True)
    whole.attrs = single.attrs
    one, two = (patch_effects(patch_reads(table), "none", 4) for table in (single, whole))
    np.testing.assert_allclose(one["fraction_low"], two["fraction_low"], equal_nan=True)
    assert (two["n"] == one["n"]).all()
    cut = single[~((single["group"] == CASE) & (single["case"].astype(int) < 15))].reset_index(drop=True)
    cut.attrs = single.attrs
    fewer = patch_effects(patch_reads(cut), "none", 4)
    counts = fewer[fewer["stratum"] == "all"].groupby("group")["n"].unique()
    assert (list(counts[CASE]), list(counts[PROMPT_END])) == ([25], [40])


def test_reads_without_a_base_run_are_refused_by_persona() -> None:
    table = world(np.random.default_rng(7), CELLS, n=10)
    bare = table[table["kind"] != BASE_RUN].reset_index(drop=True)
    bare.attrs = table.attrs
    with pytest.raises(ProbeError, match="no case of 'p' \\(latent\\) has both"):
        patch_reads(bare)
