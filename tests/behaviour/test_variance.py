"""Variance components: the analysis of variance on balanced data, mixed models, planted components, and what no design
can tell apart."""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from probe.behaviour import variance_components
from probe.behaviour.components import henderson, levels_of
from probe.behaviour.variance import RUN_SHARE
from tests.behaviour.synthetic import synthetic_table

PLANTED = {"persona": 1.0, "wording": 0.4, "case": 1.5, "persona x case": 0.8, "wording x case": 0.3, "run": 0.2}


def crossed(rng, personas=20, wordings=3, cases=40, seeds=3, planted=PLANTED, noise=0.5):
    """A score with planted variances, and the level names of every row."""
    grid = np.stack(np.meshgrid(*map(np.arange, (personas, wordings, cases, seeds)), indexing="ij"), -1).reshape(-1, 4)
    p, w, c, s = grid.T
    parts = {"persona": (p,), "wording": (p, w), "case": (c,), "persona x case": (p, c), "run": (s,)}
    factors = {name: levels_of(*by) for name, by in (parts | {"wording x case": (p, w, c)}).items()}
    value = rng.normal(0, np.sqrt(noise), len(grid))
    for name, variance in planted.items():
        value += rng.normal(0, np.sqrt(variance), factors[name].max() + 1)[factors[name]]
    return value, factors


def test_one_way_balanced_is_the_analysis_of_variance():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(12), 8)
    y = rng.normal(0, 2, 12)[group] + rng.normal(0, 1, 96)
    found = henderson(y, {"group": group})
    by_group = y.reshape(12, 8)
    within, between = by_group.var(1, ddof=1).mean(), 8 * by_group.mean(1).var(ddof=1)
    assert found["residual"] == pytest.approx(within)
    assert found["group"] == pytest.approx((between - within) / 8)
    f = stats.f_oneway(*by_group).statistic
    assert between / within == pytest.approx(f)


def test_one_way_balanced_is_the_restricted_likelihood_of_statsmodels():
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(15), 6)
    table = pd.DataFrame({"y": rng.normal(0, 1.5, 15)[group] + rng.normal(0, 1, 90), "group": group})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = smf.mixedlm("y ~ 1", table, groups="group").fit(reml=True)
    found = henderson(table["y"].to_numpy(), {"group": group})
    assert found["group"] == pytest.approx(float(fit.cov_re.iloc[0, 0]), rel=1e-3)
    assert found["residual"] == pytest.approx(float(fit.scale), rel=1e-3)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_planted_components_are_recovered_on_average_with_and_without_missing_cells(missing):
    rng, found = np.random.default_rng(2), []
    for _ in range(25):
        value, factors = crossed(rng)
        kept = rng.random(len(value)) >= missing
        part = {name: np.unique(levels[kept], return_inverse=True)[1] for name, levels in factors.items()}
        found.append(henderson(value[kept], part))
    average, spread = pd.DataFrame(found).mean(), pd.DataFrame(found).std() / 5
    planted = {**PLANTED, "residual": 0.5}
    print(f"share missing {missing}: " + ", ".join(f"{k} {v} -> {average[k]:.3f}" for k, v in planted.items()))
    for name, variance in planted.items():
        assert abs(average[name] - variance) < 4 * spread[name] + 0.01, name
    none = henderson(*crossed(rng, planted={"case": 1.5}))
    assert abs(none["persona"]) < 0.05  # the control: nothing planted, nothing found
    assert none["case"] > 0.5


def test_factors_that_are_mixed_up_with_each_other_have_no_variances():
    y, group = np.random.default_rng(3).normal(size=40), np.repeat(np.arange(4), 10)
    assert np.isnan(list(henderson(y, {"one": group, "again": group}).values())).all()


def sampled(seeds=2, wordings=2, n=40, persona_shift=1.0, reask=0.6, seed=0):
    """A table with sampling on: personas in several wordings, every cell asked several times."""
    rng, frames = np.random.default_rng(seed), []
    for k, name in enumerate(("none", "nurse", "physician", "bold", "cautious")):
        for wording in range(wordings):
            made = synthetic_table(
                n, seed=1, personas={name: (persona_shift * k / 2, persona_shift * k / 2, 0.0)}, unparsed=0
            )
            for run in range(1, seeds + 1):
                again = made.assign(wording=wording, seed=run, condition=f"{wording}/{run}")
                flips = rng.random(len(again)) < reask
                again["y_gen"] = np.where(flips, rng.choice(list("ABC"), len(again)), again["y_gen"])
                frames.append(again)
    table = pd.concat(frames, ignore_index=True)
    table.attrs = {"options": ["A", "B", "C"]}
    return table


def test_output_that_varies_by_asking_again_says_so_and_output_that_varies_by_persona_does_not():
    noisy = variance_components(sampled(reask=0.9)).set_index(["stratum", "component"])
    steady = variance_components(sampled(reask=0.02, persona_shift=3.0)).set_index(["stratum", "component"])
    assert noisy.loc[("all", RUN_SHARE), "low"] > 0.5
    assert steady.loc[("all", RUN_SHARE), "high"] < 0.2
    shares = noisy.loc["all"].drop(RUN_SHARE)["share"]
    assert shares.sum() == pytest.approx(1)
    assert noisy.loc[("all", "remainder"), "note"].startswith("none")


def test_what_a_design_cannot_identify_is_said():
    table = sampled()
    one_seed = table[table["seed"] == 1]
    one_seed.attrs = table.attrs
    notes = variance_components(one_seed).set_index(["stratum", "component"]).loc["all"]
    assert notes.loc["run", "note"] == "not identifiable: one seed"
    assert "sample with several seeds" in notes.loc["seed", "note"]
    assert "part of the remainder" in notes.loc["wording x case", "note"]
    assert notes.loc["remainder", "variance"] > 0
    assert np.isnan(notes.loc[RUN_SHARE, "variance"])
    one_wording = table[table["wording"] == 0]
    one_wording.attrs = table.attrs
    notes = variance_components(one_wording).set_index(["stratum", "component"]).loc["all"]
    assert notes.loc["wording", "note"] == "not identifiable apart from persona"
    assert notes.loc["wording x case", "note"] == "not identifiable apart from persona x case"
    assert notes.loc["seed", "variance"] > 0
    single = table[(table["persona"] == "none") & (table["wording"] == 0)]
    single.attrs = table.attrs
    notes = variance_components(single).set_index(["stratum", "component"]).loc["all"]
    assert notes.loc["persona", "note"] == "not identifiable: one persona"
    assert notes.loc["case", "variance"] == pytest.approx(notes.loc["case", "variance"])


def test_a_table_of_one_cell_is_undefined():
    one = synthetic_table(1, personas={"none": (0, 0, 0)}).iloc[:1]
    one.attrs = {"options": ["A", "B", "C"]}
    assert variance_components(one)["note"].str.startswith("undefined").all()
