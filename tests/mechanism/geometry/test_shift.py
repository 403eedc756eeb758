"""The size of a shift: unbiased where the plain norm is not, found where planted, lost where shuffled."""

import numpy as np
import pandas as pd
import pytest

from probe.mechanism import (
    PairedResiduals,
    pair_residuals,
    shift_by_layer,
    shift_size,
    sign_flip_floor,
    squared_norm_of_mean,
)
from probe.values import ProbeError, Site

D = 96


def pairs(shift, base):
    names = np.array([f"case-{i}" for i in range(len(shift))], dtype=object)
    stratum = np.where(np.arange(len(shift)) % 2, "emergency", "primary_care").astype(object)
    return PairedResiduals(names, names, stratum, base + shift, base)


def noisy(rng, n, norm, noise=0.5):
    """Shifts with a common part of this norm in noise whose own norm is noise * sqrt(D)."""
    common = np.zeros(D)
    common[3] = norm
    return common + rng.normal(0, noise, (n, D))


def test_the_squared_norm_equals_the_double_sum_over_different_cases():
    x = np.random.default_rng(0).normal(size=(7, 5))
    gram = x @ x.T
    expected = (gram.sum() - np.trace(gram)) / (7 * 6)
    assert squared_norm_of_mean(x) == pytest.approx(expected)


@pytest.mark.parametrize("norm", [0.0, 0.5, 2.0])
def test_the_squared_norm_is_unbiased_and_the_plain_one_is_not(norm):
    rng = np.random.default_rng(1)
    draws = [noisy(rng, 40, norm) for _ in range(400)]
    ours = np.array([squared_norm_of_mean(x) for x in draws])
    plain = np.mean([(x.mean(0) ** 2).sum() for x in draws])
    error = ours.std() / np.sqrt(len(ours))
    assert abs(ours.mean() - norm**2) < 4 * error
    assert plain - norm**2 > 0.9 * 0.25 * D / 40  # inflated by tr(Sigma) / n


def test_the_interval_covers_the_planted_size():
    rng = np.random.default_rng(2)
    base = rng.normal(size=(100, D))
    truth = 1.0 / np.sqrt((base**2).sum(1).mean())
    sizes = [shift_size(pairs(noisy(rng, 100, 1.0), base), rng, flips=2).size for _ in range(300)]
    assert np.mean([size.value for size in sizes]) == pytest.approx(truth, rel=0.02)
    assert 0.91 <= np.mean([size.low <= truth <= size.high for size in sizes]) <= 0.985


def test_the_jackknife_equals_leaving_out_each_case_in_a_loop():
    rng = np.random.default_rng(3)
    base, shift = rng.normal(size=(12, D)), noisy(rng, 12, 3.0)
    size = shift_size(pairs(shift, base), rng).size
    kept = [np.delete(np.arange(12), i) for i in range(12)]
    ratios = np.array([squared_norm_of_mean(shift[k]) / (base[k] ** 2).sum(1).mean() for k in kept])
    se = np.sqrt(11 / 12 * ((ratios - ratios.mean()) ** 2).sum())
    assert (size.high**2 - size.value**2) / 2.200985 == pytest.approx(se, rel=1e-5)  # t quantile at 11 df


def test_noise_alone_stays_below_the_floor_where_the_plain_norm_is_far_above_nothing():
    rng = np.random.default_rng(4)
    base = rng.normal(size=(100, D))
    sizes = [shift_size(pairs(noisy(rng, 100, 0.0), base), rng, flips=100) for _ in range(200)]
    above = np.mean([s.size.value is not None and s.size.value > s.floor for s in sizes])
    undefined = [s.size for s in sizes if s.size.value is None]
    assert above <= 0.10
    assert 60 < len(undefined) < 140
    assert all(size.note.startswith("undefined") for size in undefined)
    assert min(s.naive for s in sizes) > 0.03


def test_a_planted_shift_stands_above_the_floor_until_its_signs_are_shuffled():
    rng = np.random.default_rng(5)
    base, shift = rng.normal(size=(200, D)), noisy(rng, 200, 1.0)
    found = shift_size(pairs(shift, base), rng)
    assert found.size.low > found.floor
    assert found.common == pytest.approx(1 / (1 + 0.25 * D), rel=0.2)
    lost = shift_size(pairs(shift * rng.choice([-1, 1], (200, 1)), base), rng)
    assert lost.size.value is None or lost.size.value < 2 * lost.floor
    assert lost.per_case == pytest.approx(found.per_case)  # every single shift is as long as before


