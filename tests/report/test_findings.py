"""Sentences: they follow from the numbers, say what they must not hide, and claim nothing where nothing is."""

from dataclasses import replace

import numpy as np
import pandas as pd

from probe.report import Tables, cautions, findings, warnings
from tests.behaviour.synthetic import PERSONAS, synthetic_table
from tests.report.conftest import tables_of


def told(tables):
    return {finding.topic: " ".join(finding.sentences) for finding in findings(tables)}


def with_rows(study, **changes):
    return replace(study.tables, comparisons=study.tables.comparisons.assign(**changes))


def test_findings_carry_the_numbers_of_the_tables(small_study):
    sentences = told(small_study.tables)
    rows = small_study.tables.comparisons.set_index(["metric", "persona", "stratum"]).sort_index()
    row = rows.loc[("accuracy", "ed_physician", "emergency")]
    assert f"ED physician: accuracy rises by {100 * row['difference']:.1f}" in sentences["Accuracy"]
    assert f"{row['n']} pairs" in sentences["Accuracy"]
    assert "Strata and pool differ in sign" in sentences["Accuracy"]
    assert "helpful assistant" in sentences["Inside"].split("At no layer above the noise floor")[1]
    q = small_study.tables.omnibus.query("metric == 'accuracy' and stratum == 'emergency'").iloc[0]
    assert f"in emergency Q\u00a0=\u00a0{q['Q']:.1f}" in sentences["Accuracy"]


def test_without_an_effect_no_finding_claims_one(small_study):
    sentences = told(with_rows(small_study, p_holm=1.0))
    assert "No change of accuracy is resolved for" in sentences["Accuracy"]
    assert "rises" not in sentences["Accuracy"] + sentences["Risk"]
    assert "80\u00a0% power" in sentences["Accuracy"]  # what this n could have shown
    assert "could be tested" in told(with_rows(small_study, p=np.nan, p_holm=np.nan))["Accuracy"]
    below = replace(small_study.tables, shifts=small_study.tables.shifts.assign(floor_max=np.inf))
    assert "beyond the noise floor" in told(below)["Inside"]


def test_on_data_without_an_effect_the_sentences_claim_none():
    same = dict.fromkeys(PERSONAS, (0.0, 0.0, 0.0))
    sentences = told(tables_of(synthetic_table(60, seed=3, personas=same)))
    assert all("No change of" in sentences[topic] for topic in ("Accuracy", "Consistency", "Risk"))
    assert "rises" not in " ".join(sentences.values())


def test_contrasts_decided_beforehand_stand_first_and_apart(small_study):
    compared = small_study.tables.comparisons
    one = (compared["metric"] == "accuracy") & (compared["persona"] == "ed_nurse") & (compared["stratum"] == "all")
    tables = with_rows(small_study, family=np.where(one, "confirmatory", compared["family"]))
    first, *others = findings(tables)
    assert first.decided
    assert len(first.sentences) == 1
    assert first.sentences[0].startswith("ED nurse against no persona: accuracy ")
    assert not any(finding.decided for finding in others)
    assert not any(finding.decided for finding in findings(small_study.tables))
    assert "1 of them decided beforehand" in " ".join(cautions(tables))
    assert "no contrast was decided beforehand" in " ".join(cautions(small_study.tables))


def test_the_verdict_of_the_noise_floor_stands_beside_each_effect(small_study, floor):
    sentences = told(replace(small_study.tables, floor=floor))["Accuracy"]
    by_persona = {line.split(":")[0]: line for line in findings(replace(small_study.tables, floor=floor))[0].sentences}
    assert "beyond the noise floor (+20.0\u00a0pp from the mean of 30 control wordings" in by_persona["ED physician"]
    assert "within the noise floor (+2.0\u00a0pp" in by_persona["ED nurse"]
    assert "noise floor unknown" in sentences  # primary care is not in the planted floor
    assert "noise floor" not in told(small_study.tables)["Accuracy"]
    assert "No set of neutral control wordings was captured" in " ".join(cautions(small_study.tables))
    assert "No set of neutral" not in " ".join(cautions(replace(small_study.tables, floor=floor)))


def test_unparsed_answers_that_could_undo_an_effect_are_told(small_study):
    undone = told(with_rows(small_study, worst=-0.05, best=0.3))
    assert "the difference lies between −5.0 and +30.0\u00a0pp, however they are counted" in undone["Accuracy"]
    firm = told(with_rows(small_study, worst=0.1, best=0.3))
    assert "could undo" not in " ".join(firm.values())


def test_the_largest_shift_is_held_against_the_floor_of_the_largest(small_study):
    per_layer = replace(small_study.tables, shifts=small_study.tables.shifts.assign(floor=0.0))
    assert told(per_layer)["Inside"] == told(small_study.tables)["Inside"]


