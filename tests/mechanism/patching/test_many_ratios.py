"""Many means and ratios at once are those that are computed one by one."""

from __future__ import annotations

import numpy as np
import pytest

from probe.mechanism.patching.many import HOLDS_ZERO, NO_VARIANCE, ONE_FAMILY, by_case, ratios_of_means
from probe.mechanism.relation.verdicts import change, fieller


@pytest.mark.parametrize("per_family", [1, 3])
@pytest.mark.parametrize("effect", [0.0, 0.5])
def test_every_row_is_what_change_and_fieller_say_of_it(per_family: int, effect: float) -> None:
    rng = np.random.default_rng(3)
    family = np.arange(60) // per_family
    total = effect + rng.normal(0, 0.3, 60)
    shift = total * rng.uniform(-0.5, 1.2, (7, 1)) + rng.normal(0, 0.1, (7, 60))
    shift[1, rng.permutation(60)[:20]] = np.nan
    shift[2] = 0.0
    shift[3] = np.nan
    shift[4, 1:] = np.nan
    found = ratios_of_means(shift, total, family, 2.0)
    for i, row in enumerate(shift):
        one, ratio = change(row, family, 2.0), fieller(row, total, family)
        numbers = (found.value[i], found.low[i], found.high[i])
        np.testing.assert_allclose(numbers, (one.value, one.low, one.high), rtol=1e-9, equal_nan=True)
        assert (found.n[i], found.families[i]) == (one.n, one.families)
        wanted = [np.nan if each is None else each for each in (ratio.value, ratio.low, ratio.high)]
        given = (found.ratio[i], found.ratio_low[i], found.ratio_high[i])
        np.testing.assert_allclose(given, wanted, rtol=1e-9, equal_nan=True)
    assert NO_VARIANCE in found.note[2]
    assert found.note[4] == ONE_FAMILY
    if effect == 0:
        assert HOLDS_ZERO in found.note[0]


def test_a_ratio_covers_its_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        total = rng.normal(0.4, 0.3, 60)
        shift = 0.6 * total + rng.normal(0, 0.2, (1, 60))
        found = ratios_of_means(shift, total, np.arange(60), 2.0)
        covered += bool(found.ratio_low[0] <= 0.6 <= found.ratio_high[0])
    assert 0.92 <= covered / 400 <= 0.98


def test_a_case_is_the_mean_of_its_known_units_and_nan_without_any() -> None:
    case = np.array([0, 0, 1, 2, 2])
    values = np.array([[1.0, 3.0, 5.0, np.nan, 4.0], [np.nan, np.nan, 5.0, 0.0, 4.0]])
    np.testing.assert_array_equal(by_case(values, case), [[2.0, 5.0, 4.0], [np.nan, 5.0, 2.0]])
    np.testing.assert_array_equal(by_case(values[0], case), [2.0, 5.0, 4.0])