def test_the_floor_is_nil_for_nil_shifts_and_no_size_is_invented():
    rng = np.random.default_rng(6)
    base = rng.normal(size=(10, D))
    assert sign_flip_floor(np.zeros((10, D)), rng) == 0
    same = shift_size(pairs(np.zeros((10, D)), base), rng)
    assert same.size.value is None
    assert "no residual differs" in same.size.note
    assert np.isnan(same.common)


def test_two_cases_are_too_few_and_none_is_refused():
    rng = np.random.default_rng(7)
    two = shift_size(pairs(noisy(rng, 2, 1.0), rng.normal(size=(2, D))), rng)
    assert two.size.value is None
    assert "three" in two.size.note
    with pytest.raises(ProbeError, match="at least one case"):
        shift_size(pairs(np.zeros((0, D)), np.zeros((0, D))), rng)
    with pytest.raises(ProbeError, match="all nil"):
        shift_size(pairs(np.ones((4, D)), np.zeros((4, D))), rng)


def planted_reader(rng, n=60):
    """Persona 'nurse' shifts emergency cases by 2 and others by 1 along axis 0 from layer 1 on; two wordings."""
    cases = [f"case-{i}" for i in range(n)]
    stratum = ["emergency" if i % 2 else "primary_care" for i in range(n)]
    base = rng.normal(size=(3, n, D))

    def read(persona, layer, position):
        rows = [
            (case, f"family-{i // 3}", stratum[i], wording)
            for wording in range(2 if persona == "nurse" else 1)
            for i, case in enumerate(cases)
            if not (persona == "nurse" and i == 4)  # the site is absent there
        ]
        table = pd.DataFrame(rows, columns=["case", "family", "stratum", "condition"])
        index = [cases.index(case) for case in table["case"]]
        x = base[layer, index].astype(np.float32)
        if persona == "nurse" and layer > 0:
            x[:, 0] += np.where(table["stratum"] == "emergency", 2.0, 1.0)
            x += rng.normal(0, 0.3, x.shape)
        order = rng.permutation(len(table)) if persona == "nurse" else np.arange(len(table))
        return table.iloc[order], x[order]

    return read


def test_shift_by_layer_pairs_by_case_and_finds_the_planted_strata():
    rng = np.random.default_rng(8)
    shifts = shift_by_layer(planted_reader(rng), ["none", "nurse"], [0, 1, 2])
    assert shifts["persona"].unique().tolist() == ["nurse"]
    by = shifts.set_index(["layer", "stratum"]).sort_index()
    for stratum, n in (("all", 59), ("primary_care", 29), ("emergency", 30)):
        assert by["n"].xs(stratum, level="stratum").tolist() == [n] * 3
    assert by.loc[0, "value"].isna().all()
    for stratum, norm in (("emergency", 2.0), ("primary_care", 1.0)):
        row = by.loc[(2, stratum)]
        assert row["low"] <= norm / row["base_norm"] <= row["high"]
        assert row["low"] > row["floor"]


def test_a_case_that_lacks_the_site_is_no_pair_and_the_mean_shift_points_to_the_persona():
    rng = np.random.default_rng(9)
    paired = pair_residuals(planted_reader(rng), Site(2, "prompt_end"), "nurse", "none")
    mean = paired.shift.mean(0)
    assert mean[0] / np.linalg.norm(mean) > 0.95
    assert len(paired.case) == 59
    assert "family-3" in set(paired.family)
    assert "case-4" not in set(paired.case)


def test_cases_of_one_family_are_no_independent_pairs():
    rng = np.random.default_rng(13)
    family = np.repeat(np.arange(20), 5).astype(str)
    draws = [rng.normal(0, 0.5, (20, D))[np.repeat(np.arange(20), 5)] for _ in range(200)]
    ours, by_case = ([squared_norm_of_mean(x, of) for x in draws] for of in (family, None))
    assert abs(np.mean(ours)) < 4 * np.std(ours) / np.sqrt(200)
    assert np.mean(by_case) > 20 * np.std(ours) / np.sqrt(200)
    base = rng.normal(size=(100, D))
    above = []
    for x in draws[:60]:
        names = np.arange(100).astype(str)
        found = shift_size(PairedResiduals(names, family, names, base + x, base), rng)
        above.append(found.size.value is not None and found.size.value > found.floor)
    assert np.mean(above) <= 0.15


