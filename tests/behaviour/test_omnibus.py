"""Cochran's Q and Hotelling's T^2 against second implementations and a worked example."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.multivariate.manova import MANOVA
from statsmodels.stats.contingency_tables import cochrans_q, mcnemar

from probe.behaviour import cochran
from probe.behaviour.omnibus import omnibus
from tests.behaviour.synthetic import synthetic_table


def test_q_of_a_worked_example_and_of_statsmodels():
    # Three raters, columns 6, 4, 1 of 8; row sums 3,2,2,2,1,1,0,0: Q = 2 (3 x 53 - 121) / (3 x 11 - 23) = 7.6
    x = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], float)
    found = omnibus(x, binary=True)
    assert found["Q"] == pytest.approx(7.6)
    assert found["Q"] == pytest.approx(cochrans_q(x).statistic)


def test_q_of_two_personas_is_mcnemar_without_correction():
    x = (np.random.default_rng(0).random((120, 2)) < [0.4, 0.6]).astype(float)
    b, c = int(((x[:, 0] == 1) & (x[:, 1] == 0)).sum()), int(((x[:, 0] == 0) & (x[:, 1] == 1)).sum())
    expected = mcnemar([[50, b], [c, 50]], exact=False, correction=False)
    assert omnibus(x, binary=True)["p"] == pytest.approx(expected.pvalue)


def test_hotelling_of_two_means_is_the_paired_t_test_and_of_four_that_of_statsmodels():
    x = np.random.default_rng(1).normal(size=(40, 4)) + np.array([0, 0.2, 0.4, 0.1])
    assert omnibus(x[:, :2], binary=False)["p"] == pytest.approx(stats.ttest_rel(x[:, 1], x[:, 0]).pvalue)
    shifts = x[:, 1:] - x[:, :1]
    table = MANOVA(shifts, np.ones((40, 1))).mv_test().results["x0"]["stat"]
    assert omnibus(x, binary=False)["p"] == pytest.approx(float(table.loc["Hotelling-Lawley trace", "Pr > F"]))


def test_where_personas_never_differ_p_is_one_and_too_few_cases_are_undefined():
    same = np.ones((6, 3))
    assert omnibus(same, binary=True)["p"] == 1.0
    assert "no case on which" in omnibus(same, binary=True)["note"]
    few = omnibus(np.random.default_rng(2).normal(size=(3, 4)), binary=False)
    assert "p" not in few
    assert few["note"].startswith("undefined")
    assert omnibus(np.empty((0, 3)), binary=True)["note"].startswith("undefined")
    assert omnibus(np.array([[0.2, 0.5, 0.7]]), binary=False)["note"].startswith("undefined")


def test_means_that_differ_by_rounding_alone_do_not_differ():
    noise = np.random.default_rng(3).normal(size=(40, 3))
    nothing, little = (omnibus(1 / 3 + size * noise, binary=False) for size in (1e-16, 1e-6))
    assert nothing["p"] == 1.0
    assert little["p"] < 1.0


def test_the_table_has_a_planted_difference_loses_it_when_shuffled_and_skips_cases_that_a_persona_lacks():
    table = synthetic_table(60)
    part = table[~((table["persona"] == "ed_nurse") & (table["case"] == "emergency-003"))]
    part.attrs = table.attrs
    found = cochran(part).set_index(["metric", "stratum"])
    assert found.loc[("accuracy", "emergency"), "n"] == 59
    assert found.loc[("accuracy", "emergency"), "p_holm"] < 0.01
    assert set(found["test"]) == {"Cochran's Q"}
    rng = np.random.default_rng(3)
    shuffled = table.assign(persona=table.groupby("case")["persona"].transform(lambda names: rng.permutation(names)))
    shuffled.attrs = table.attrs
    assert (cochran(shuffled)["p_holm"] > 0.05).all()


def test_several_wordings_are_no_new_cases():
    table = synthetic_table(40).assign(wording=0)
    both = pd.concat([table, table.assign(wording=1, condition="system/wording=1")], ignore_index=True)
    both.attrs = table.attrs
    once, twice = cochran(table).set_index(["metric", "stratum"]), cochran(both).set_index(["metric", "stratum"])
    assert set(twice["test"]) == {"Hotelling's T^2 of case means"}
    assert twice.loc[("accuracy", "all"), "n"] == once.loc[("accuracy", "all"), "n"] == 80
