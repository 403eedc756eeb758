"""Permutations move labels only as they may; the nulls they give hold their level where shuffled rows do not."""

from __future__ import annotations

import numpy as np
import pytest

from probe.mechanism.probes.nulls import Moves, blocks_moved, largest_of_many, within_case
from tests.mechanism.probes.probing import alike, case_labels, cells, folds, p_of


def test_within_a_case_labels_change_places_and_never_leave_it():
    case = np.array(["a", "b", "a", "b", "a", "c"], dtype=object)
    moves = within_case(case, 200, np.random.default_rng(0))
    assert (case[moves.index] == case).all()
    assert (np.sort(moves.index, axis=1) == np.arange(6)).all()
    assert len(np.unique(moves.index[:, [0, 2, 4]], axis=0)) == 6 and moves.moved == pytest.approx(5 / 6)


def test_blocks_move_whole_to_rows_of_the_same_key_in_the_same_stratum():
    table = cells(12, 3).sample(frac=1, random_state=0).reset_index(drop=True)
    table = table.drop(index=np.flatnonzero((table["case"] == "case-000") & (table["persona"] == "p1")))
    case, key, stratum = (table[name].to_numpy(dtype=object) for name in ("case", "persona", "stratum"))
    moves = blocks_moved(case, key, stratum, 100, np.random.default_rng(0))
    assert (np.sort(moves.index, axis=1) == np.arange(len(table))).all()
    assert (key[moves.index] == key).all() and (stratum[moves.index] == stratum).all()
    donors = [len(set(case[index][case == name])) for index in moves.index for name in set(case)]
    assert set(donors) == {1}
    lone = case == "case-000"  # it lacks a persona, and no other case does
    assert (moves.index[:, lone] == np.flatnonzero(lone)).all() and moves.moved == pytest.approx(33 / 35)
    assert (case[moves.index] != case)[:, ~lone].mean() == pytest.approx(1 - 31 / 165, abs=0.05)  # 5 and 6 cases


def test_p_of_a_lone_statistic_is_the_plain_one_and_adjusting_only_raises_it():
    rng = np.random.default_rng(0)
    observed, null = np.array([2.0, 0.0, np.nan]), rng.normal(size=(3, 99))
    found = largest_of_many(observed, null)
    assert found.p[0] == (1 + (null[0] >= 2).sum()) / 100
    assert (found.p_adjusted[:2] >= found.p[:2]).all() and np.isnan(found.p[2]) and np.isnan(found.p_adjusted[2])
    alone = largest_of_many(observed[:1], null[:1])
    assert alone.p_adjusted[0] == alone.p[0]


def test_max_t_holds_the_family_at_five_percent_where_the_smallest_p_does_not():
    rng = np.random.default_rng(1)
    first, plain = [], []
    for _ in range(400):
        values = 0.5 + np.outer(rng.uniform(0.5, 3, 30), np.ones(100)) * rng.normal(size=(30, 100))
        found = largest_of_many(values[:, 0], values[:, 1:])
        first.append(found.p_adjusted.min() <= 0.05)
        plain.append(found.p.min() <= 0.05)
    assert np.mean(first) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert np.mean(plain) > 0.5


def test_max_t_finds_the_planted_statistic_among_noise():
    values = np.random.default_rng(2).normal(size=(30, 100))
    values[7, 0] = 8
    found = largest_of_many(values[:, 0], values[:, 1:])
    assert found.p_adjusted[7] == 0.01 and found.p_adjusted.argmin() == 7 and found.high[7] < 8


def test_a_statistic_that_no_permutation_changes_is_never_significant_and_its_band_is_itself():
    null = np.concatenate([np.full((1, 99), 0.5), np.random.default_rng(3).normal(0.5, 0.1, (1, 99))])
    found = largest_of_many(np.array([0.5, 0.9]), null)
    assert found.p.tolist() == [1.0, 0.01] and found.p_adjusted[0] > 0.3 and found.high[0] == 0.5


@pytest.mark.slow
def test_the_null_that_moves_cases_holds_its_level_where_shuffled_rows_reject_far_more():
    rng = np.random.default_rng(3)
    table, runs, rejected = cells(60, 6), 150, {"cases": 0, "rows": 0}
    fold = folds(table)
    for _ in range(runs):
        x, label = alike(table, 20, 0.9, rng), case_labels(table, rng)
        case, key, stratum = (table[name].to_numpy(dtype=object) for name in ("case", "persona", "stratum"))
        shuffled = Moves(np.argsort(rng.random((59, len(table))), axis=1), 1.0)
        rejected["cases"] += p_of(x, label, fold, blocks_moved(case, key, stratum, 59, rng)) <= 0.05
        rejected["rows"] += p_of(x, label, fold, shuffled) <= 0.05
    assert rejected["cases"] / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert rejected["rows"] / runs > 0.15
