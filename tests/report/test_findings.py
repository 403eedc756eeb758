"""Sentences: they follow from the numbers, say what they must not hide, and claim nothing where nothing is."""

from dataclasses import replace

import numpy as np
import pandas as pd

from probe.behaviour.variance import RUN_SHARE
from probe.report import Tables, cautions, findings, warnings
from probe.report.risk import risk_numbers
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


def test_what_was_decided_beforehand_is_not_told_again_as_exploratory(small_study, floor):
    compared = small_study.tables.comparisons
    one = (compared["metric"] == "accuracy") & (compared["persona"] == "ed_physician")
    one &= compared["stratum"] == "emergency"
    changes = {"family": np.where(one, "confirmatory", compared["family"])}
    changes["test"] = np.where(one, "McNemar, one-sided: greater", compared["test"])
    decided, *others = findings(replace(with_rows(small_study, **changes), floor=floor))
    (sentence,) = decided.sentences
    assert "beyond the noise floor (+20.0" in sentence
    assert "The test is one-sided (greater)." in sentence
    accuracy = next(other for other in others if other.topic == "Accuracy")
    assert "rises by" not in next(line for line in accuracy.sentences if line.startswith("ED physician"))
    assert "one-sided" not in " ".join(line for other in others for line in other.sentences)


def test_a_planned_contrast_without_cells_is_told(small_study):
    compared = small_study.tables.comparisons.copy()
    one = (compared["metric"] == "accuracy") & (compared["persona"] == "ed_nurse") & (compared["stratum"] == "all")
    compared["family"] = np.where(one, "confirmatory", compared["family"])
    compared.attrs["waiting"] = [{"persona": "herbalist", "base": "none", "metric": "accuracy", "stratum": "all"}]
    assert findings(Tables(small_study.tables.metrics, compared))[0].sentences[1] == (
        "herbalist against no persona: accuracy over all cases could not be tested: the run holds no cell of it."
    )
    compared["family"] = ""
    (alone,) = findings(Tables(small_study.tables.metrics, compared))[0].sentences
    assert alone.startswith("herbalist")


def test_what_is_beyond_the_floor_but_unresolved_against_the_base_is_told_apart(small_study, floor):
    none = replace(with_rows(small_study, p_holm=1.0), floor=floor)
    sentences = told(none)
    assert "though unresolved against no persona: ED physician +20.0\u00a0pp in emergency (p" in sentences["Accuracy"]
    assert "ED nurse +2.0" not in sentences["Accuracy"]  # within the floor
    assert "Beyond the noise floor" not in sentences["Risk"]
    resolved = told(replace(with_rows(small_study, p_holm=0.001), floor=floor))
    assert "though unresolved" not in resolved["Accuracy"]


def test_the_comparison_with_the_control_wordings_has_its_own_sentence(small_study):
    compared = small_study.tables.comparisons
    both = pd.concat([compared, compared.assign(base="controls", p_holm=1.0)], ignore_index=True)
    sentence = "From the mean of the control wordings, paired by case, accuracy has no change that is resolved"
    assert sentence in told(replace(small_study.tables, comparisons=both))["Accuracy"]
    both = pd.concat([compared, compared.assign(base="controls")], ignore_index=True)
    assert (
        "has changes that are resolved: ED physician" in told(replace(small_study.tables, comparisons=both))["Accuracy"]
    )
    assert "control wordings" not in told(small_study.tables)["Accuracy"]


def test_pairs_that_repeat_a_case_are_told_with_their_cases(small_study):
    repeated = told(with_rows(small_study, n=600, cases=120.0))["Accuracy"]
    assert "(600 pairs of 120 cases, " in repeated
    assert " cases, p" not in told(small_study.tables)["Accuracy"]


def test_the_test_of_all_personas_at_once_is_named_as_the_table_names_it(small_study):
    omnibus = small_study.tables.omnibus
    assert "Cochran's Q, df 5" in told(small_study.tables)["Accuracy"]
    clustered = omnibus.assign(test="Hotelling's T^2 of case means")
    sentence = told(replace(small_study.tables, omnibus=clustered))["Accuracy"]
    assert "T²\u00a0=" in sentence
    assert "Cochran" not in sentence
    lost = omnibus.assign(p=np.nan, p_holm=np.nan, note="undefined: too few cases")
    sentence = told(replace(small_study.tables, omnibus=lost))["Accuracy"]
    assert "could not be tested over all cases, in emergency and in primary care: too few cases." in sentence


def test_a_plan_of_some_cells_is_not_held_against_what_was_measured_on_all(small_study):
    assert "Against the plan" in told(small_study.tables)
    part = small_study.tables.metrics.assign(n_planned=3)
    assert "Against the plan" not in told(replace(small_study.tables, metrics=part))
    assert risk_numbers(small_study.tables.metrics)["planned"].notna().all()
    assert risk_numbers(part)["planned"].isna().all()


def test_whether_output_varies_as_much_over_runs_as_over_personas_is_told():
    shared = {"metric": "accuracy", "stratum": "all", "low": 0.3, "high": 0.5, "levels": 2, "note": ""}
    rows = [("persona", 0.02, 0.2), ("seed", 0.08, 0.8), (RUN_SHARE, 0.4, np.nan)]
    table = pd.DataFrame(rows, columns=["component", "variance", "share"]).assign(**shared)
    metrics = tables_of(synthetic_table(12)).metrics
    sentence = told(Tables(metrics, variance=table))["What answers vary with"]
    assert "Of the variance of accuracy over all cells: .20 persona and .80 seed." in sentence
    assert "Asking the same case again makes up .40 [.30, .50]" in sentence
    one_seed = table.assign(variance=table["variance"].where(table["component"] != RUN_SHARE))
    assert "Asking the same case" not in told(Tables(metrics, variance=one_seed))["What answers vary with"]


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


def test_tests_of_letter_positions_are_counted_once_for_all_letters(small_study):
    row = {"labels": "latent", "persona": "ed_nurse", "stratum": "all", "share": 0.5, "p": 0.5}
    positions = pd.DataFrame([row | {"letter": letter} for letter in "ABC"])
    lines = " ".join(cautions(replace(small_study.tables, positions=positions)))
    assert "1 of letter positions" in lines
    assert "but those of letter positions" in lines
    assert "letter positions" not in " ".join(cautions(small_study.tables))


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
