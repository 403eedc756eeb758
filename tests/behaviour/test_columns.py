"""Columns under other names: mapped, refused with the nearest, and never mixed up."""

import numpy as np
import pandas as pd
import pytest

from probe.behaviour import metrics, rename_columns
from probe.values import ProbeError
from tests.behaviour.synthetic import synthetic_table


def test_a_table_under_other_names_gives_the_same_metrics():
    table = synthetic_table(10)
    theirs = table.rename(columns={"case": "question_id", "y_gen": "prediction", "logp_A": "lp_A"})
    mapped = rename_columns(theirs, {"case": "question_id", "y_gen": "prediction", "logp_A": "lp_A"})
    assert mapped.attrs == table.attrs
    pd.testing.assert_frame_equal(metrics(mapped), metrics(table))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"cse": "case"}, "'cse' is no column of a table of cells. The nearest known column is 'case'"),
        ({"y_gen": "predicton"}, "no column 'predicton' to read as y_gen. The nearest known column is 'prediction'"),
        ({"target": "prediction"}, "has a column 'target' beside 'prediction'"),
        ({"y_gen": "prediction", "y_latent": "prediction"}, "can be read as one thing only"),
    ],
)
def test_a_wrong_mapping_is_refused_in_one_sentence_and_a_right_one_is_not(names, said):
    table = pd.DataFrame({"case": [1], "persona": ["none"], "target": ["A"], "prediction": ["A"]})
    assert "y_gen" in rename_columns(table, {"y_gen": "prediction"})
    with pytest.raises(ProbeError) as refused:
        rename_columns(table, names)
    assert said in str(refused.value)


def test_two_columns_may_swap_their_names():
    table = pd.DataFrame({"y_gen": ["A"], "y_latent": ["B"]})
    swapped = rename_columns(table, {"y_gen": "y_latent", "y_latent": "y_gen"})
    assert (swapped["y_gen"].item(), swapped["y_latent"].item()) == ("B", "A")


def test_probabilities_in_the_place_of_their_logarithms_are_refused():
    table = synthetic_table(10)
    names = [name for name in table if name.startswith("logp_")]
    chances = table.assign(**{name: np.exp(table[name]) for name in names})
    chances.attrs = table.attrs
    with pytest.raises(ProbeError, match=r"found numbers from 0 to 1 .* which are probabilities"):
        metrics(chances)
    shifted = table.assign(**{name: table[name] + 7 for name in names})  # the control: logits before normalisation
    shifted.attrs = table.attrs
    pd.testing.assert_frame_equal(metrics(shifted), metrics(table))
