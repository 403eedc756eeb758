"""Position bias: a planted letter is found, a choice of options under any rotation is not, and it averages out."""

import numpy as np
import pandas as pd
import pytest

from probe.behaviour import accuracy_by_rotation, position_bias, wilson
from probe.values import ProbeError

OPTIONS = ("home", "clinic", "emergency")


def asked(choose, n=60, seed=0, wordings=1):
    """Cells of one persona under all three rotations; ``choose(case's own option, rotation, rng)`` gives the option."""
    rng = np.random.default_rng(seed)
    rows = []
    for case in range(n):
        own = int(rng.integers(0, 3))
        for wording in range(wordings):
            for rotation in range(3):
                option = choose(own, rotation, rng)
                row = {
                    "case": case,
                    "persona": "none",
                    "target": OPTIONS[own],
                    "rotation": rotation,
                    "wording": wording,
                }
                row |= {"y_gen": OPTIONS[option] if option is not None else None, "condition": f"{wording}/{rotation}"}
                rows.append(row | {"letter": "ABC"[(option + rotation) % 3] if option is not None else None})
    table = pd.DataFrame(rows)
    table.attrs = {"options": list(OPTIONS)}
    return table


def prefers_a(own, rotation, rng):
    """Half of the time whatever stands behind the letter A."""
    return (-rotation) % 3 if rng.random() < 0.5 else own


def undecided(own, rotation, rng):
    return int(rng.integers(0, 3)) if rng.random() < 0.6 else own


def test_a_planted_letter_is_found_by_its_name():
    found = position_bias(asked(prefers_a)).set_index("letter")
    assert found.loc["A", "share"] > 0.5 > found.loc["A", "null"]
    assert found.loc["A", "low"] > 1 / 3
    assert (found["p"] == 0.001).all()
    assert found["share"].sum() == pytest.approx(1)


def test_choosing_by_option_alone_shows_no_letter_whatever_the_options_share():
    always = position_bias(asked(lambda own, rotation, rng: 2))
    assert always["share"].to_numpy() == pytest.approx(np.full(3, 1 / 3))
    assert (always["p"] == 1).all()


def test_the_permutation_rejects_one_null_table_in_twenty_also_where_a_case_has_several_wordings():
    p = [
        position_bias(asked(undecided, 30, seed, 2), rng=np.random.default_rng(seed))["p"].iloc[0] for seed in range(60)
    ]
    assert np.mean(np.array(p) < 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)
    assert np.mean(p) > 0.35


def test_accuracy_is_averaged_over_the_rotations_of_a_case():
    table = asked(prefers_a)
    found = accuracy_by_rotation(table).set_index("rotation")
    right = (table["y_gen"] == table["target"]).groupby(table["rotation"]).mean()
    assert [found.loc[str(r), "value"] for r in range(3)] == pytest.approx(right.tolist())
    assert found.loc["mean", "value"] == pytest.approx(right.mean())
    assert found.loc["mean", "high"] - found.loc["mean", "low"] < found.loc["0", "high"] - found.loc["0", "low"]


def test_cells_without_all_rotations_are_left_out_and_counted_and_silence_is_no_letter():
    table = asked(prefers_a, 20)
    part = table[~((table["case"] < 5) & (table["rotation"] == 1))]
    part.attrs = table.attrs
    found = position_bias(part)
    assert found["n"].unique().tolist() == [45]
    assert found["note"].str.startswith("5 cells without all 3 rotations").all()
    silent = position_bias(asked(lambda own, rotation, rng: None, 5))
    assert silent["share"].isna().all()
    assert (silent["p"] == 1).all()
    with pytest.raises(ProbeError, match="needs the column rotation"):
        position_bias(table.drop(columns="rotation"))


def test_an_option_stated_in_words_has_a_label_and_no_letter_and_leaves_the_letters_named():
    table = asked(prefers_a, 20)
    in_words = table.assign(letter=table["letter"].where(table.index % 4 > 0, None))
    in_words.attrs = table.attrs
    pd.testing.assert_frame_equal(position_bias(in_words), position_bias(table))


@pytest.mark.parametrize("odd", [np.nan, 0.5])
def test_a_rotation_that_is_no_number_of_places_is_refused(odd):
    table = asked(prefers_a, 3)
    table["rotation"] = table["rotation"].astype(float)
    assert len(position_bias(table)) == 3  # the control: whole numbers in a column of floats
    table.loc[4, "rotation"] = odd
    for verb in (position_bias, accuracy_by_rotation):
        with pytest.raises(ProbeError, match=f"rotation counts whole places from 0, found {odd} in row 4"):
            verb(table)


def test_four_options_in_perfect_balance_show_no_letter_and_the_interval_of_all_answers():
    rows = [
        {"case": i, "persona": "p", "rotation": r, "target": "wxyz"[i % 4], "y_gen": "wxyz"[i % 4]}
        for i in range(12)
        for r in range(4)
    ]
    found = position_bias(pd.DataFrame(rows), options=list("wxyz"))
    assert found["letter"].tolist() == ["1", "2", "3", "4"]
    assert (found["p"] == 1).all()
    assert found["share"].tolist() == [0.25] * 4
    assert found[["low", "high"]].iloc[0].tolist() == pytest.approx(wilson(12, 48))


def test_options_in_another_order_than_the_letters_are_refused_and_an_unknown_order_gives_no_table():
    table = asked(prefers_a, 20)
    with pytest.raises(ProbeError, match="under rotation r option i has letter i"):
        position_bias(table, options=["clinic", "home", "emergency"])
    table.attrs = {}
    found = position_bias(table)
    assert found.empty
    assert found.attrs["absent"][0].startswith("position bias needs the order")
    assert len(position_bias(table, options=OPTIONS)) == 3
