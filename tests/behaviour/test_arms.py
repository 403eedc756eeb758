"""Rows under interventions are arms beside the personas, never pooled with them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probe import behaviour
from probe.values import ProbeError

OPTIONS = ("home", "clinic", "hospital")


def table() -> pd.DataFrame:
    """Four cases: ``none`` answers home, steered it answers hospital, and the nurse clinic."""
    arms = (("none", "", "home"), ("none", "push", "hospital"), ("nurse", "", "clinic"))
    rows = [
        {
            "case": f"c{i}",
            "family": f"c{i}",
            "persona": persona,
            "role": "control" if persona == "none" else "nurse",
            "style": "plain",
            "stratum": "s",
            "target": OPTIONS[i % 3],
            "intervention": name,
            "condition": "system" + (f"/intervention={name}" if name else ""),
            "wording": 0,
            "y_gen": label,
            "y_latent": label,
            "status": "parsed",
        }
        for persona, name, label in arms
        for i in range(4)
    ]
    return pd.DataFrame(rows)


def test_an_arm_is_counted_by_itself_and_compared_with_the_same_cases_of_the_base() -> None:
    told = behaviour.arms(table())
    assert list(dict.fromkeys(told["persona"])) == ["none", "none + push", "nurse"]
    measured = behaviour.metrics(told, options=OPTIONS, high_risk="hospital")
    rates = measured[(measured["metric"] == "risk_propensity") & (measured["stratum"] == "all")]
    assert dict(zip(rates["persona"], rates["value"], strict=True)) == {"none": 0.0, "none + push": 1.0, "nurse": 0.0}
    compared = behaviour.compare(told, "none", options=OPTIONS, high_risk="hospital")
    pushed = compared[(compared["persona"] == "none + push") & (compared["metric"] == "risk_propensity")]
    assert set(pushed["n"]) == {4}
    assert set(pushed["difference"]) == {1.0}


def test_an_arm_of_a_control_is_no_control_and_the_table_that_came_is_as_it_was() -> None:
    came = table()
    told = behaviour.arms(came)
    assert behaviour.control_personas(told) == behaviour.control_personas(came) == ("none",)
    assert set(told.loc[told["persona"] == "none + push", "role"]) == {behaviour.INTERVENED}
    assert "push" in set(came["intervention"])
    plain = came[came["intervention"] == ""]
    assert behaviour.arms(plain) is plain


def test_several_interventions_of_one_persona_are_not_pooled() -> None:
    with pytest.raises(ProbeError, match=r"rows of 'none' under 2 interventions.*behaviour.arms\(table\)"):
        behaviour.metrics(table(), options=OPTIONS, high_risk="hospital")
    one = table()[np.array(table()["intervention"] == "push")]
    assert len(behaviour.metrics(one, options=OPTIONS, high_risk="hospital"))
