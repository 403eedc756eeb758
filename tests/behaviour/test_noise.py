"""The noise floor: by hand, against a second implementation, with planted and null personas."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.api import OLS

from probe.behaviour import compare, control_personas, metrics, noise_floor
from probe.behaviour.noise import floor_test
from probe.values import ProbeError
from tests.behaviour.synthetic import synthetic_table


def with_controls(k=8, m=3, shift=1.4, n=60, seed=0):
    """A neutral persona in ``k`` wordings, a physician in ``m`` and no persona, on the same cases."""
    rng, frames = np.random.default_rng(seed), []
    for name, wordings, moves in (("neutral", k, 0.1), ("ed_physician", m, shift), ("none", 1, 0.0)):
        for wording in range(wordings):
            jitter = moves + rng.normal(0, 0.1)
            made = synthetic_table(n, seed=1, personas={name: (jitter, jitter, 0.0)}, unparsed=0.05)
            made["role"] = "control" if name == "neutral" else ""
            frames.append(made.assign(wording=wording, condition=f"system/wording={wording}"))
    table = pd.concat(frames, ignore_index=True)
    table.attrs = {"options": ["A", "B", "C"]}
    return table


@pytest.fixture(scope="module")
def table():
    return with_controls()


def test_the_test_of_one_wording_is_that_of_a_single_new_observation_by_least_squares():
    """Regressing on an indicator of the one persona's row gives the t of 1 + 1 / K with K - 1 degrees of freedom."""
    controls = np.random.default_rng(0).normal(0.7, 0.03, 30)
    found = floor_test(np.array([0.8]), controls)
    design = np.column_stack([np.ones(31), np.arange(31) == 0]).astype(float)
    fit = OLS(np.concatenate([[0.8], controls]), design).fit()
    assert (found["t"], found["df"], found["p"]) == pytest.approx((fit.tvalues[1], fit.df_resid, fit.pvalues[1]))
    assert (found["low"], found["high"]) == pytest.approx(tuple(fit.conf_int()[1]))


def test_five_wordings_by_hand():
    own, controls = np.array([0.8, 0.7, 0.9, 0.75, 0.85]), np.array([0.6, 0.65, 0.7, 0.55])
    found = floor_test(own, controls)
    spread = np.std(controls, ddof=1)
    t = (0.8 - 0.625) / (spread * np.sqrt(1 / 5 + 1 / 4))
    assert (found["t"], found["p"]) == pytest.approx((t, 2 * stats.t.sf(t, 3)))
    assert found["p_rank"] == found["p_rank_min"] == 1 / 5  # no rank among five can be rarer
    assert found["outside"] and found["beyond_sd"]
    edge = floor_test(np.full(5, 0.625 + found["floor_half"]), controls)
    assert edge["p"] == pytest.approx(0.05)


def test_the_effect_is_the_difference_of_the_metrics_of_the_same_cells(table):
    row = noise_floor(table).set_index(["metric", "persona", "stratum"]).loc[("accuracy", "ed_physician", "emergency")]
    values = metrics(table).set_index(["metric", "persona", "stratum"])["value"]
    assert row["theta"] == pytest.approx(values["accuracy", "ed_physician", "emergency"])
    assert row["controls_mean"] == pytest.approx(values["accuracy", "neutral", "emergency"])
    assert (row["k"], row["m"], row["cases"]) == (8, 3, 60)
    base = compare(table, ["none", "controls"]).set_index(["metric", "persona", "base", "stratum"]).sort_index()
    against = base.loc[("accuracy", "ed_physician", "controls", "emergency")]
    assert against["difference"] == pytest.approx(row["effect"])
    assert np.isnan(against["b"])  # a mean over wordings is neither 0 nor 1
    assert against["test"] == "paired t"
    assert ("accuracy", "neutral", "controls", "all") not in base.index


def test_a_planted_shift_stands_above_the_floor_and_a_neutral_wording_taken_for_a_persona_does_not(table):
    found = noise_floor(table).set_index(["metric", "persona", "stratum"])
    assert found.loc[("expected_urgency_latent", "ed_physician", "all"), "p_holm"] < 0.01
    flagged = 0
    for seed in range(12):
        null = noise_floor(with_controls(k=12, m=3, shift=0.1, n=20, seed=seed), metrics=["expected_urgency_latent"])
        flagged += null.set_index(["persona", "stratum"]).loc[("ed_physician", "all"), "p"] < 0.05
    assert flagged <= 3  # of 12, one in twenty each: more has a probability of .002


def test_only_cases_that_all_wordings_have_count(table):
    part = table[~((table["wording"] == 2) & (table["case"] == "emergency-000"))]
    part.attrs = table.attrs
    found = noise_floor(part).set_index(["metric", "persona", "stratum"])
    assert found.loc[("accuracy", "ed_physician", "emergency"), "cases"] == 59
    alone = table[(table["persona"] != "neutral") | table["case"].str.startswith("primary")]
    alone.attrs = table.attrs
    row = noise_floor(alone).set_index(["metric", "persona", "stratum"]).loc[("accuracy", "none", "emergency")]
    assert row["note"] == "undefined: no case that all wordings have"


def test_controls_are_named_or_found_by_their_role_and_without_any_there_is_no_floor(table):
    assert control_personas(table) == ("neutral",)
    assert control_personas(table, ["none"]) == ("none",)
    marked = table.drop(columns="role")
    marked.attrs = {**table.attrs, "controls": ["neutral"]}
    pd.testing.assert_frame_equal(noise_floor(marked), noise_floor(table))
    bare = synthetic_table(5)
    assert control_personas(bare) == ()
    with pytest.raises(ProbeError, match="needs control wordings"):
        noise_floor(bare)
    with pytest.raises(ProbeError, match="mean of the neutral control wordings"):
        compare(bare, "controls")
    with pytest.raises(ProbeError, match="nearest known persona is 'neutral'"):
        noise_floor(table, controls=["neutrl"])
    with pytest.raises(ProbeError, match="nearest known metric is 'accuracy'"):
        noise_floor(table, metrics=["acuracy"])


@pytest.mark.parametrize(("controls", "said"), [([0.5], "one control wording"), ([0.5] * 4, "do not differ at all")])
def test_controls_without_a_spread_leave_the_test_undefined(controls, said):
    found = floor_test(np.array([0.7]), np.array(controls))
    assert said in found["note"]
    assert "p" not in found
    assert found["effect"] == pytest.approx(0.2)
