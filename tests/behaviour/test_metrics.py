"""Metrics against scikit-learn, hand counts and a planted effect."""

import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss

from probe.behaviour import Settings, metrics, risk
from tests.behaviour.synthetic import OPTIONS, synthetic_table


@pytest.fixture(scope="module")
def table():
    return synthetic_table(80)


@pytest.fixture(scope="module")
def measured(table):
    return metrics(table).set_index(["metric", "persona", "stratum"]).sort_index()


def triage(target, y_gen, y_latent=None):
    """One persona's cells from strings of letters; '-' is an unparsable answer."""
    table = pd.DataFrame({"case": [str(i) for i in range(len(target))], "persona": "none", "target": list(target)})
    table["y_gen"] = [None if letter == "-" else letter for letter in y_gen]
    table["y_latent"] = list(y_latent or target)
    table.attrs = {"options": ["A", "B", "C"]}
    return table


def of(table, metric, **settings):
    result = metrics(table, settings=Settings(**settings)).set_index(["metric", "stratum"]).sort_index()
    return result.loc[(metric, "all")]


def test_shares_are_hand_counts(table, measured):
    arm = table[(table["persona"] == "ed_nurse") & (table["stratum"] == "emergency")]
    parsed = arm[arm["status"] == "parsed"]

    def value(metric):
        return measured.loc[(metric, "ed_nurse", "emergency"), "value"]

    assert value("accuracy") == pytest.approx((arm["y_gen"] == arm["target"]).mean())
    assert value("accuracy_latent") == pytest.approx((arm["y_latent"] == arm["target"]).mean())
    assert value("consistency") == pytest.approx((parsed["y_gen"] == parsed["y_latent"]).mean())
    assert value("consistency_strict") == pytest.approx((arm["y_gen"] == arm["y_latent"]).mean())
    assert value("risk_propensity") == pytest.approx((arm["y_gen"] == "C").mean())
    assert value("refusal_rate") == pytest.approx((arm["status"] == "refused").mean())
    assert value("label_mass") == pytest.approx(arm["label_mass"].mean())
    assert measured.loc[("consistency", "ed_nurse", "emergency"), "n"] == len(parsed)


def test_proper_scores_agree_with_scikit_learn(table, measured):
    arm = table[table["persona"] == "none"]
    logits = arm[[f"logp_{o}" for o in OPTIONS]].to_numpy()
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (arm["target"].to_numpy()[:, None] == np.array(OPTIONS)).astype(float)
    found = measured.xs(("none", "all"), level=("persona", "stratum"))["value"]
    assert found["log_loss"] == pytest.approx(sklearn_log_loss(arm["target"], p, labels=list(OPTIONS)))
    assert found["brier"] == pytest.approx(((p - truth) ** 2).sum(1).mean())
    assert found["overconfidence"] == pytest.approx(p.max(1).mean() - (arm["y_latent"] == arm["target"]).mean())
    assert found["expected_urgency_latent"] == pytest.approx((p @ [0, 1, 2]).mean())


def test_pooled_and_stratified_counts_add_up(measured):
    n = measured["n"].unstack("stratum")
    assert (n["all"] == n["emergency"] + n["primary_care"]).all()


def test_intervals_hold_their_value_and_every_gap_is_explained(measured):
    defined = measured[measured["value"].notna()]
    assert ((defined["low"] <= defined["value"] + 1e-12) | defined["low"].isna()).all()
    assert ((defined["high"] >= defined["value"] - 1e-12) | defined["high"].isna()).all()
    assert measured.loc[measured["value"].isna(), "note"].str.startswith("undefined").all()


def test_the_planned_column_is_the_same_metric_of_the_planned_table(table, measured):
    planned = table.copy()
    for option in OPTIONS:
        planned[f"logp_{option}"] = planned[f"planned_logp_{option}"]
        planned[f"stated_logp_{option}"] = planned[f"planned_stated_logp_{option}"]
    planned["y_gen"] = np.array(OPTIONS)[planned[[f"stated_logp_{o}" for o in OPTIONS]].to_numpy().argmax(1)]
    planned["y_latent"] = np.array(OPTIONS)[planned[[f"logp_{o}" for o in OPTIONS]].to_numpy().argmax(1)]
    planned["status"] = "parsed"
    direct = metrics(planned).set_index(["metric", "persona", "stratum"]).sort_index()["value"]
    for metric in ("accuracy", "consistency", "ece", "brier", "risk_log_ratio", "expected_urgency_stated"):
        pd.testing.assert_series_equal(measured.loc[metric, "planned"], direct.loc[metric], check_names=False)


def test_without_a_plan_nothing_is_planned(table):
    bare = table.drop(columns=[c for c in table if c.startswith("planned")])
    assert metrics(bare)["planned"].isna().all()


