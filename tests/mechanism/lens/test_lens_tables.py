"""Depth, reliability and the held-out readout: planted shifts are found at their layer, and lost when shuffled."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from probe.mechanism import in_memory
from probe.mechanism.lens.depth import depth_table, ramp
from probe.mechanism.lens.reads import LensQuestion, LensReads, read_lens
from probe.mechanism.lens.tables import (
    LENS,
    READOUT,
    Shift,
    agreement_table,
    contrast_table,
    mean_over_cases,
    paired_shifts,
    reliability_table,
)
from probe.mechanism.linear.held_out import held_out_readout
from tests.mechanism.lens.lens_scenes import planted, site_of

PERSONAS, ARISES = ("none", "nurse", "bold", "nobody", "fourth"), (0, 2, 5, 0, 5)


@pytest.fixture(scope="module")
def reads() -> LensReads:
    acts, head = planted(PERSONAS, 60, ARISES)
    return read_lens(acts, head, site_of(head, acts.at(8, "prompt_end").x), LensQuestion("none", 8))


def test_a_shift_arises_where_it_was_planted_and_nowhere_without_one(reads: LensReads) -> None:
    rng = np.random.default_rng(0)
    depths = depth_table(paired_shifts(reads, ["none"], rng), reads.layers, "prompt_end")
    by = depths[depths["stratum"] == "all"].set_index(["persona", "reader", "quantity"])
    for persona, layer in (("nurse", 2), ("bold", 5), ("fourth", 5)):
        for reader in (LENS, READOUT):
            for quantity in ("separates", "settles"):
                row = by.loc[(persona, reader, quantity)]
                assert row["low"] - 1 <= layer <= row["high"] + 1
                assert abs(row["value"] - layer) <= 1
    nobody = by.xs("nobody", level="persona")
    assert nobody["value"].isna().all()
    assert nobody["note"].str.startswith("undefined: at the last layer").all()


def test_the_ramp_is_found_in_noise_and_a_step_has_no_width() -> None:
    rng, layers = np.random.default_rng(1), np.array([0, 2, 4, 6, 8, 12])
    step = np.where(layers >= 6, 1.0, 0.0)
    slow = np.clip((layers - 2) / (8 - 2), 0, 1)
    curves = np.stack([np.stack([3 * step, -step], 1), np.stack([slow, 0 * slow], 1), np.ones((6, 2))])
    begins, ends, fit = ramp(curves + rng.normal(0, 0.01, curves.shape), layers)
    assert begins.tolist() == [6, 4, 0]
    assert ends.tolist() == [6, 8, 0]
    assert (fit > 0.99).all()


def test_a_curve_that_comes_and_goes_has_no_depth_however_alike_the_cases_are() -> None:
    rng, layers = np.random.default_rng(2), (0, 1, 2, 3, 4, 5)
    found = {}
    for name, curve in (("once", [0, 0, 0, 1, 1, 1]), ("comes and goes", [0, 3, -3, 0, 1, 1])):
        cases = np.array(curve, float)[None, :, None] + rng.normal(0, 0.05, (40, 6, 1))
        drawn = mean_over_cases(cases, np.arange(40).astype(str), rng)
        rows = depth_table([Shift("nurse", "none", "all", drawn, drawn)], layers, "prompt_end")
        found[name] = rows[rows["reader"] == READOUT]
    assert found["once"]["value"].tolist() == [3, 3]
    assert found["comes and goes"][["value", "low", "high"]].isna().all(axis=None)
    assert found["comes and goes"]["note"].str.startswith("undefined: one ramp explains").all()
    assert (found["comes and goes"]["fit"] < 0.8).all()


def test_two_arms_under_one_fit_show_no_shift_where_residuals_say_nothing() -> None:
    """Under fits that leave out each arm's own persona, the intercepts alone would show one of the opposite sign."""
    rng = np.random.default_rng(2)
    persona = np.repeat(np.array(["a", "b", "c", "d"], object), 40)
    y = np.where(persona == "b", 3.0, 0.0)[:, None] + rng.normal(0, 0.1, (160, 1))
    found = held_out_readout(rng.normal(size=(160, 6)), y, np.tile(np.arange(40) % 5, 4), persona)
    b, a = persona == "b", persona == "a"
    under_one_fit = found.by_part[1]
    assert abs(under_one_fit[b].mean() - under_one_fit[a].mean()) < 0.1
    assert found.own[b].mean() - found.own[a].mean() < -0.5


