"""Families are split by their names alone: never cut, balanced, and the same whatever is measured or added."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probe.mechanism import families_of, fold_of, part_of, require_apart
from probe.values import ProbeError

FAMILY = np.repeat([f"f{k}" for k in range(43)], 3)


def test_no_family_is_cut_and_folds_differ_by_one_family_at_most() -> None:
    fold = fold_of(FAMILY, 5)
    by_family = pd.Series(fold).groupby(FAMILY)
    assert (by_family.nunique() == 1).all()
    sizes = np.bincount(by_family.first())
    assert sizes.max() - sizes.min() == 1 and sizes.sum() == 43


def test_the_order_of_the_rows_does_not_decide_but_the_seed_does() -> None:
    order = np.random.default_rng(0).permutation(len(FAMILY))
    assert (fold_of(FAMILY[order], 5) == fold_of(FAMILY, 5)[order]).all()
    assert (fold_of(FAMILY, 5, seed=1) != fold_of(FAMILY, 5)).any()


def test_strata_are_spread_evenly_where_their_size_would_put_them_in_one_fold() -> None:
    stratum = np.where(np.arange(len(FAMILY)) < 30, "rare", "usual")
    fold = fold_of(FAMILY, 5, stratum=stratum)
    rare = pd.unique(pd.Series(FAMILY[stratum == "rare"]))
    assert len({fold[name == FAMILY][0] for name in rare}) == 5


def test_a_family_keeps_its_part_when_others_are_left_out() -> None:
    shares = {"train": 0.5, "validation": 0.2, "test": 0.3}
    part, fewer = part_of(FAMILY, shares), part_of(FAMILY[60:], shares)
    assert (part[60:] == fewer).all()
    many = part_of(np.array([f"n{k}" for k in range(4000)]), shares)
    assert np.isclose(np.mean(many == "validation"), 0.2, atol=0.03) and set(many) == set(shares)


def test_shares_that_do_not_sum_to_one_and_too_few_families_are_refused() -> None:
    with pytest.raises(ProbeError, match="sum to 1"):
        part_of(FAMILY, {"train": 0.5, "test": 0.6})
    with pytest.raises(ProbeError, match=r"44 folds need .* found 43"):
        fold_of(FAMILY, 44)


def test_a_case_without_a_family_is_one_of_its_own() -> None:
    table = pd.DataFrame({"case": ["a", "b", "c"], "family": ["f", "", None]})
    assert families_of(table).tolist() == ["f", "b", "c"]
    assert families_of(table[["case"]]).tolist() == ["a", "b", "c"]


def test_judging_on_a_family_that_fitted_is_refused_and_on_another_it_is_not() -> None:
    require_apart({"a", "b"}, np.array(["c"]), "a direction")
    with pytest.raises(ProbeError, match=r"a direction may only .* 1 families .* 'b'"):
        require_apart({"a", "b"}, np.array(["b", "c"]), "a direction")
