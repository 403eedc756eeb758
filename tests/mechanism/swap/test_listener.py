"""The imaginary listener knows what can be known of a text, hears nothing where nothing is, and sees parroting."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probe.mechanism.swap.listener import AUTHOR, EVERYONE, PAIR, confusion, heard_texts, identifiability, parroting
from tests.mechanism.swap.swap_worlds import heard

AUTHORS = ("none", "a", "b")
APART = {
    "none": np.array([0.7, 0.1, 0.1, 0.1]),
    "a": np.array([0.1, 0.7, 0.1, 0.1]),
    "b": np.array([0.1, 0.1, 0.7, 0.1]),
}


def information(p: np.ndarray) -> float:
    """Mutual information of author (uniform) and word, in bits."""
    mean = p.mean(0)
    return float((p * np.log2(p / mean)).sum(1).mean())


def row(table: pd.DataFrame, among: str, persona: str) -> pd.Series:
    return table[(table["among"] == among) & (table["persona"] == persona) & (table["stratum"] == "all")].iloc[0]


def test_bits_are_the_mutual_information_of_author_and_text() -> None:
    table = identifiability(heard(np.random.default_rng(0), AUTHORS, APART, 1500), "none", permutations=99)
    found = row(table, EVERYONE, "all")
    truth = information(np.stack([APART[name] for name in AUTHORS]))
    assert found["low"] <= truth <= found["high"]
    assert found["value"] == pytest.approx(truth, abs=0.06)
    assert found["most"] == pytest.approx(np.log2(3))
    pair = row(table, PAIR, "a")
    assert pair["value"] == pytest.approx(information(np.stack([APART["none"], APART["a"]])), abs=0.06)
    assert (pair["p"], pair["value"] > pair["floor"]) == (0.01, True)
    assert row(table, AUTHOR, "b")["texts"] == 1500


def test_texts_of_one_distribution_tell_nobody_apart() -> None:
    same = dict.fromkeys(AUTHORS, APART["a"])
    table = identifiability(heard(np.random.default_rng(1), AUTHORS, same, 50), "none", permutations=99)
    assert row(table, EVERYONE, "all")["value"] == pytest.approx(0, abs=1e-12)
    assert row(table, EVERYONE, "all")["p"] == 1.0
    assert row(table, PAIR, "a")["right"] == pytest.approx(0.5)


def test_the_permutation_floor_holds_its_level_where_scores_vary_and_say_nothing() -> None:
    rng, rejected = np.random.default_rng(2), 0
    for _ in range(200):
        reads = heard(rng, AUTHORS, APART, 15)
        reads["text_logp"] = rng.normal(-5, 2, len(reads))
        _, p = heard_texts(reads, AUTHORS, masked=False).floor(rng, 39)
        rejected += p <= 0.05
    assert 2 <= rejected <= 20


def test_the_listener_is_bayes_rule_and_its_rows_sum_to_one() -> None:
    reads = heard(np.random.default_rng(3), AUTHORS, APART, 400)
    table = confusion(reads, "none")
    matrix = table.pivot(index="author", columns="persona", values="value").loc[list(AUTHORS), list(AUTHORS)].to_numpy()
    np.testing.assert_allclose(matrix.sum(1), 1)
    p = np.stack([APART[name] for name in AUTHORS])
    np.testing.assert_allclose(matrix, p @ (p / p.sum(0)).T, atol=0.05)
    first = table.pivot(index="author", columns="persona", values="first").to_numpy()
    np.testing.assert_allclose(first.sum(1), 1)


def test_an_author_with_few_texts_weighs_as_much_as_one_with_many() -> None:
    reads = heard(np.random.default_rng(4), ("none", "a"), APART, 200)
    few = reads[(reads["author"] == "none") | (reads["case"].astype(int) < 20)]
    value = row(identifiability(few, "none", permutations=9), PAIR, "a")["value"]
    own = heard_texts(few, ("none", "a"), masked=False)
    means = [own.own[own.author == k].mean() for k in (0, 1)]
    assert value == pytest.approx(1 + np.mean(means))
    assert not np.isclose(value, 1 + own.own.mean())


def test_what_masked_words_alone_told_is_parroting_and_what_they_did_not_is_none() -> None:
    rng = np.random.default_rng(5)
    plain = heard(rng, ("none", "a"), APART, 300)
    drowned = plain.assign(masked=True, text_logp=-3.0, n_masked=1)  # without the word nothing is told
    kept = plain.assign(masked=True)
    for masked, fall in ((drowned, 1.0), (kept, 0.0)):
        found = parroting(pd.concat([plain, masked], ignore_index=True), "none").iloc[0]
        assert found["value"] == pytest.approx(fall * found["plain"])
        assert found["masked"] == pytest.approx((1 - fall) * found["plain"])
    assert parroting(plain, "none").empty


def test_without_all_pairs_each_persona_is_told_from_the_base_alone() -> None:
    reads = heard(np.random.default_rng(6), AUTHORS, APART, 30)
    star = reads[(reads["persona"] == reads["author"]) | (reads["persona"] == "none") | (reads["author"] == "none")]
    table = identifiability(star, "none", permutations=9)
    assert table["among"].unique().tolist() == [PAIR]
    assert confusion(star, "none").empty
    whole = identifiability(reads, "none", permutations=9)
    pd.testing.assert_series_equal(
        row(table, PAIR, "b")[["value", "low"]], row(whole, PAIR, "b")[["value", "low"]], check_names=False
    )