def test_a_calibrated_model_is_not_called_miscalibrated_though_an_arm_passes_its_band(small_study):
    one = small_study.tables.metrics.copy()
    ece = one["metric"] == "ece"
    one.loc[ece, "value"] = one.loc[ece, "null_high"] - 0.001
    one.loc[one.index[ece & one["null_max"].notna()][0], "value"] += 0.002
    sentence = told(Tables(one))["Calibration"]
    assert sentence.startswith("No miscalibration of the latent label is resolved: 1 of 12 arms exceeds")
    assert "where .3 would by chance" in sentence
    one.loc[ece, "value"] = one.loc[ece, "null_max"] + 0.01
    assert "is miscalibrated in 12 of 12 arms" in told(Tables(one))["Calibration"]


def test_strata_are_called_opposed_where_the_column_says_so_and_nowhere_else(small_study):
    assert "differ in sign" in told(small_study.tables)["Accuracy"]
    assert any("pooled figures hide opposite effects" in line for line in warnings(small_study.tables))
    calm = with_rows(small_study, signs_differ=False)
    assert not any("differ in sign" in text for text in [*told(calm).values(), *warnings(calm)])


def test_where_labels_part_is_told_by_site_and_by_cause(small_study):
    sites = small_study.tables.sites.query("stratum == 'all' and site == 'prompt_end'")
    sentence = told(small_study.tables)["Where labels part"]
    low, high = (f"{value:.2f}".removeprefix("0") for value in (sites["value"].min(), sites["value"].max()))
    assert f"at the end of the prompt between {low} (" in sentence
    assert f") and {high} (" in sentence
    causes = small_study.tables.causes.query("stratum == 'all'")
    assert f"Of {causes.groupby('persona')['n_disagree'].first().sum()} cells whose labels disagree" in sentence


def test_warnings_name_weak_latent_labels_and_personas_that_are_rarely_parsed(hostile_study, small_study):
    lines = warnings(hostile_study.tables)
    weak = next(line for line in lines if "less than half of the probability" in line)
    assert "$x {2}$ 100%" in weak
    assert "no persona" not in weak
    silent = next(line for line in lines if "no label that could be parsed" in line)
    assert "$x {2}$ 100%" in silent
    assert not any("less than half" in line or "could be parsed" in line for line in warnings(small_study.tables))


def test_cells_outside_the_plan_are_warned_about_and_those_inside_are_not(small_study):
    assert not any("outside the organism's plan" in line for line in warnings(small_study.tables))
    metrics = small_study.tables.metrics.copy()
    metrics["n_planned"] = metrics["n_planned"].where(metrics["persona"] != "ed_nurse", 7)
    lines = warnings(replace(small_study.tables, metrics=metrics))
    assert any("ED nurse 233 of 240" in line for line in lines if "outside the organism's plan" in line)


def test_cautions_count_every_test_and_every_unparsed_answer(hostile_study, small_study, floor):
    compared, omnibus = small_study.tables.comparisons, small_study.tables.omnibus
    tests = int(compared["p"].notna().sum() + omnibus["p"].notna().sum())
    assert f"{tests} tests were made" in " ".join(cautions(small_study.tables))
    assert f"{tests + 2} tests were made" in " ".join(cautions(replace(small_study.tables, floor=floor)))
    assert "$x {2}$ 100% 24 of 24" in " ".join(cautions(hostile_study.tables))


def test_rotated_letters_that_are_not_used_equally_are_warned_about(small_study):
    row = {"labels": "latent", "persona": "ed_nurse", "stratum": "all", "letter": "A", "share": 0.5, "p": 0.001}
    biased = replace(small_study.tables, positions=pd.DataFrame([row]))
    assert any("ED nurse, latent" in line for line in warnings(biased))
    fair = replace(small_study.tables, positions=pd.DataFrame([row | {"p": 0.5}]))
    assert not any("Letters are preferred" in line for line in warnings(fair))


def test_where_everything_is_undefined_nothing_is_claimed(small_study):
    metrics = small_study.tables.metrics.assign(value=np.nan, low=np.nan, high=np.nan, planned=np.nan)
    nothing = {"difference": np.nan, "low": np.nan, "high": np.nan, "p": np.nan, "p_holm": np.nan}
    compared = small_study.tables.comparisons.assign(**nothing, signs_differ=False)
    sentences = told(Tables(metrics, compared))
    assert set(sentences) == {"Accuracy", "Consistency", "Risk"}
    assert all("could be tested" in text for text in sentences.values())


def test_a_table_without_answers_says_what_is_absent():
    table = synthetic_table(12)
    table = table.drop(columns=["y_gen", "status", *(name for name in table if name.startswith("stated"))])
    table.attrs = {"options": ["A", "B", "C"], "high_risk": "C"}
    from probe.behaviour import metrics

    found = Tables(metrics(table))
    assert any("y_gen" in line for line in cautions(found))
    assert not any("parsed" in line for line in warnings(found))
