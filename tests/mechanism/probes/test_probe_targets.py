"""Targets say what the outcomes say, and are undefined where those are."""

from __future__ import annotations

import pandas as pd
import pytest

from probe.behaviour import read_outcomes
from probe.mechanism.probes.targets import targets_of
from probe.values import ProbeError

TABLE = pd.DataFrame(
    {
        "case": ["a", "b", "c", "a", "b", "c"],
        "persona": ["x"] * 3 + ["y"] * 3,
        "target": ["A", "C", "B"] * 2,
        "y_latent": ["A", "C", "C", "B", "C", None],
        "y_gen": ["A", "B", "C", "A", None, "B"],
    }
)


def outcomes(table=TABLE):
    return read_outcomes(table, options=("A", "B", "C"))


def test_every_target_is_that_of_the_outcomes_row_by_row():
    found = targets_of(outcomes())
    codes = {name: target.codes.tolist() for name, target in found.items()}
    assert codes["persona"] == [0, 0, 0, 1, 1, 1] and found["persona"].null == "within case"
    assert codes["reference"] == [0, 2, 1, 0, 2, 1] and codes["urgent"] == [0, 1, 0, 0, 1, 0]
    assert codes["latent"] == [0, 2, 2, 1, 2, -1] and codes["stated"] == [0, 1, 2, 0, -1, 1]
    assert codes["disagreement"] == [0, 1, 0, 1, -1, -1]
    assert codes["correct"] == [1, 0, 0, 1, -1, 1]
    assert codes["risk_error"] == [0, 2, 1, 0, -1, 0]  # under, then over


def test_unknown_targets_and_targets_of_one_class_are_refused_and_left_out_unasked():
    with pytest.raises(ProbeError, match="'disagreement'"):
        targets_of(outcomes(), ["disagrement"])
    agreeing = TABLE.assign(y_gen=TABLE["y_latent"])
    assert "disagreement" not in targets_of(outcomes(agreeing))
    with pytest.raises(ProbeError, match="two classes, and of 'disagreement' the 6 cells have only 'agree'"):
        targets_of(outcomes(agreeing), ["disagreement"])


def test_without_a_known_order_what_needs_the_high_risk_option_is_refused():
    plain = read_outcomes(TABLE)
    assert not {"urgent", "risk_error"} & set(targets_of(plain))
    with pytest.raises(ProbeError, match="'risk_error' is undefined"):
        targets_of(plain, ["risk_error"])