def test_every_cut_counts_the_errors_it_names():
    table = triage(target="AABBCCCC", y_gen="CBCAABC-")
    cases = {
        risk.high_vs_rest: (2, 2, 4, 3),  # A->C, B->C; C->A, C->B
        risk.strict: (1, 1, 2, 3),  # A->C; C->A
        risk.ordinal: (3, 3, 4, 5),  # A->C, A->B, B->C; B->A, C->A, C->B
    }
    for cut, expected in cases.items():
        row = of(table, "risk_sensitivity", cut=cut)
        assert tuple(row["counts"][k] for k in ("type_1", "type_2", "at_risk_1", "at_risk_2")) == expected
        assert row["value"] == expected[0] / expected[1]
    assert of(table, "over_triage_rate")["value"] == 2 / 4
    assert of(table, "under_triage_rate")["value"] == pytest.approx(2 / 3)  # one of four was unparsable


def test_the_ordinal_cut_counts_what_lies_above_a_high_risk_option_that_is_not_the_last():
    table = pd.DataFrame({"case": range(4), "persona": "p", "target": list("ABCC"), "y_gen": list("ADDA")})
    rows = metrics(table, options="ABCD", high_risk="C", settings=Settings(cut=risk.ordinal)).set_index("metric")
    counts = rows.loc["risk_sensitivity", "counts"]
    assert (counts["type_1"], counts["type_2"], counts["at_risk_1"], counts["at_risk_2"]) == (2, 1, 4, 3)


def test_the_strict_cut_has_no_errors_where_the_high_risk_option_is_the_lowest_one():
    table = pd.DataFrame({"case": range(3), "persona": "p", "target": list("AAC"), "y_gen": list("AAA")})
    for high, counts in (("A", (0, 0, 0, 0)), ("C", (0, 1, 2, 1))):  # right answers are no errors
        rows = metrics(table, options="ABC", high_risk=high, settings=Settings(cut=risk.strict)).set_index("metric")
        found = rows.loc["risk_sensitivity", "counts"]
        assert tuple(found[k] for k in ("type_1", "type_2", "at_risk_1", "at_risk_2")) == counts


def test_errors_among_parsed_answers_are_marked_as_descriptive_and_those_of_the_latent_label_are_not(measured):
    marked = measured.groupby("metric")["descriptive"].first()
    stated = ["risk_sensitivity", "risk_log_ratio", "over_triage_rate", "under_triage_rate", "consistency", "kappa"]
    assert marked[stated].all()
    assert not marked[["risk_sensitivity_latent", "accuracy", "consistency_strict", "risk_propensity"]].any()


@pytest.mark.parametrize(("y_gen", "counts"), [("CCC", (2, 0)), ("ABC", (0, 0))])
def test_risk_sensitivity_without_under_triage_is_undefined_and_says_so_with_both_counts(y_gen, counts):
    row = of(triage("ABC", y_gen), "risk_sensitivity")
    assert np.isnan(row["value"])
    assert row["note"].startswith("undefined")
    assert (row["counts"]["type_1"], row["counts"]["type_2"]) == counts
    smoothed = of(triage("ABC", y_gen), "risk_log_ratio")
    assert smoothed["value"] == pytest.approx(np.log((counts[0] + 0.5) / 0.5))


def test_an_absent_class_leaves_only_its_own_rate_undefined():
    table = triage(target="ABAB", y_gen="ACAB")
    assert np.isnan(of(table, "under_triage_rate")["value"])
    assert of(table, "over_triage_rate")["value"] == 0.25
    assert of(table, "accuracy")["value"] == 0.75


def test_a_persona_that_answers_nothing_is_wrong_but_not_inconsistent():
    table = triage(target="ABC", y_gen="---")
    assert of(table, "accuracy")["value"] == 0
    assert of(table, "parse_rate")["value"] == 0
    assert of(table, "consistency_strict")["value"] == 0
    for metric in ("consistency", "kappa", "risk_sensitivity", "risk_log_ratio"):
        assert np.isnan(of(table, metric)["value"])


def test_refusing_the_near_ties_raises_plain_consistency_but_not_the_strict_one():
    agrees = triage(target="C" * 20, y_gen="C" * 16 + "B" * 4)
    refuses = triage(target="C" * 20, y_gen="C" * 16 + "-" * 4)
    assert of(refuses, "consistency")["value"] > of(agrees, "consistency")["value"]
    assert of(refuses, "consistency_strict")["value"] == of(agrees, "consistency_strict")["value"]


