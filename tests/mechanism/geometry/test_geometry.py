"""Norms, cosines and decompositions of shifts: unbiased where plain ones are not, found where planted, lost if not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.covariance import ledoit_wolf, ledoit_wolf_shrinkage

from probe.mechanism.activations import in_memory
from probe.mechanism.geometry.arms import shift_rows
from probe.mechanism.geometry.products import agreement, centred, cosines, cross_products, jackknifed, norms
from probe.mechanism.geometry.shift import pair_residuals
from probe.mechanism.geometry.stability import bootstrap, gram_of_families, split_half
from probe.mechanism.geometry.tables import geometry
from probe.mechanism.geometry.views import products_in, shrinkage_of, whitening, without_largest
from probe.mechanism.splits import fold_of
from probe.values import Site
from tests.mechanism.geometry.geometry_samples import D, cells, unit


def draw(rng, *, families=20, per_family=3, means=((2.0, 0.0), (1.0, 1.7)), within=0.5, noise=1.0):
    """Shifts of two arms whose base noise is shared, with a part common to each family: [arm, case, D], family."""
    family = np.repeat(np.arange(families), per_family)
    n = len(family)
    base = rng.normal(0, noise, (n, D))
    shared = rng.normal(0, within, (families, D))[family]
    arms = [np.pad(mean, (0, D - 2)) + shared - base + rng.normal(0, noise, (n, D)) for mean in means]
    return np.stack(arms), family.astype(str)


def at(table, **keys):
    for name, value in keys.items():
        table = table[table[name] == value]
    assert len(table) == 1, (keys, len(table))
    return table.iloc[0]


def test_the_products_are_the_mean_over_pairs_of_cases_of_different_families():
    rng = np.random.default_rng(0)
    shifts, family = draw(rng, families=5)
    family = np.array(["a", "a", "a", "b", "c", "c", "d", "d", "d", "d", "e", "e", "e", "f", "g"])
    found = cross_products(shifts, shifts[0], family)
    apart = family[:, None] != family
    expected = np.einsum("pid,qjd->pqij", shifts, shifts)[..., apart].mean(-1)
    assert found.products == pytest.approx(expected)
    names = np.unique(family)
    for k, name in enumerate(names):
        kept = family != name
        left = cross_products(shifts[:, kept], shifts[0][kept], family[kept])
        assert found.without[k] == pytest.approx(left.products)
        assert found.square_without[k] == pytest.approx(left.square)


def test_norms_and_cosines_are_unbiased_where_plain_means_and_products_of_cases_are_not():
    rng = np.random.default_rng(1)
    draws = [draw(rng) for _ in range(400)]
    ours = np.array([cross_products(x, x[0], family).products for x, family in draws])
    plain = np.array([x.mean(1) @ x.mean(1).T for x, _ in draws])
    by_case = np.array([cross_products(x, x[0], np.arange(60).astype(str)).products for x, _ in draws])
    truth = np.array([[4.0, 2.0], [2.0, 1.0 + 1.7**2]])
    error = ours.std(0) / np.sqrt(len(ours))
    assert (abs(ours.mean(0) - truth) < 4 * error).all()
    assert (plain.mean(0) - truth > 8 * error).all()
    assert (by_case.mean(0) - truth > 4 * error).all()  # cases of a family share noise: they are no pairs
    expected = 2.0 / np.sqrt(4.0 * (1 + 1.7**2))
    assert np.median(cosines(ours)[:, 0, 1]) == pytest.approx(expected, abs=0.02)
    assert np.median(cosines(plain)[:, 0, 1]) > expected + 0.03


@pytest.mark.slow
def test_the_intervals_of_norm_cosine_and_interaction_cover():
    rng = np.random.default_rng(2)
    truth = np.array([[4.0, 2.0], [2.0, 1.0 + 1.7**2]])
    holds = []
    for _ in range(1000):
        sizes = rng.integers(1, 7, 40)
        family = np.repeat(np.arange(40), sizes).astype(str)
        shifts, _ = draw(rng, families=40, per_family=7)
        kept = np.concatenate([np.arange(7 * k, 7 * k + size) for k, size in enumerate(sizes)])
        found = cross_products(shifts[:, kept], shifts[0][kept], family)
        checks = []
        for statistic in (norms, cosines, agreement):
            _, low, high = jackknifed(found, statistic)
            exact = statistic(truth)
            inside = (low <= exact) & (exact <= high)
            checks.append(inside[0] if inside.ndim == 1 else inside[0, 1] if inside.ndim == 2 else inside)
        holds.append(checks)
    coverage = np.mean(np.array(holds, dtype=float), axis=0)
    print("coverage of norm, cosine, agreement:", coverage)
    assert ((coverage > 0.92) & (coverage < 0.975)).all()


def test_a_norm_below_the_noise_is_undefined_and_no_cosine_is_made_of_it():
    rng = np.random.default_rng(3)
    found = [cross_products(*_nothing(rng)) for _ in range(60)]
    undefined = [np.isnan(cosines(one.products)[0, 1]) for one in found]
    negative = [(norms(one.products) <= 0).any() for one in found]
    assert undefined == negative
    assert 20 < sum(undefined) < 58


def _nothing(rng):
    shifts, family = draw(rng, means=((0.0, 0.0), (0.0, 0.0)), within=0.0)
    return shifts, shifts[0], family


@pytest.mark.parametrize("k", [3, 5, 9])
def test_centring_unrelated_directions_gives_cosines_of_minus_one_over_k_minus_one(k):
    exact = centred(np.eye(k))
    off = ~np.eye(k, dtype=bool)
    assert cosines(exact)[off] == pytest.approx(-1 / (k - 1))
    assert cosines(np.eye(k))[off] == pytest.approx(0)
    anything = np.random.default_rng(k).normal(size=(k, 30))
    assert agreement(centred(anything @ anything.T)) == pytest.approx(-1 / (k - 1))


def test_the_centred_cosines_of_planted_unrelated_personas_lie_at_their_line():
    rng = np.random.default_rng(4)
    common = 3 * unit(40)
    found = geometry(cells({f"p{k}": common + 2 * unit(k) for k in range(5)}, rng)).cosines
    here = found[(found["layer"] == 1) & (found["view"] == "raw")]
    plain, middle = (here[here["measure"] == measure] for measure in ("cosine", "centred_cosine"))
    assert plain["value"].mean() == pytest.approx(9 / 13, abs=0.05)
    assert middle["value"].mean() == pytest.approx(-0.25, abs=0.03)
    assert (middle["chance"] == -0.25).all()
    assert (plain["chance"] == 0).all()


def test_shifts_are_those_of_pair_residuals_and_lie_at_their_own_layer():
    rng = np.random.default_rng(5)
    read = cells({"nurse": 3 * unit(0), "bold_nurse": 3 * unit(1)}, rng, wordings=2)
    table = read.table

    def pairs(persona, layer, position):
        site = read.at(layer, position)
        mine = table["persona"].to_numpy() == persona
        return table[mine].reset_index(drop=True), site.x[mine[site.places]]

    masks = {name: (table["persona"] == name).to_numpy() for name in ("nurse", "bold_nurse")}
    rows = shift_rows(table, masks, "none", (table["persona"] == "none").to_numpy())
    for layer in (0, 1):
        found = rows.shifts(read.at(layer, "prompt_end").x)
        for k, persona in enumerate(masks):
            expected = pair_residuals(pairs, Site(layer, "prompt_end"), persona, "none")
            order = [list(expected.case).index(case) for case in rows.case]
            assert found[k] == pytest.approx(expected.shift[order])
    norms_found = geometry(read).norms
    raw = norms_found[(norms_found["view"] == "raw") & (norms_found["stratum"] == "all")]
    assert (raw[raw["layer"] == 0]["value"].fillna(0) < 0.15).all()
    assert (raw[raw["layer"] == 1]["low"] > 0.2).all()


def test_shuffling_which_arm_is_which_loses_what_was_planted():
    rng = np.random.default_rng(6)
    read = cells({"nurse": 5 * unit(0)}, rng)
    swapped = read.table.copy()
    flip = rng.random(120) < 0.5
    names = np.array(["none", "nurse"])
    swapped["persona"] = np.concatenate([names[flip.astype(int)], names[1 - flip.astype(int)]])
    kept, lost = (geometry(replace(read, table=table)) for table in (read.table, swapped))
    found, gone = (at(one.norms, layer=1, view="raw", stratum="all") for one in (kept, lost))
    assert found["low"] > 0.1
    assert np.isnan(gone["value"]) or gone["low"] == 0
    steady, shaky = (at(one.stability, layer=1, method="split-half") for one in (kept, lost))
    assert steady["value"] > 0.8 > steady["floor"]
    assert abs(shaky["value"]) < steady["floor"] + 0.1
    assert steady["with_truth"] > 0.9


ROLES = {"nurse": ("nurse", ""), "bold_nurse": ("nurse", "bold"), "doc": ("doc", ""), "bold_doc": ("doc", "bold")}


@pytest.mark.parametrize(("other", "cosine", "interaction"), [(unit(2), 1.0, 0.0), (unit(5), 0.0, 1.0)])
def test_role_and_style_add_up_where_they_were_planted_so_and_do_not_elsewhere(other, cosine, interaction):
    rng = np.random.default_rng(7)
    nurse, doc, bold = 2 * unit(0), 2 * unit(1), 2 * unit(2)
    planted = {"nurse": nurse, "bold_nurse": nurse + bold, "doc": doc, "bold_doc": doc + 2 * other}
    found = geometry(cells(planted, rng, families=60, described=ROLES)).role_style
    here = {"layer": 1, "view": "raw", "stratum": "all"}
    like, crossed = (at(found, measure=measure, **here) for measure in ("style_cosine", "interaction"))
    assert (like["role"], like["other_role"], like["style"]) == ("nurse", "doc", "bold")
    assert like["value"] == pytest.approx(cosine, abs=0.15)
    assert crossed["value"] == pytest.approx(interaction, abs=0.15)
    assert like["low"] < cosine < like["high"] or abs(like["value"] - cosine) < 0.03
    assert (crossed["high"] < 0.5) == (interaction == 0)


def test_wordings_of_one_persona_agree_and_those_of_a_persona_without_a_direction_of_its_own_do_not_stand_apart():
    rng = np.random.default_rng(8)
    twins = {"nurse": 3 * unit(0), "carer": 3 * unit(0), "doc": 3 * unit(1)}
    found = geometry(cells(twins, rng, wordings=3)).wordings
    here = found[(found["layer"] == 1) & (found["view"] == "raw")].set_index(["persona", "measure"])["value"]
    for persona in twins:
        assert here[persona, "within"] == pytest.approx(1.0, abs=0.08)
    assert here["doc", "apart"] == pytest.approx(1.0, abs=0.12)
    assert here["nurse", "apart"] == pytest.approx(0.5, abs=0.1)  # one other shares it, one does not


def test_controls_are_a_base_and_their_own_spread_stands_beside_it():
    rng = np.random.default_rng(9)
    planted = {"nurse": 3 * unit(0), "neutral": np.zeros(D)}
    described = {"nurse": ("nurse", ""), "neutral": ("control", "")}
    found = geometry(cells(planted, rng, wordings=4, described=described)).norms
    here = found[(found["layer"] == 1) & (found["view"] == "raw") & (found["stratum"] == "all")]
    controls = here[here["base"] == "controls"].set_index("persona")
    assert controls.loc["nurse", "low"] > 3 * np.nan_to_num(controls.loc["nurse", "reworded"])
    assert set(controls.index) == {"none", "nurse"}
    assert set(here[here["base"] == "none"]["persona"]) == {"nurse", "neutral"}
    assert here[here["base"] == "none"]["reworded"].isna().all()


def test_a_case_that_one_persona_lacks_is_left_out_of_all_and_told():
    rng = np.random.default_rng(10)
    read = cells({"nurse": 3 * unit(0), "doc": 3 * unit(1)}, rng)
    x = np.stack([read.at(layer, "prompt_end").x for layer in (0, 1)], axis=1)
    x[(read.table["persona"] == "doc") & read.table["case"].isin(["case-0", "case-7"])] = np.nan
    found = geometry(in_memory(read.table, x, "prompt_end")).norms
    assert (found[found["stratum"] == "all"]["n"] == 118).all()
    assert found["note"].str.contains("118 of 120 cases have the site in every arm").any()


def test_a_persona_without_the_position_is_left_out_and_the_others_stay():
    rng = np.random.default_rng(11)
    read = cells({"nurse": 3 * unit(0), "doc": 3 * unit(1)}, rng)
    x = np.stack([read.at(layer, "prompt_end").x for layer in (0, 1)], axis=1)
    x[(read.table["persona"] == "doc").to_numpy()] = np.nan
    found = geometry(in_memory(read.table, x, "prompt_end"))
    assert set(found.norms["persona"]) == {"nurse"}
    assert found.cosines.empty
    x[(read.table["persona"] == "none").to_numpy()] = np.nan
    assert geometry(in_memory(read.table, x, "prompt_end")).norms.empty


def test_identical_rows_and_single_cases_are_reported_not_invented():
    rng = np.random.default_rng(12)
    same = geometry(cells({"nurse": np.zeros(D)}, rng, noise=0.0)).norms
    raw = same[(same["view"] == "raw") & (same["layer"] == 1)]
    assert raw["value"].isna().all()
    assert raw["note"].str.contains("undefined").all()
    table = pd.DataFrame({"case": ["a", "a"], "persona": ["none", "nurse"], "family": "", "stratum": ""})
    lone = geometry(in_memory(table, rng.normal(size=(2, 1, D)), "prompt_end")).norms
    assert lone["value"].isna().all()
    assert lone["note"].str.contains("1 case families").all()
    before = cells({"nurse": 2 * unit(0)}, rng, noise=0.0)
    ones = np.ones((240, 1, D)) + (before.table["persona"] == "nurse").to_numpy()[:, None, None]
    flat = in_memory(before.table, ones, "persona_end")
    found = geometry(flat).norms
    row = at(found, view="raw", stratum="all")
    assert row["value"] == pytest.approx(1.0)
    assert "no sampling error" in row["note"]
    assert set(found["view"]) == {"raw"}  # nothing varies: no other view can be fitted


def test_massive_dimensions_decide_raw_cosines_and_not_the_other_views():
    rng = np.random.default_rng(13)
    family = np.repeat(np.arange(60), 3).astype(str)
    base = rng.normal(size=(180, D))
    base[:, :2] *= 200
    own = np.stack([8 * unit(0) + 1.5 * unit(10), 8 * unit(0) + 1.5 * unit(11)])
    shifts = own[:, None] + rng.normal(0, 0.5, (2, 180, D))
    seen = {}
    for view in ("raw", "without_largest", "whitened"):
        found = products_in(view, shifts, base, family)
        seen[view] = cosines(found.products)[0, 1]
    assert seen["raw"] > 0.9
    assert abs(seen["without_largest"]) < 0.15
    assert abs(seen["whitened"]) < 0.15


def test_whitening_is_the_inverse_root_of_the_shrunk_covariance_of_scikit_learn():
    rng = np.random.default_rng(14)
    for shape in ((30, 50), (80, 20)):
        x = rng.normal(size=shape) @ np.diag(np.linspace(0.2, 3, shape[1]))
        assert shrinkage_of(x) == pytest.approx(ledoit_wolf_shrinkage(x))
        covariance, share = ledoit_wolf(x)
        metric = whitening(x - x.mean(0), share)
        u, v = rng.normal(size=(2, shape[1]))
        assert metric(u) @ metric(v) == pytest.approx(u @ np.linalg.solve(covariance, v), rel=1e-6)
    kept = without_largest(x * np.where(np.arange(20) >= 17, 100, 1))
    assert kept is not None
    assert kept(np.arange(20.0)).tolist() == list(range(17))


def test_a_fitted_view_measures_each_family_by_a_metric_of_the_other_half():
    rng = np.random.default_rng(15)
    shifts, family = draw(rng, families=20)
    base = rng.normal(size=(60, D))
    half = fold_of(family, 2, 3)
    spoiled = base.copy()
    spoiled[half == 0, 5] *= 1000  # the other half's metric ignores what is large there
    own, other = (np.where(half == one, 1.0, 0.0)[None, :, None] * shifts for one in (0, 1))
    for part, changes in ((own, False), (other, True)):
        before, after = (products_in("whitened", part, one, family, seed=3).products for one in (base, spoiled))
        assert (not np.allclose(before, after)) == changes
    assert np.isnan(products_in("raw", shifts[:, :3], base[:3], family[:3]).products).all()  # one family: no pair


def test_halves_agree_on_a_direction_and_stay_below_their_floor_without_one():
    rng = np.random.default_rng(16)
    family = np.repeat(np.arange(40), 2).astype(str)
    noise = rng.normal(size=(80, D))
    above = []
    for _ in range(60):
        null = gram_of_families(rng.normal(size=(80, D)), family)
        stable = split_half(null, rng)
        above.append(stable.value > stable.floor)
    assert np.mean(above) <= 0.15
    planted = gram_of_families(noise + 2 * unit(0), family)
    for method in (split_half, bootstrap):
        stable = method(planted, np.random.default_rng(0))
        assert stable.value > stable.floor
        again = method(planted, np.random.default_rng(0))
        assert again.value == stable.value
    assert np.isnan(split_half(planted[:3, :3], rng).value)
    assert np.isnan(split_half(np.zeros((8, 8)), rng).value)


@pytest.mark.parametrize("method", [split_half, bootstrap])
def test_the_floor_is_that_of_the_noise_however_large_the_shift_and_there_is_none_without_noise(method):
    noise = np.random.default_rng(3).normal(size=(40, D))
    family = np.repeat(np.arange(20), [1, 3] * 10).astype(str)  # in families of unequal size
    sizes = np.unique(family, return_counts=True)[1]
    floors = [
        method(gram_of_families(noise + far * unit(0), family), np.random.default_rng(0), sizes=sizes).floor
        for far in (0.0, 100.0)
    ]
    assert floors[0] == pytest.approx(floors[1], abs=1e-6)
    assert floors[0] < 0.95
    certain = method(gram_of_families(np.tile(unit(0), (40, 1)), family), np.random.default_rng(0), sizes=sizes)
    assert certain.value == pytest.approx(1)
    assert np.isnan(certain.floor)