def test_residuals_out_of_step_with_their_table_are_refused():
    def read(persona, layer, position):
        return pd.DataFrame({"case": ["1", "2"], "stratum": ["", ""]}), np.ones((3, D))

    with pytest.raises(ProbeError, match="aligned"):
        shift_by_layer(read, ["none", "nurse"], [0])


def test_the_same_seed_gives_the_same_floor():
    tables = [shift_by_layer(planted_reader(np.random.default_rng(10)), ["none", "nurse"], [2]) for _ in range(2)]
    pd.testing.assert_frame_equal(*tables)


def rotated_reader(rng, effect, n=60, lost=0.5):
    """Two rotations that move the residual by far more than the persona; the nurse lacks some cells of the second."""
    base, rotation = rng.normal(size=(n, D)), rng.normal(0, 1.0, (2, D))

    def read(persona, layer, position):
        rows = [
            {"case": f"case-{i}", "stratum": "s", "condition": f"system/rotation={r}", "wording": w, "rotation": r}
            | {"instruction": 0, "placement": "system", "prefix": "", "seed": 0, "intervention": ""}
            for i in range(n)
            for r in (0, 1)
            for w in ((0, 1) if persona == "nurse" else (0,))
            if not (persona == "nurse" and r == 1 and i < lost * n)
        ]
        table = pd.DataFrame(rows)
        index = table["case"].str.removeprefix("case-").astype(int).to_numpy()
        x = base[index] + rotation[table["rotation"].to_numpy()] + rng.normal(0, 0.05, (len(table), D))
        return table, x + (effect if persona == "nurse" else 0.0)

    return read


def test_an_arm_that_lacks_half_of_one_condition_is_not_shifted_by_it():
    same = shift_by_layer(rotated_reader(np.random.default_rng(11), 0.0), ["none", "nurse"], [0]).iloc[0]
    assert same["n"] == 60
    assert np.isnan(same["value"]) or same["value"] < 0.01
    effect = np.zeros(D)
    effect[0] = 0.5
    moved = shift_by_layer(rotated_reader(np.random.default_rng(11), effect), ["none", "nurse"], [0]).iloc[0]
    assert moved["value"] * moved["base_norm"] == pytest.approx(0.5, rel=0.05)


def test_the_largest_of_many_layers_passes_the_floor_of_the_largest_one_time_in_twenty():
    layers, n, d = range(12), 40, 24

    def passes(seed):
        rng = np.random.default_rng(seed)
        base = rng.normal(size=(n, d))
        shifts = {layer: rng.normal(0, 0.5, (n, d)) for layer in layers}
        table = pd.DataFrame({"case": [f"case-{i}" for i in range(n)], "stratum": ""})

        def read(persona, layer, position):
            return table, base + (shifts[layer] if persona == "nurse" else 0.0)

        found = shift_by_layer(read, ["none", "nurse"], layers, rng=rng)
        assert (found["floor_max"] >= found["floor"]).all()
        return (found["value"] > found["floor"]).any(), (found["value"] > found["floor_max"]).any()

    each, largest = np.mean([passes(seed) for seed in range(60)], axis=0)
    assert each > 0.25  # one layer or another passes its own floor
    assert largest <= 0.12


def test_the_floor_of_the_largest_flips_the_same_cases_at_every_layer():
    rng = np.random.default_rng(12)
    base, shift = rng.normal(size=(30, D)), noisy(rng, 30, 0.0)
    table = pd.DataFrame({"case": [f"case-{i}" for i in range(30)], "stratum": ""})

    def read(persona, layer, position):
        return table, base + (shift if persona == "nurse" else 0.0)

    copies = shift_by_layer(read, ["none", "nurse"], [0, 1, 2])
    assert copies["floor_max"].to_numpy() == pytest.approx(copies["floor"].to_numpy())  # copies add no chance