def test_metrics_whose_columns_are_missing_are_absent_and_each_lack_is_said_in_one_sentence():
    table = triage("ABC", "ABC").drop(columns="y_gen")
    measured = metrics(table)
    assert set(measured["metric"]) == {"accuracy_latent", "risk_propensity_latent", "risk_sensitivity_latent"}
    said = measured.attrs["absent"]
    assert len(said) == len(set(said)) == 7
    assert any(re.match(r"accuracy, .* and \d+ more need the column y_gen, which", sentence) for sentence in said)
    assert any(sentence.startswith("entropy needs the column entropy") for sentence in said)
    whole = synthetic_table(3).assign(entropy=1.0, letter_first=False)
    assert metrics(whole).attrs["absent"] == []


def test_one_case_is_a_pool_without_strata_and_its_interval_is_wide():
    row = of(triage("C", "C"), "accuracy")
    assert row["value"] == 1
    assert row["low"] < 0.25
    assert metrics(triage("C", "C"))["stratum"].unique().tolist() == ["all"]


def test_the_same_table_gives_the_same_numbers(table):
    pd.testing.assert_frame_equal(metrics(table), metrics(table))


def test_an_order_of_options_that_columns_alone_tell_is_said_and_one_that_was_given_is_not():
    columns = {"logp_clinic": [-1.0, -0.1], "logp_emergency": [-0.5, -3.0], "logp_home": [-3.0, -4.0]}
    table = pd.DataFrame({"case": [1, 2], "persona": "p", "target": ["home", "clinic"], **columns})
    said = metrics(table).attrs["absent"][-1]
    assert said.startswith("the urgency of the options was taken from the order of the columns logp_<label>")
    assert "clinic < emergency < home, high-risk: home; where that is not so, pass options=" in said
    told = metrics(table, options=["home", "clinic", "emergency"])
    assert not any("urgency of the options" in sentence for sentence in told.attrs["absent"])
    assert told.attrs["high_risk"] == "emergency"


def test_options_need_not_be_letters():
    table = triage("ABCA", "ABCC").replace({"A": "home", "B": "gp", "C": "hospital"})
    table.attrs = {"options": ["home", "gp", "hospital"], "high_risk": "hospital"}
    assert of(table, "risk_propensity")["value"] == 0.5


def test_without_the_order_of_the_options_nothing_ordinal_is_guessed():
    named = triage("ABCA", "ABCC", "ABCB").replace({"A": "stay", "B": "go", "C": "ambulance"})
    named.attrs = {}
    measured = metrics(named).set_index("metric")
    for metric in ("risk_propensity", "risk_sensitivity", "risk_log_ratio", "over_triage_rate"):
        assert np.isnan(measured.loc[metric, "value"])
        assert "--options home,clinic,emergency --high-risk emergency" in measured.loc[metric, "note"]
    assert measured.loc["accuracy", "value"] == 0.75
    assert measured.attrs["high_risk"] is None

    def of_named(metric, **arguments):
        return metrics(named, **arguments).set_index("metric").loc[metric]

    ranked = of_named("risk_propensity", options=["stay", "go", "ambulance"])
    assert ranked["value"] == 0.5
    assert of_named("risk_propensity", high_risk="go")["value"] == 0.25
    strict = {"high_risk": "ambulance", "settings": Settings(cut=risk.strict)}
    assert of_named("risk_sensitivity", **strict)["note"].startswith("undefined: the order of the options")
    assert of_named("risk_log_ratio", **strict, options=["stay", "go", "ambulance"])["counts"]["type_1"] == 1


def test_the_joint_limit_is_passed_by_a_calibrated_model_one_time_in_twenty_and_its_own_bands_far_more_often():
    def passes(seed):
        rng = np.random.default_rng(seed)
        frames = []
        for k in range(12):
            p = rng.dirichlet([1, 1, 1], 80)
            truth = (rng.random(80)[:, None] > p.cumsum(1)).sum(1)
            frame = pd.DataFrame({"case": [f"{k}-{i}" for i in range(80)], "persona": f"p{k}"})
            frame["target"] = np.array(OPTIONS)[truth]
            frames.append(frame.assign(logp_A=np.log(p[:, 0]), logp_B=np.log(p[:, 1]), logp_C=np.log(p[:, 2])))
        ece = metrics(pd.concat(frames, ignore_index=True)).query("metric == 'ece'")
        return (ece["value"] > ece["null_high"]).any(), (ece["value"] > ece["null_max"]).any()

    alone, jointly = np.mean([passes(seed) for seed in range(40)], axis=0)
    assert alone > 0.12
    assert jointly <= 0.125


def test_the_joint_limit_belongs_to_strata_or_to_the_pool_where_it_is_alone(measured, table):
    ece = measured.loc["ece"]
    assert ece.xs("all", level="stratum")["null_max"].isna().all()
    assert (ece["null_max"].dropna() > ece["null_high"][ece["null_max"].notna()]).all()
    pool = metrics(table.drop(columns="stratum")).query("metric == 'ece'")
    assert pool["null_max"].notna().all()
