"""What was decided beforehand is a family of its own; corrections, bounds and detectable differences."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from probe.behaviour import Confirm, benjamini_hochberg, compare
from probe.behaviour.intervals import mean
from probe.behaviour.power import detectable_mean
from probe.values import ProbeError
from tests.behaviour.synthetic import synthetic_table

KEY = ["metric", "persona", "base", "stratum"]


@pytest.fixture(scope="module")
def table():
    return synthetic_table(100, unparsed=0.1)


def by_key(*arguments, **options):
    return compare(*arguments, **options).set_index(KEY).sort_index()


def test_benjamini_hochberg_agrees_with_statsmodels():
    p = [0.04, 0.001, 0.03, 0.001, 0.9, 1.0, 0.2]
    assert benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1])
    assert benjamini_hochberg([]) == []


def test_each_family_is_corrected_on_its_own(table):
    beforehand = [
        {"persona": "ed_nurse", "metric": "accuracy"},
        Confirm("ed_physician", "refusal_rate", "none", "emergency"),
    ]
    plain, found = by_key(table), by_key(table, confirm=beforehand)
    assert (plain["family"].isin(["exploratory", ""])).all()
    decided = found[found["family"] == "confirmatory"]
    assert set(decided.index) == {
        ("accuracy", "ed_nurse", "none", "all"),
        ("refusal_rate", "ed_physician", "none", "emergency"),
    }
    for name in ("confirmatory", "exploratory"):
        part = found[found["family"] == name]
        assert part["p_holm"].to_numpy() == pytest.approx(multipletests(part["p"], method="holm")[1])
        assert part["p_bh"].to_numpy() == pytest.approx(multipletests(part["p"], method="fdr_bh")[1])
    assert (found["family"] == "exploratory").sum() == (plain["family"] == "exploratory").sum() - 1
    pd.testing.assert_series_equal(found["difference"], plain["difference"])


def test_a_planned_contrast_that_cannot_be_tested_is_still_told_and_counts_for_none(table):
    first = table[table["stratum"] == "emergency"]["case"].iloc[0]
    one_case = table[(table["stratum"] != "emergency") | (table["case"] == first)]
    one_case.attrs = table.attrs
    planned = [
        {"persona": "ed_nurse", "metric": "brier", "stratum": stratum, "direction": "less"}
        for stratum in ("emergency", "primary_care")
    ]
    found = by_key(one_case, confirm=planned)
    decided = found[found["family"] == "confirmatory"].droplevel(["metric", "persona", "base"])
    assert set(decided.index) == {"emergency", "primary_care"}
    assert decided.loc["emergency", ["p", "p_holm"]].isna().all()
    assert "one case" in decided.loc["emergency", "note"]
    assert decided.loc["primary_care", "p_holm"] == decided.loc["primary_care", "p"]


def test_a_direction_makes_the_test_one_sided():
    table = synthetic_table(60, personas={"none": (0, 0, 0), "cautious_ed_physician": (0.3, 0.3, 0)})
    want = {"persona": "cautious_ed_physician", "metric": "expected_urgency_latent"}
    p = {d: by_key(table, confirm=[{**want, "direction": d}]) for d in ("either", "greater", "less")}
    rows = {d: found[found["family"] == "confirmatory"].iloc[0] for d, found in p.items()}
    assert rows["greater"]["p"] == pytest.approx(rows["either"]["p"] / 2)
    assert rows["less"]["p"] == pytest.approx(1 - rows["either"]["p"] / 2)
    assert rows["less"]["test"].endswith("one-sided: less")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"persona": "ed_nurs", "metric": "accuracy"}, "nearest known persona is 'ed_nurse'"),
        ({"persona": "ed_nurse", "metric": "acuracy"}, "nearest known metric is 'accuracy'"),
        ({"persona": "ed_nurse", "metric": "ece"}, "metric 'ece' of a contrast to confirm is not compared"),
        ({"persona": "ed_nurse", "metric": "accuracy", "base": "ed_physician"}, "base 'ed_physician' of a contrast"),
        ({"persona": "ed_nurse", "metric": "accuracy", "stratum": "emergncy"}, "stratum is 'emergency'"),
        ({"persona": "ed_nurse", "metric": "accuracy", "direction": "up"}, "'up' is no direction"),
        ({"persona": "ed_nurse", "measure": "accuracy"}, "has no 'measure'"),
        ({"persona": "ed_nurse"}, r"lacks \['metric'\]"),
    ],
)
def test_an_unknown_name_in_a_contrast_is_refused_with_the_nearest(table, entry, said):
    with pytest.raises(ProbeError, match=said):
        compare(table, confirm=[entry])


def test_a_contrast_given_twice_is_refused(table):
    with pytest.raises(ProbeError, match="there twice"):
        compare(table, confirm=[{"persona": "ed_nurse", "metric": "accuracy"}] * 2)


def test_two_bases_stand_side_by_side_as_they_do_alone(table):
    three = table[table["persona"].isin(["none", "ed_nurse", "bold_ed_physician"])]
    three.attrs = table.attrs
    both, alone = by_key(three, ["none", "ed_nurse"]), by_key(three, "ed_nurse")
    part = both[both.index.get_level_values("base") == "ed_nurse"]
    pd.testing.assert_series_equal(part["difference"], alone["difference"])
    pd.testing.assert_series_equal(part["p"], alone["p"])
    assert (part["p_holm"].dropna() >= alone["p_holm"].dropna() - 1e-12).all()


def test_bounds_are_what_any_reading_of_the_unparsed_answers_could_give(table):
    found = by_key(table)
    two = table[table["persona"].isin(["none", "ed_nurse"])]
    extremes = []
    for ours, theirs in ((False, True), (True, False)):
        right = np.where(
            two["y_gen"].isna(), np.where(two["persona"] == "ed_nurse", ours, theirs), two["y_gen"] == two["target"]
        )
        shares = pd.Series(right.astype(float)).groupby(two["persona"].to_numpy()).mean()
        extremes.append(shares["ed_nurse"] - shares["none"])
    row = found.loc[("accuracy", "ed_nurse", "none", "all")]
    assert (row["worst"], row["best"]) == pytest.approx(tuple(extremes))
    assert row["worst"] < row["difference"] < row["best"]
    clean = by_key(synthetic_table(30, unparsed=0)).loc[("accuracy", "ed_nurse", "none", "all")]
    assert clean["worst"] == clean["difference"] == clean["best"]


def test_the_detectable_mean_is_that_of_statsmodels_power():
    x = np.random.default_rng(0).normal(0.1, 0.4, 200)
    found = detectable_mean(mean(x, np.arange(200)))
    expected = TTestPower().solve_power(nobs=200, alpha=0.05, power=0.8) * x.std(ddof=1)
    assert found == pytest.approx(expected, rel=0.01)
    assert detectable_mean(mean(np.zeros(9), np.arange(9))) is None


def test_a_difference_of_the_detectable_size_is_found_four_times_in_five():
    rng = np.random.default_rng(1)
    size = detectable_mean(mean(rng.normal(0, 0.4, 200), np.arange(200)))
    p = stats.ttest_1samp(rng.normal(size, 0.4, (2000, 200)), 0, axis=1).pvalue
    assert 0.7 < np.mean(p < 0.05) < 0.9
