"""Rows of given texts say nothing of how a model answers: no metric is made of them."""

from __future__ import annotations

import pandas as pd
import pytest

from probe import behaviour
from probe.stages import api
from probe.values import ProbeError
from tests.behaviour.synthetic import synthetic_table


@pytest.fixture(scope="module")
def own() -> pd.DataFrame:
    table = synthetic_table(n=15)
    return table[table["persona"].isin(["none", "ed_nurse"])].reset_index(drop=True).assign(given="")


@pytest.fixture(scope="module")
def crossed(own: pd.DataFrame) -> pd.DataFrame:
    """The same cells, and each case again with a given answer that is always right."""
    given = own.assign(given="expert", condition="system/given=expert", y_gen=own["target"], status="parsed")
    both = pd.concat([own, given], ignore_index=True)
    both.attrs = dict(own.attrs)
    return both


def test_metrics_and_comparisons_are_those_of_the_generated_rows(own: pd.DataFrame, crossed: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(api.metrics(crossed), api.metrics(own))
    pd.testing.assert_frame_equal(api.compare(crossed, "none"), api.compare(own, "none"))
    pd.testing.assert_frame_equal(api.causes(crossed), api.causes(own))
    every = vars(api.tables(crossed))
    for name, table in vars(api.tables(own)).items():
        pd.testing.assert_frame_equal(every[name], table)


def test_the_given_rows_would_have_changed_them(own: pd.DataFrame, crossed: pd.DataFrame) -> None:
    """The control: under other names the same rows count."""
    counted = crossed.assign(given="", seed=(crossed["given"] != "").astype(int))
    one, other = (
        table.set_index(["metric", "persona", "stratum"])["value"] for table in (api.metrics(own), api.metrics(counted))
    )
    assert other["accuracy", "none", "all"] > one["accuracy", "none", "all"] + 0.02


def test_a_table_of_given_rows_alone_is_refused_and_so_is_one_that_was_not_parted(crossed: pd.DataFrame) -> None:
    with pytest.raises(ProbeError, match="all 60 cells are reads of given texts"):
        api.metrics(crossed[crossed["given"] != ""])
    with pytest.raises(ProbeError, match=r"60 rows hold given texts .* behaviour\.generated\(table\)"):
        behaviour.metrics(crossed)
    kept = behaviour.generated(crossed)
    assert (len(kept), kept.attrs["options"]) == (60, crossed.attrs["options"])
    assert behaviour.generated(kept) is kept