def test_the_readout_is_scikit_learns_ridge_of_the_other_folds_and_personas() -> None:
    rng = np.random.default_rng(3)
    persona = np.repeat(np.array(["a", "b", "c"], object), 30)
    fold = np.tile(np.arange(30) % 3, 3)
    x = rng.normal(size=(90, 8))
    y = x @ rng.normal(size=(8, 2)) + rng.normal(0, 0.5, (90, 2))
    found = held_out_readout(x, y, fold, persona).own
    rows = (persona == "a") & (fold == 1)
    training = (persona != "a") & (fold != 1)
    centred = x[training] - x[training].mean(0)
    spread = np.linalg.eigvalsh(centred.T @ centred / training.sum()).mean()
    errors = []
    for strength in 10.0 ** np.arange(-5, 4):
        model = Ridge(alpha=strength * spread * training.sum()).fit(x[training], y[training])
        errors.append(np.abs(model.predict(x[rows]) - found[rows]).max())
    assert min(errors) < 1e-8
    assert ((found - y) ** 2).mean() < 0.6 * y.var()
    shuffled = y[rng.permutation(90)]
    assert ((held_out_readout(x, shuffled, fold, persona).own - shuffled) ** 2).mean() > 0.9 * y.var()


def test_more_dimensions_than_rows_change_nothing() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(40, 12)), rng.normal(size=(40, 1))
    persona, fold = np.repeat(np.array(["a", "b"], object), 20), np.tile(np.arange(20) % 4, 2)
    wide = np.concatenate([x, np.zeros((40, 700))], axis=1)
    narrow = held_out_readout(np.concatenate([x, np.zeros((40, 28))], axis=1), y, fold, persona).own
    np.testing.assert_allclose(held_out_readout(wide, y, fold, persona).own, narrow, atol=1e-6)


def test_the_lens_is_reliable_until_early_layers_speak_another_basis() -> None:
    acts, head = planted(PERSONAS, 60, ARISES)
    x = np.stack([acts.at(layer, "prompt_end").x for layer in acts.layers], axis=1)
    turned = x.copy()
    turned[:, 1:4] = x[:, 1:4, ::-1]  # still linear in the same things, but not along the unembedding
    found = {}
    for name, values in (("plain", x), ("turned", turned)):
        read = read_lens(
            in_memory(acts.table, values, "prompt_end"), head, site_of(head, x[:, -1]), LensQuestion("none", 8)
        )
        table = reliability_table(
            read, paired_shifts(read, ["none"], np.random.default_rng(0)), np.random.default_rng(0)
        )
        everyone = table[table["persona"] == "all"].set_index("layer")
        found[name] = set(everyone.index[everyone["reliable"]])
        assert 8 in found[name]
        assert everyone.loc[1:, "readout_r2"].min() > 0.4
    assert {4, 5, 6, 7} <= found["plain"] & found["turned"]
    assert {1, 2, 3} <= found["plain"]
    assert not {0, 1, 2, 3} & found["turned"]


def test_at_the_last_point_the_lens_always_shows_the_latent_label_and_shuffled_labels_are_matched_by_chance(
    reads: LensReads,
) -> None:
    table = agreement_table(reads, np.random.default_rng(0))
    last = table[(table["layer"] == 8) & (table["reader"] == LENS) & (table["target"] == "read")]
    assert (last["value"] == 1).all()
    stated = table[(table["layer"] == 8) & (table["reader"] == LENS) & (table["target"] == "stated")]
    assert stated.loc[stated["stratum"] == "all", "value"].max() < 0.75  # here stated labels were given at random


def test_levels_and_shifts_agree_with_plain_means_and_know_their_cases(reads: LensReads) -> None:
    rng = np.random.default_rng(0)
    table = contrast_table(reads, paired_shifts(reads, ["none"], rng), rng)
    pooled = table[(table["stratum"] == "all") & (table["reader"] == LENS) & (table["contrast"] == "hospital-clinic")]
    means = {p: reads.lens[:, (reads.table["persona"] == p).to_numpy(), 1].mean(1) for p in PERSONAS}
    shift = pooled[(pooled["quantity"] == "shift") & (pooled["persona"] == "bold")].set_index("layer")
    np.testing.assert_allclose(shift["value"], means["bold"] - means["none"], atol=1e-9)
    assert (shift["low"] <= shift["value"]).all()
    assert (shift["value"] <= shift["high"]).all()
    assert set(shift["n"]) == {60}


def test_a_case_enters_the_resamples_whole() -> None:
    rng = np.random.default_rng(5)
    case = np.repeat(np.arange(40).astype(str), 25)
    per_case = rng.normal(size=40)
    drawn = mean_over_cases(np.repeat(per_case, 25)[:, None], case, rng)
    width = float((drawn.high - drawn.low)[0])
    assert width == pytest.approx(3.92 * per_case.std() / np.sqrt(40), rel=0.15)
    assert drawn.n == 40
