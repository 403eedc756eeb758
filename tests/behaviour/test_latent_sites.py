"""The latent label of another answer site gives the metrics of a table that has only that site."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probe import behaviour
from probe.stages import api
from probe.values import ProbeError
from tests.behaviour.synthetic import OPTIONS, synthetic_table

LATENT = ("accuracy_latent", "consistency_strict", "ece", "brier")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """At ``forced`` the labels' order is turned round, and every third row lacks the site."""
    found = synthetic_table(n=20)
    found = found[found["persona"].isin(["none", "ed_nurse"])].reset_index(drop=True)
    turned = {f"forced_logp_{a}": found[f"logp_{b}"] for a, b in zip(OPTIONS, reversed(OPTIONS), strict=True)}
    found = found.assign(**turned, forced_label_mass=0.5, entropy=1.0, margin=0.1)
    found.loc[::3, [*turned, "forced_label_mass"]] = np.nan
    return found


def test_metrics_at_a_site_are_those_of_a_table_with_that_site_alone(table: pd.DataFrame) -> None:
    alone = table.drop(columns=[name for name in table if name.startswith("planned_")])
    alone = alone.drop(columns=["entropy", "margin", "y_latent"]).assign(label_mass=table["forced_label_mass"])
    for option in OPTIONS:
        alone[f"logp_{option}"] = table[f"forced_logp_{option}"]
    at_site, expected = api.metrics(table, site="forced"), api.metrics(alone)
    shared = ["metric", "persona", "stratum", "value", "low", "high", "n"]
    pd.testing.assert_frame_equal(at_site[shared], expected[shared])
    plain = api.metrics(table)
    values = [found.set_index(["metric", "persona", "stratum"])["value"] for found in (at_site, plain)]
    for metric in LATENT:
        assert values[0][metric, "none", "all"] != values[1][metric, "none", "all"]
    assert values[0]["accuracy", "none", "all"] == values[1]["accuracy", "none", "all"]  # of the stated label


def test_the_table_itself_is_that_of_the_prompts_end(table: pd.DataFrame) -> None:
    assert behaviour.latent_at(table, "prompt_end") is table
    assert behaviour.latent_at(table, "answer")["logp_A"].equals(table["stated_logp_A"].rename("logp_A"))


def test_a_site_that_was_not_read_is_refused_with_those_that_were(table: pd.DataFrame) -> None:
    with pytest.raises(ProbeError, match=r"no label reads at the site 'forcd'.*'forced'"):
        api.metrics(table, site="forcd")
