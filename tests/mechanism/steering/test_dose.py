"""Equal dose: the strength that moves a model as far as a prompt does, and no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from probe.mechanism.steering.dose import EQUAL_WITHIN, GRID, DoseCurve, equal_doses
from probe.values import ProbeError
from tests.mechanism.steering.steering_world import World


def measured(functions: Sequence[Callable[[float], float]]) -> tuple[list[DoseCurve], Callable[..., list[float]]]:
    """Curves over the grid, and how more of them is measured."""
    curves = []
    for function in functions:
        curve = DoseCurve()
        for strength in GRID:
            curve = curve.with_point(strength, function(strength))
        curves.append(curve)
    return curves, lambda asked: [functions[i](strength) for i, strength in asked]


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("target", [1e-4, 0.02, 0.7])
def test_a_planted_curve_is_solved_for_its_dose(power: float, target: float) -> None:
    curves, measure = measured([lambda s: 0.9 * s**power])
    (found,), _ = equal_doses(curves, target, measure)
    assert found.reached and found.dose == pytest.approx(target, rel=0.02)
    assert found.strength == pytest.approx((target / 0.9) ** (1 / power), rel=0.03)


def test_a_curve_that_saturates_below_the_dose_is_told_and_not_stretched() -> None:
    curves, measure = measured([lambda s: 0.3 * np.tanh(s) ** 2, lambda s: 0.8 * np.tanh(s) ** 2])
    (low, high), _ = equal_doses(curves, 0.5, measure)
    assert not low.reached and low.strength == max(GRID) and "not reached" in low.note
    assert high.reached and high.dose == pytest.approx(0.5, rel=0.02)


def test_a_curve_that_stays_low_and_then_jumps_is_solved_too() -> None:
    """Interpolation alone keeps the far end of its bracket and creeps."""

    def late(s: float) -> float:
        return float(1e-6 * s**2 + 2 / (1 + np.exp(-25 * (s - 0.9))))

    curves, measure = measured([late])
    (found,), _ = equal_doses(curves, 0.4, measure)
    assert found.dose == pytest.approx(0.4, rel=0.1)


@pytest.mark.parametrize("low", [0.01, 0.05])
def test_a_dose_that_jumps_over_the_one_wanted_is_told_and_a_steep_one_that_has_it_is_solved(low: float) -> None:
    def jump(s: float) -> float:
        return low * s if s < 0.5 else 1 + s

    def steep(s: float) -> float:
        return float(2 / (1 + (0.5 / s) ** 12))

    curves, measure = measured([jump, steep])
    (jumped, solved), _ = equal_doses(curves, 0.09, measure)
    assert not jumped.reached and "no strength that was tried has it: from" in jumped.note and "nats" in jumped.note
    assert solved.reached and abs(solved.dose / 0.09 - 1) <= EQUAL_WITHIN and not solved.note


def test_a_jump_over_the_dose_does_not_hide_a_stronger_edit_that_has_it() -> None:
    """Behind the jump the dose falls again; at 1.6, of the first strengths, it is just the one wanted."""
    table = {0.02: 0.001, 0.05: 0.001, 0.12: 0.001, 0.3: 0.001, 0.7: 3.0, 1.6: 0.1, 4.0: 3.0}
    curves, measure = measured([lambda s: table.get(s, 0.001 if s < 0.5 else 3.0)] * 2)
    there, gone = (equal_doses(curves, target, measure)[0][0] for target in (0.1, 0.2))
    assert there.reached and there.strength == 1.6 and not gone.reached


def test_doses_that_are_not_finite_are_left_out_and_counted_and_take_no_other_curve_with_them() -> None:
    curves, measure = measured([lambda s: s**2, lambda s: s**2, lambda s: s**2])
    curves[2] = DoseCurve()
    for strength in GRID:
        curves[2] = curves[2].with_measured(strength, float("nan"))

    def lossy(asked: Sequence[tuple[int, float]]) -> list[float]:
        return [float("nan") if i == 1 else dose for (i, _), dose in zip(asked, measure(asked), strict=True)]

    (sound, lost, empty), found = equal_doses(curves, 0.2, lossy)
    assert sound.reached and sound.dose == pytest.approx(0.2, rel=0.02) and not sound.note
    assert not lost.reached and "no finite dose" in lost.note and lost.tries == len(GRID) + len(found[1].failed)
    assert not empty.reached and np.isnan(empty.dose) and empty.tries == len(GRID) and "no dose" in empty.note


def test_of_several_crossings_the_weakest_edit_is_taken() -> None:
    """A dose that rises, falls and rises again: a bisection over the whole range could end at any of the three."""

    def wavy(s: float) -> float:
        return float(s**2 * (1 + 0.9 * np.sin(4 * np.log(s))) + 1e-9)

    curves, measure = measured([wavy])
    (found,), _ = equal_doses(curves, wavy(0.3), measure)
    fine = np.geomspace(0.001, 4.0, 20_000)
    first = fine[np.argmax([wavy(s) >= wavy(0.3) for s in fine])]
    assert found.strength <= 0.31 and found.strength == pytest.approx(first, rel=0.05)


def test_every_direction_has_the_same_rounds() -> None:
    asked: list[list[int]] = []
    functions = [lambda s: s**2, lambda s: np.expm1(s) ** 3]
    curves, measure = measured(functions)

    def counted(pairs: Sequence[tuple[int, float]]) -> list[float]:
        asked.append([i for i, _ in pairs])
        return measure(pairs)

    found, _ = equal_doses(curves, 0.05, counted, rounds=2)
    assert len(asked) <= 2 and all(one.tries <= len(GRID) + 2 for one in found)


def test_a_second_run_finds_the_very_same_strengths_though_low_bits_differ() -> None:
    curves, measure = measured([lambda s: 0.7 * s**1.9])
    shaken, again = measured([lambda s: 0.7 * s**1.9 * (1 + 1e-9)])
    assert equal_doses(curves, 0.03, measure)[0][0].strength == equal_doses(shaken, 0.03, again)[0][0].strength


def test_a_prompt_that_moves_nothing_has_no_equal_dose() -> None:
    curves, measure = measured([lambda s: s**2])
    with pytest.raises(ProbeError, match="moves nothing"):
        equal_doses(curves, 0.0, measure)


def test_a_dose_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ProbeError, match="finite"):
        DoseCurve().with_point(0.1, float("nan"))


def test_on_a_model_every_direction_comes_to_the_prompts_dose() -> None:
    rng = np.random.default_rng(3)
    world = World.drawn(rng)
    target = world.dose(world.prompted)
    units = rng.standard_normal((12, world.x.shape[1]))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    scale = float(np.linalg.norm(world.x, axis=1).mean())
    functions = [lambda s, unit=unit: world.dose(s * scale * unit) for unit in units]
    curves, measure = measured(functions)
    found, _ = equal_doses(curves, target, measure)
    reached = [one for one in found if one.reached]
    assert len(reached) >= 10
    assert all(one.dose == pytest.approx(target, rel=0.03) for one in reached)
    assert max(one.strength for one in reached) > 1.5 * min(one.strength for one in reached)  # else nothing was solved
