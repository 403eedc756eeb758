"""Paired comparisons: a planted effect is found, a shuffled one is lost, and the whole family is corrected."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from probe.behaviour import FAMILY, compare, metrics, rankings, signs_differ
from probe.values import ProbeError
from tests.behaviour.synthetic import PERSONAS, synthetic_table


@pytest.fixture(scope="module")
def table():
    return synthetic_table(200)


@pytest.fixture(scope="module")
def compared(table):
    return compare(table).set_index(["metric", "persona", "stratum"]).sort_index()


def test_differences_are_those_of_the_metrics(table, compared):
    values = metrics(table).set_index(["metric", "persona", "stratum"]).sort_index()["value"]
    for metric in (
        "accuracy",
        "accuracy_latent",
        "consistency_strict",
        "brier",
        "ece",
        "ece_debiased_sq",
        "risk_propensity",
    ):
        for persona in list(PERSONAS)[1:]:
            for stratum in ("all", "emergency", "primary_care"):
                expected = values[metric, persona, stratum] - values[metric, "none", stratum]
                assert compared.loc[(metric, persona, stratum), "difference"] == pytest.approx(expected)


def test_the_planted_reversal_is_found_and_flagged(compared):
    accuracy = compared.loc[("accuracy", "ed_physician")]
    assert accuracy.loc["emergency", "difference"] > 0
    assert accuracy.loc["primary_care", "difference"] < 0
    assert (accuracy.loc[["emergency", "primary_care"], "p_holm"] < 0.05).all()
    assert accuracy["signs_differ"].all()
    assert not compared.loc[("risk_propensity", "ed_physician"), "signs_differ"].any()


def test_signs_differ_only_where_an_interval_excludes_nothing_and_the_other_direction_stands_against_it(compared):
    def rows(*triples):
        strata = ["all", "emergency", "primary_care"]
        return pd.DataFrame(triples, columns=["low", "difference", "high"]).assign(stratum=strata[: len(triples)])

    assert signs_differ(rows((-0.05, 0.0, 0.05), (0.02, 0.1, 0.2), (-0.2, -0.1, -0.02)))  # opposed strata
    assert signs_differ(rows((-0.08, -0.02, 0.04), (0.02, 0.1, 0.2), (-0.2, -0.1, 0.01)))  # the pool contradicts one
    assert not signs_differ(rows((-0.05, 0.01, 0.05), (-0.1, 0.02, 0.2), (-0.2, -0.01, 0.1)))  # noise around 0
    assert not signs_differ(rows((0.02, 0.1, 0.2), (0.02, 0.1, 0.2), (-0.2, -0.01, 0.1)))
    for (_, persona), part in compared.reset_index().groupby(["metric", "persona"]):
        assert part["signs_differ"].nunique() == 1, persona
        assert part["signs_differ"].iloc[0] == signs_differ(part)


def test_risk_is_not_compared_where_the_high_risk_option_is_not_known(table):
    stated = table[["case", "persona", "stratum", "target", "y_gen", "y_latent"]].copy()
    stated.attrs = {}
    rows = compare(stated).query("metric == 'risk_propensity'")
    assert rows[["difference", "p", "p_holm"]].isna().all(axis=None)
    assert rows["note"].str.contains("--high-risk").all()
    known = compare(stated, high_risk="C").query("metric == 'risk_propensity'")
    assert known["p"].notna().all()


def test_an_effect_shuffled_over_personas_is_lost(table):
    rng = np.random.default_rng(0)
    two = table[table["persona"].isin(["none", "cautious_ed_physician"])].copy()
    swap = dict(zip(two["case"].unique(), rng.random(400) < 0.5, strict=True))
    other = {"none": "cautious_ed_physician", "cautious_ed_physician": "none"}
    two["persona"] = [other[p] if swap[c] else p for p, c in zip(two["persona"], two["case"], strict=True)]
    two.attrs = table.attrs
    assert (compare(two)["p_holm"].dropna() > 0.05).all()
    assert (compare(table)["p_holm"] < 1e-6).any()


def test_holm_runs_over_every_test_of_the_family_and_over_nothing_else(compared):
    tested = compared[compared["p"].notna()]
    assert set(tested.index.get_level_values("metric")) == set(FAMILY)
    assert len(tested) == len(FAMILY) * 5 * 3
    assert tested["p_holm"].to_numpy() == pytest.approx(multipletests(tested["p"], method="holm")[1])
    assert compared.loc["ece", "p_holm"].isna().all()
    assert compared.loc["ece", "low"].notna().all()


def test_a_smaller_family_is_corrected_for_less(table, compared):
    only = compare(table, family=["accuracy"]).set_index(["metric", "persona", "stratum"]).sort_index()
    assert (only.loc["accuracy", "p_holm"] <= compared.loc["accuracy", "p_holm"]).all()
    assert only.loc["brier", "p"].isna().all()
    with pytest.raises(ProbeError, match="ece"):
        compare(table, family=["ece"])


def test_paired_means_agree_with_scipy(table, compared):
    arms = table.pivot(index="case", columns="persona", values=["logp_A", "logp_B", "logp_C"])
    urgency = {}
    for persona in ("none", "ed_nurse"):
        p = np.exp(arms.xs(persona, axis=1, level=1).to_numpy())
        urgency[persona] = p @ [0, 1, 2] / p.sum(1)
    expected = stats.ttest_rel(urgency["ed_nurse"], urgency["none"])
    row = compared.loc[("expected_urgency_latent", "ed_nurse", "all")]
    assert row["p"] == pytest.approx(expected.pvalue)
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected.confidence_interval()))


def test_rows_pair_by_case_and_not_by_position(table, compared):
    shuffled = table.sample(frac=1, random_state=0)
    shuffled.attrs = table.attrs
    again = compare(shuffled).set_index(["metric", "persona", "stratum"]).sort_index().loc[compared.index]
    assert again["difference"].to_numpy() == pytest.approx(compared["difference"].to_numpy())
    assert again["p"].to_numpy() == pytest.approx(compared["p"].to_numpy(), nan_ok=True)


def test_cases_that_one_arm_lacks_are_left_out_and_counted(table):
    part = table[~((table["persona"] == "ed_nurse") & (table["case"] < "emergency-010"))]
    part.attrs = table.attrs
    row = (
        compare(part)
        .set_index(["metric", "persona", "stratum"])
        .sort_index()
        .loc[("accuracy", "ed_nurse", "emergency")]
    )
    assert row["n"] == 190
    assert "10 rows without a partner" in row["note"]


def test_several_conditions_pair_with_the_single_base_row_and_cluster_by_case(table):
    nurse = table[table["persona"] == "ed_nurse"]
    both = pd.concat([table, nurse.assign(condition="system/wording=1")], ignore_index=True)
    both.attrs = table.attrs
    once, twice = (compare(t).set_index(["metric", "persona", "stratum"]).sort_index() for t in (table, both))
    for metric in ("accuracy", "brier"):
        one, two = (t.loc[(metric, "ed_nurse", "all")] for t in (once, twice))
        assert two["n"] == 2 * one["n"]
        assert two["difference"] == pytest.approx(one["difference"])
        assert two["high"] - two["low"] == pytest.approx(one["high"] - one["low"], rel=0.02)
    assert "clustered" in twice.loc[("accuracy", "ed_nurse", "all"), "test"]


def test_no_difference_of_proportions_lies_beyond_one(table):
    few = table[table["case"].isin(table["case"].unique()[:2])]
    worded = pd.concat([few, few.assign(condition="system/wording=1")], ignore_index=True)
    worded.loc[worded.index % 3 == 0, "y_gen"] = worded["target"]
    worded = worded.assign(status=np.where(worded["y_gen"].isna(), "unparsable", "parsed"))
    worded.attrs = table.attrs
    found = compare(worded).set_index("metric")
    shares = found.loc[["accuracy", "consistency_strict", "risk_propensity"]]
    assert (shares["low"].min(), shares["high"].max()) == (-1, 1)  # t over two cases would say more
    assert found["high"].max() > 1  # the control: log loss may differ by more


def test_the_consistency_of_cases_answered_in_both_arms_is_described_not_tested(table, compared):
    row = compared.loc[("consistency_both", "ed_nurse", "all")]
    parsed = table.assign(ok=table["y_gen"].notna()).pivot(index="case", columns="persona", values="ok")
    assert row["n"] == (parsed["none"] & parsed["ed_nurse"]).sum()
    assert np.isnan(row["p"])
    assert "descriptive" in row["note"]


def test_planned_differences_stand_beside(compared):
    unplanned = {"parse_rate", "refusal_rate", "label_mass"}
    assert (compared["planned"].isna() == compared.index.get_level_values("metric").isin(unplanned)).all()
    assert compared.loc[("accuracy", "ed_physician", "emergency"), "planned"] > 0.1


def test_a_plan_of_some_pairs_is_not_set_beside_a_difference_over_all(table):
    some = table["case"].isin(table["case"].unique()[:5]) & (table["persona"] == "ed_nurse")
    planned = [name for name in table if name.startswith("planned")]
    partly = table.copy()
    partly.loc[some, planned] = np.nan
    partly.attrs = table.attrs
    found = compare(partly).query("metric in ('accuracy', 'ece') and stratum == 'all'").set_index("persona")["planned"]
    assert found["ed_nurse"].isna().all()
    assert found["ed_physician"].notna().all()


def test_pairs_are_told_with_the_number_of_their_cases(table, compared):
    tested = compared[compared["n"] > 0]
    assert (tested["cases"] == tested["n"]).all()
    twice = pd.concat([table, table[table["persona"] != "none"].assign(wording=1)], ignore_index=True)
    twice["wording"] = twice["wording"].fillna(0)
    twice.attrs = table.attrs
    rows = compare(twice).query("metric in ('accuracy', 'ece')")
    assert (rows["n"] == 2 * rows["cases"]).all()


def test_an_unknown_base_is_refused(table):
    with pytest.raises(ProbeError, match="found no 'nobody'"):
        compare(table, base="nobody")


def test_the_base_alone_has_nothing_to_be_compared_with(table):
    alone = table[table["persona"] == "none"]
    alone.attrs = table.attrs
    assert compare(alone).empty


def test_mrr_of_a_worked_example_with_two_judges():
    rows = [("1", "none", 2, "x"), ("1", "nurse", 1, "x"), ("1", "none", 1, "y"), ("1", "nurse", 2, "y")]
    rows += [("2", "none", 2, "x"), ("2", "nurse", 1, "x"), ("3", "none", 4, "x"), ("3", "nurse", 1, "x")]
    ranks = pd.DataFrame(rows, columns=["case", "persona", "rank", "judge"])
    result = rankings(ranks, base="none").set_index("persona")
    assert result.loc["none", "value"] == pytest.approx((0.75 + 0.5 + 0.25) / 3)
    assert result.loc["nurse", "value"] == pytest.approx((0.75 + 1 + 1) / 3)
    expected = stats.ttest_rel([0.75, 1, 1], [0.75, 0.5, 0.25])
    assert result.loc["nurse", "p"] == pytest.approx(expected.pvalue)


def test_ranks_count_from_one():
    with pytest.raises(ProbeError, match="ranks count from 1"):
        rankings(pd.DataFrame({"case": ["1"], "persona": ["a"], "rank": [0]}))
