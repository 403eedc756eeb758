"""Agreement by answer site, answers by status, risk under every cut: hand counts and the metrics table."""

import numpy as np
import pandas as pd
import pytest

from probe.behaviour import CUTS, Settings, answer_rates, consistency_by_site, metrics, risk_by_cut
from probe.values import ProbeError
from tests.behaviour.synthetic import OPTIONS, synthetic_table


@pytest.fixture(scope="module")
def table():
    made = synthetic_table(60, unparsed=0.1)
    rng = np.random.default_rng(0)
    for option in OPTIONS:
        noisy = made[f"stated_logp_{option}"] + rng.normal(0, 0.5, len(made))
        made[f"forced_logp_{option}"] = noisy.where(rng.random(len(made)) < 0.9)
    made["role"] = np.where(made["persona"].str.contains("ed_"), "medical", "plain")
    return made


def test_each_site_agrees_with_hand_counts_and_the_first_with_the_metrics(table):
    found = consistency_by_site(table).set_index(["site", "persona", "stratum"]).sort_index()
    assert list(dict.fromkeys(consistency_by_site(table)["site"])) == ["prompt_end", "forced", "answer"]
    measured = metrics(table).set_index(["metric", "persona", "stratum"]).sort_index()
    for persona in ("none", "ed_nurse"):
        row = found.loc[("prompt_end", persona, "emergency")]
        assert row["value"] == measured.loc[("consistency", persona, "emergency"), "value"]
        assert row["strict"] == measured.loc[("consistency_strict", persona, "emergency"), "value"]
    arm = table[(table["persona"] == "ed_nurse") & (table["stratum"] == "emergency")]
    forced = arm[[f"forced_logp_{o}" for o in OPTIONS]]
    kept = arm["y_gen"].notna() & forced.notna().all(axis=1)
    best = np.array(OPTIONS)[forced[kept].to_numpy().argmax(1)]
    row = found.loc[("forced", "ed_nurse", "emergency")]
    assert (row["n"], row["value"]) == (kept.sum(), pytest.approx((best == arm["y_gen"][kept]).mean()))
    assert (found.loc["answer", "value"] == 1).all()  # the letter that was written is the most probable at its slot


def test_answers_by_any_column_are_hand_counts_and_add_up(table):
    found = answer_rates(table, "role").set_index(["group", "stratum", "status"]).sort_index()
    medical = table[table["role"] == "medical"]
    assert found.loc[("medical", "all", "refused"), "k"] == (medical["status"] == "refused").sum()
    assert found.loc[("medical", "all", "refused"), "value"] == pytest.approx((medical["status"] == "refused").mean())
    totals = found.groupby(level=[0, 1])["value"].sum()
    assert totals.to_numpy() == pytest.approx(np.ones(len(totals)))
    with pytest.raises(ProbeError, match=r"no column 'rle'\. The nearest known column is 'role'"):
        answer_rates(table, "rle")


@pytest.mark.parametrize("name", list(CUTS))
def test_risk_under_a_cut_is_that_of_the_metrics_with_this_cut(table, name):
    rows = risk_by_cut(table).set_index(["cut", "labels", "persona", "stratum", "metric"]).sort_index()
    measured = metrics(table, settings=Settings(cut=CUTS[name])).set_index(["metric", "persona", "stratum"])
    for metric, known in (("sensitivity", "risk_sensitivity"), ("log_ratio", "risk_log_ratio")):
        row = rows.loc[(name, "stated", "bold_ed_physician", "emergency", metric)]
        expected = measured.loc[(known, "bold_ed_physician", "emergency")]
        assert row["value"] == pytest.approx(expected["value"], nan_ok=True)
        assert (row["type_1"], row["type_2"]) == (expected["counts"]["type_1"], expected["counts"]["type_2"])
    latent = rows.loc[(name, "latent", "bold_ed_physician", "emergency", "sensitivity")]
    assert latent["value"] == pytest.approx(
        measured.loc[("risk_sensitivity_latent", "bold_ed_physician", "emergency"), "value"], nan_ok=True
    )


def test_cuts_that_need_an_order_are_undefined_without_it():
    plain = pd.DataFrame({"case": [1, 2], "persona": "none", "target": ["stay", "go"], "y_gen": ["go", "go"]})
    found = risk_by_cut(plain, high_risk="go").set_index(["cut", "metric"])
    assert found.loc[("high-vs-rest", "over_rate"), "value"] == 1
    assert found.loc[("strict", "over_rate"), "note"].startswith("undefined: the order of the options")


def test_how_an_answer_begins_splits_consistency_and_both_parts_are_marked_as_descriptive(table):
    first = np.random.default_rng(1).random(len(table)) < 0.4
    made = table.assign(letter_first=np.where(first, "True", "False"))  # as a file may have it
    made.attrs = table.attrs
    rows = metrics(made).set_index(["metric", "persona", "stratum"]).sort_index()
    arm = made[(made["persona"] == "none") & made["y_gen"].notna()]
    agrees = arm["y_gen"] == arm["y_latent"]
    early = arm["letter_first"] == "True"
    parts = rows.loc[["consistency_letter_first", "consistency_later_letter"]].xs(("none", "all"), level=(1, 2))
    assert parts["value"].tolist() == pytest.approx([agrees[early].mean(), agrees[~early].mean()])
    assert parts["n"].sum() == len(arm)
    assert parts["descriptive"].all()
    assert parts["note"].str.startswith("descriptive").all()
    assert not rows.loc["consistency_strict", "descriptive"].any()


def test_mean_label_distributions_add_up_and_give_the_expected_urgency(table):
    rows = metrics(table).set_index(["metric", "persona", "stratum"]).sort_index()["value"]
    for label in ("latent", "stated"):
        shares = [rows[f"probability_{option}_{label}", "ed_nurse", "all"] for option in OPTIONS]
        assert sum(shares) == pytest.approx(1)
        assert shares[1] + 2 * shares[2] == pytest.approx(rows[f"expected_urgency_{label}", "ed_nurse", "all"])
    logp = table.loc[table["persona"] == "ed_nurse", [f"logp_{o}" for o in OPTIONS]].to_numpy()
    top = np.sort(logp, 1)
    assert rows["margin", "ed_nurse", "all"] == pytest.approx((top[:, -1] - top[:, -2]).mean())
    assert ("expected_urgency_at_forced", "ed_nurse", "all") in rows.index


def test_a_table_in_which_nothing_is_parsed_has_rates_and_undefined_consistency(table):
    silent = table.assign(y_gen=None, status="unparsable")
    silent.attrs = table.attrs
    rows = metrics(silent).set_index(["metric", "persona", "stratum"]).sort_index()
    assert (rows.loc["accuracy", "value"] == 0).all()
    assert (rows.loc["unparsable_rate", "value"] == 1).all()
    for metric in ("consistency", "kappa", "stated_ece", "stated_overconfidence"):
        assert rows.loc[metric, "value"].isna().all()
        assert rows.loc[metric, "note"].str.startswith("undefined").all()
    assert consistency_by_site(silent)["value"].isna().all()
