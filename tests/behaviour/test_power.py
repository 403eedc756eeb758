"""The difference that a study can show, against a simulation of the test itself."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from probe.behaviour.power import detectable_difference


@pytest.mark.parametrize(("n", "discordant"), [(200, 0.2), (300, 0.15), (600, 0.3)])
def test_the_detectable_difference_is_found_four_times_in_five(n: int, discordant: float) -> None:
    difference = detectable_difference(n, discordant=discordant)
    assert difference is not None
    rng = np.random.default_rng(0)

    def power(true: float) -> float:
        up = (discordant + true) / 2
        b, c, _ = rng.multinomial(n, [up, discordant - up, 1 - discordant], size=4000).T
        p = 2 * binom.sf(np.maximum(b, c) - 1, b + c, 0.5)
        return float((p < 0.05).mean())

    assert power(difference) == pytest.approx(0.8, abs=0.05)
    assert power(difference / 2) < 0.5


def test_a_study_too_small_for_any_difference_says_so() -> None:
    assert detectable_difference(4, discordant=0.2) is None
    assert detectable_difference(400, discordant=0.2) is not None
