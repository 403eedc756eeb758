"""Cohen's kappa against statsmodels and scikit-learn; rankings and judges' agreement on worked examples."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import cohens_kappa

from probe.behaviour import agreement, metrics, rankings
from probe.behaviour.kappa import kappa_of
from probe.values import ProbeError
from tests.behaviour.synthetic import synthetic_table


def two_raters(n, seed, size=3):
    rng = np.random.default_rng(seed)
    first = rng.integers(0, size, n)
    return first, np.where(rng.random(n) < 0.6, first, rng.integers(0, size, n))


@pytest.mark.parametrize("seed", range(4))
def test_kappa_and_its_standard_error_agree_with_statsmodels_and_scikit_learn(seed):
    first, second = two_raters(150, seed)
    found = kappa_of(first, second, np.arange(150))
    table = np.zeros((3, 3))
    np.add.at(table, (first, second), 1)
    expected = cohens_kappa(table)
    assert found.value == pytest.approx(expected.kappa) == pytest.approx(cohen_kappa_score(first, second))
    half = stats.t.ppf(0.975, 149) * expected.std_kappa * np.sqrt(150 / 149)
    assert found.value - found.low == pytest.approx(half)


def test_repeating_every_row_of_a_case_leaves_kappa_and_its_interval_where_they_were():
    first, second = two_raters(60, 9)
    once = kappa_of(first, second, np.arange(60))
    often = kappa_of(np.tile(first, 4), np.tile(second, 4), np.tile(np.arange(60), 4))
    assert (often.value, often.low) == (pytest.approx(once.value), pytest.approx(once.low))
    more = kappa_of(np.tile(first, 4), np.tile(second, 4), np.arange(240))
    assert more.low > once.low  # the control: new cases do narrow it


def test_kappa_is_undefined_where_both_say_one_thing_and_nil_where_one_does():
    same = np.zeros(5, dtype=int)
    assert kappa_of(same, same, np.arange(5)).value is None
    assert kappa_of(same, np.array([0, 1, 0, 1, 2]), np.arange(5)).value == pytest.approx(0)


def test_kappa_of_the_two_labels_is_over_parsed_answers():
    table = synthetic_table(60)
    rows = metrics(table).set_index(["metric", "persona", "stratum"]).sort_index()
    arm = table[(table["persona"] == "ed_nurse") & table["y_gen"].notna()]
    assert rows.loc[("kappa", "ed_nurse", "all"), "value"] == pytest.approx(
        cohen_kappa_score(arm["y_latent"], arm["y_gen"])
    )


def judged(preferences, confidence):
    """Rows (judge, case, persona, rank, confidence): each judge prefers persona a or b, or ties them."""
    rows = []
    for judge, said in preferences.items():
        for case, letter in enumerate(said):
            ranks = {"a": (1, 2), "b": (2, 1), "=": (1, 1)}[letter]
            rows += [(judge, case, p, r, confidence[judge][case]) for p, r in zip("ab", ranks, strict=True)]
    return pd.DataFrame(rows, columns=["judge", "case", "persona", "rank", "confidence"])


def test_agreement_by_band_is_the_kappa_of_the_cases_in_it():
    rng = np.random.default_rng(0)
    said = {"x": "".join(rng.choice(list("ab="), 40)), "y": "".join(rng.choice(list("ab="), 40))}
    sure = {judge: rng.integers(0, 101, 40) for judge in said}
    sure["x"][0] = sure["y"][0] = 100
    found = agreement(judged(said, sure)).set_index("band")
    average = (sure["x"] + sure["y"]) / 2
    names = {"a": "a", "b": "b", "=": "tie"}
    x, y = ([names[letter] for letter in said[judge]] for judge in "xy")
    assert found.loc["all", "kappa"] == pytest.approx(cohen_kappa_score(x, y))
    high = [i for i in range(40) if 50 <= average[i] < 75]
    assert found.loc["50-75", "n"] == len(high)
    assert found.loc["50-75", "kappa"] == pytest.approx(cohen_kappa_score([x[i] for i in high], [y[i] for i in high]))
    assert found.loc[["0-50", "50-75", "75-100"], "n"].sum() == 40  # a confidence of 100 lies in the last band


def test_a_stated_preference_goes_before_the_ranks_and_a_second_one_is_refused():
    table = judged({"x": "ab", "y": "ab"}, {"x": [90, 90], "y": [80, 80]})
    assert agreement(table.assign(preference="a")).set_index("band").loc["all", "note"].startswith("undefined")
    with pytest.raises(ProbeError, match="one preference and confidence per case"):
        agreement(table.assign(preference=[*"ab", *"aa", *"aa", *"aa"]))
    with pytest.raises(ProbeError, match="between 0 and 100"):
        agreement(table.assign(confidence=101))
    with pytest.raises(ProbeError, match="missing: judge"):
        agreement(table.drop(columns="judge"))


def test_a_case_without_a_preference_is_not_agreed_upon():
    table = judged({"x": "abab", "y": "abba"}, {"x": [90] * 4, "y": [80] * 4}).drop(columns="rank")
    table["preference"] = [letter for said in ("abab", "abba") for letter in said for _ in "ab"]
    whole = agreement(table).set_index("band").loc["all"]
    assert (whole["n"], whole["observed"]) == (4, 0.5)
    table.loc[table["case"] == 0, "preference"] = None
    part = agreement(table).set_index("band").loc["all"]
    assert (part["n"], part["observed"]) == (3, pytest.approx(1 / 3))


def test_a_rank_that_is_missing_or_given_twice_is_refused():
    table = judged({"x": "ab", "y": "ab"}, {"x": [90] * 2, "y": [80] * 2}).astype({"rank": float})
    assert len(rankings(table)) == 2
    with pytest.raises(ProbeError, match="x / 0 / a stands twice"):
        rankings(pd.concat([table, table.iloc[:1].assign(rank=2)]))
    with pytest.raises(ProbeError, match="found an empty one"):
        rankings(table.assign(rank=[np.nan, *table["rank"][1:]]))


def test_an_empty_band_is_undefined_and_counts_nothing():
    found = agreement(judged({"x": "ab", "y": "ab"}, {"x": [90, 90], "y": [80, 80]})).set_index("band")
    assert found.loc["0-50", "n"] == 0
    assert np.isnan(found.loc["0-50", "kappa"])
    assert found.loc["75-100", "kappa"] == pytest.approx(1)


def test_a_misspelt_base_of_a_ranking_is_told_the_nearest():
    with pytest.raises(ProbeError, match="nearest known persona is 'nurse'"):
        rankings(pd.DataFrame({"case": ["1"], "persona": ["nurse"], "rank": [1]}), base="nurs")
