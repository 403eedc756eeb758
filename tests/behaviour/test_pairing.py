"""Which rows pair: never across a rotation, never only some of a persona's wordings."""

import numpy as np
import pandas as pd
import pytest

from probe.behaviour import compare, pair_keys, pair_rows
from probe.behaviour.pairing import pair_columns

CASES = 30


def store_rows(persona, wordings, rotations, right, cases=CASES):
    """Rows as a store's table has them; ``right(wording, rotation)`` says whether the stated label is the target."""
    return [
        {
            "case": f"case-{c}",
            "persona": persona,
            "target": "B",
            "y_latent": "B",
            "status": "parsed",
            "wording": w,
            "instruction": 0,
            "rotation": r,
            "placement": "system",
            "prefix": "",
            "seed": 0,
            "condition": f"system/wording={w}/rotation={r}",
            "y_gen": "B" if right(w, r) else "A",
        }
        for c in range(cases)
        for r in rotations
        for w in wordings
    ]


def accuracy(rows):
    table = pd.DataFrame(rows)
    table.attrs = {"options": ["A", "B", "C"]}
    return compare(table).set_index("metric").loc["accuracy"]


def test_every_wording_of_a_persona_counts_beside_the_one_wording_of_the_base():
    base = store_rows("none", [0], [0, 1, 2], lambda w, r: True)
    row = accuracy(base + store_rows("nurse", [0, 1], [0, 1, 2], lambda w, r: w == 0))
    assert row["difference"] == -0.5
    assert (row["n"], row["note"]) == (6 * CASES, "")
    one = accuracy(base + store_rows("nurse", [0], [0, 1, 2], lambda w, r: w == 0))
    assert one["difference"] == 0


def test_a_partial_base_pairs_within_its_rotation_and_the_rest_is_counted():
    nurse = store_rows("nurse", [0], [0, 1, 2], lambda w, r: r == 0)
    row = accuracy(store_rows("none", [0], [0], lambda w, r: True) + nurse)
    assert (row["difference"], row["n"]) == (0, CASES)
    assert f"{2 * CASES} rows without a partner" in row["note"]
    whole = accuracy(store_rows("none", [0], [0, 1, 2], lambda w, r: True) + nurse)
    assert whole["difference"] == pytest.approx(-2 / 3)


def test_a_base_with_several_wordings_is_averaged_over_them():
    base = store_rows("none", [0, 1], [0], lambda w, r: w == 0)
    row = accuracy(base + store_rows("nurse", [0], [0], lambda w, r: True))
    assert (row["difference"], row["n"]) == (0.5, CASES)


def test_columns_that_do_not_say_all_of_the_condition_give_way_to_it():
    arm = pd.DataFrame(store_rows("nurse", [0, 1], [0, 1], lambda w, r: True))
    told = ["case", "instruction", "rotation", "placement", "prefix", "seed"]
    assert pair_columns(arm, arm) == told
    assert pair_columns(arm.drop(columns="rotation"), arm.drop(columns="rotation")) == ["case", "condition"]
    bare = arm[["case", "condition"]]
    assert pair_columns(bare, bare) == ["case", "condition"]
    assert pair_columns(bare, bare[bare["condition"] == "system/wording=0/rotation=0"]) == ["case"]
    assert pair_columns(bare[["case"]], bare[["case"]]) == ["case"]


def test_pairs_do_not_depend_on_the_order_of_rows_and_match_a_double_loop():
    rng = np.random.default_rng(0)
    ours = pd.DataFrame(store_rows("nurse", [0, 1], [0, 1], lambda w, r: True, 5)).sample(frac=0.8, random_state=1)
    theirs = pd.DataFrame(store_rows("none", [0], [0, 1], lambda w, r: True, 5)).sample(frac=0.7, random_state=2)
    ours, theirs = (arm.iloc[rng.permutation(len(arm))] for arm in (ours, theirs))
    expected = {
        (i, j)
        for i, (_, a) in enumerate(ours.iterrows())
        for j, (_, b) in enumerate(theirs.iterrows())
        if (a["case"], a["rotation"]) == (b["case"], b["rotation"])
    }
    left, right = pair_rows(ours, theirs)
    assert set(zip(left.tolist(), right.tolist(), strict=True)) == expected
    assert len(left) == len(expected)
    ours_key, theirs_key = pair_keys(ours, theirs)
    assert {i for i, _ in expected} == set(np.flatnonzero(ours_key >= 0).tolist())
    assert {j for _, j in expected} == set(np.flatnonzero(theirs_key >= 0).tolist())
