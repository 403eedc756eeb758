"""A whole comparison over a model of one matrix: what is planted is found, controls stay behind, what broke is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probe.mechanism.steering import controls
from probe.mechanism.steering.breakage import Health, broken, collapse_point, repetition_rate
from probe.mechanism.steering.comparison import Arm, Comparison, patterns, recovery, shifts, standing
from probe.mechanism.steering.dose import DoseCurve, equal_doses
from probe.mechanism.steering.label_reads import divergence, log_ratios, outcomes, with_other, worst_case
from probe.mechanism.steering.response import chosen_layer, distances, dose_response, layer_row
from probe.mechanism.steering.subspaces import exchanged, principal_cosines, score_subspace
from probe.values import ProbeError
from tests.mechanism.steering.steering_world import World

SCALE = 10.0


def at_equal_dose(world: World, named: list[tuple[str, str, np.ndarray]]) -> list[Arm]:
    """Every direction at the strength with the prompt's dose."""
    units = [unit / np.linalg.norm(unit) for _, _, unit in named]
    curves = []
    for unit in units:
        curve = DoseCurve()
        for strength in (0.02, 0.1, 0.5, 2.5):
            curve = curve.with_point(strength, world.dose(strength * SCALE * unit))
        curves.append(curve)
    found, _ = equal_doses(
        curves,
        world.dose(world.prompted),
        lambda asked: [world.dose(strength * SCALE * units[i]) for i, strength in asked],
    )
    return [
        world.arm(kind, name, dose.strength * SCALE * unit, dose.strength, reached=dose.reached)
        for (kind, name, _), unit, dose in zip(named, units, found, strict=True)
    ]


def compared(world: World, rng: np.random.Generator, n_random: int = 60) -> Comparison:
    named = [("steered", "steered", world.persona)]
    for kind, many in controls.drawn(world.x, world.family, n_random=n_random, n_splits=3, rng=rng):
        named += [(kind, f"{kind} {i}", unit) for i, unit in enumerate(many)]
    urgency = outcomes(world.logp(), world.cases())["expected_urgency"]
    named.append(("label_contrast", "label contrast", controls.label_contrast(world.x, urgency)))
    arms = at_equal_dose(world, named)
    return world.comparison([*arms, world.arm("reworded", "reworded", world.prompted * 1.05)])


def test_the_personas_own_direction_recovers_its_effect_and_random_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    found = compared(World.drawn(rng, size=2.0), rng)
    recovered, shapes = recovery(found), patterns(found)
    own = recovered.query("kind == 'steered' and stratum == 'all' and outcome == 'expected_urgency'").iloc[0]
    assert own["recovered_low"] < 1.02 and own["recovered"] == pytest.approx(1, abs=0.1)
    assert own["verdict"] == "as prompted"
    ranks = standing(recovered, shapes).query("stratum == 'all' and quantity == 'fit'").set_index("kind")
    assert ranks.loc["isotropic", "p"] < 0.05 and ranks.loc["covariance", "p"] < 0.05
    assert ranks.loc["isotropic", "steered"] > 0.9 > ranks.loc["isotropic", "median"]
    assert ranks.loc["isotropic", "ceiling"] > 0.98


def test_a_random_direction_in_the_personas_place_does_not_stand_out() -> None:
    rng = np.random.default_rng(1)
    world = World.drawn(rng, size=2.0)
    p = []
    for _ in range(12):
        named = [("steered", "decoy", rng.standard_normal(24))]
        named += [("isotropic", f"{i}", rng.standard_normal(24)) for i in range(19)]
        found = world.comparison(at_equal_dose(world, named))
        ranks = standing(recovery(found), patterns(found)).query("stratum == 'all' and quantity == 'fit'")
        p.append(float(ranks["p"].iloc[0]))
    assert np.mean(np.array(p) <= 0.1) < 0.5 and 0.3 < np.mean(p) < 0.75


def test_a_persona_that_moves_nothing_has_nothing_to_recover() -> None:
    rng = np.random.default_rng(2)
    world = World.drawn(rng, size=0.0, own=0.02)
    arm = world.arm("steered", "steered", 0.3 * world.head[2])
    own = recovery(world.comparison([arm])).query("kind == 'steered' and outcome == 'expected_urgency'")
    assert set(own["verdict"]) == {"nothing to recover"}
    moved = World.drawn(rng, size=2.0, own=0.02)
    arm = moved.arm("steered", "steered", moved.persona)
    own = recovery(moved.comparison([arm])).query("kind == 'steered' and outcome == 'expected_urgency'")
    assert set(own["verdict"]) == {"as prompted"}


def test_a_model_that_broke_is_reported_as_broken_and_not_as_persuaded() -> None:
    rng = np.random.default_rng(3)
    world = World.drawn(rng, size=2.0)
    other = world.head[3] + 0.3 * world.persona  # towards no label at all, and a little towards the persona
    ladder = [world.arm("steered", "steered", s * other, s) for s in (0.1, 1.0, 10.0, 40.0, 160.0)]
    found = world.comparison([world.arm("steered", "steered", 160 * other, 160.0)])
    own = recovery(found).query("kind == 'steered' and outcome == 'expected_urgency'")
    assert set(own["verdict"]) == {"broken"} and own["broken"].str.contains("label mass").all()
    curve = dose_response(found, ladder)
    assert curve["broken"].ne("").tolist() == [False, False, True, True, True] or curve["collapse"].notna().all()
    assert curve["collapse"].iloc[0] == curve.loc[curve["broken"].ne(""), "strength"].min()
    sound = recovery(world.comparison([world.arm("steered", "steered", world.persona)]))
    assert (sound["broken"] == "").all()


def test_the_collapse_is_of_strengths_above_0_and_a_broken_push_away_has_no_part_in_it() -> None:
    rng = np.random.default_rng(3)
    world = World.drawn(rng, size=2.0)
    other = world.head[3]
    pushed = [(-1.0, 160 * other), (0.5, 0.1 * other), (1.0, 0.2 * other), (2.0, 0.3 * other)]
    found = world.comparison([world.arm("steered", "steered", world.persona)])
    sound = dose_response(found, [world.arm("steered", "steered", added, s) for s, added in pushed])
    assert sound["broken"].ne("").tolist() == [True, False, False, False] and sound["collapse"].isna().all()
    pushed[2:] = [(1.0, 160 * other), (2.0, 160 * other)]
    fell = dose_response(found, [world.arm("steered", "steered", added, s) for s, added in pushed])
    assert set(fell["collapse"]) == {1.0}
    sound_away = dose_response(
        found, [world.arm("steered", "steered", added, s) for s, added in [(-3.0, 0.0), *pushed[1:]]]
    )
    assert set(sound_away["collapse"]) == {1.0}  # by its size -3 would lie beyond the collapse, and stands


def test_what_was_settled_and_why_a_dose_lacks_is_told_beside_the_held_out_dose() -> None:
    rng = np.random.default_rng(5)
    world = World.drawn(rng)
    own = world.arm("steered", "steered", world.persona)
    without = replace(own, kind="isotropic", name="b", reached=False, settled_dose=1.5, wanted=0.09, dose_note="jumps")
    table = recovery(world.comparison([own, without])).query("stratum == 'all'").groupby("arm").first()
    assert (table.loc["b", "settled_dose"], table.loc["b", "wanted"]) == (1.5, 0.09)
    assert table.loc["b", "note"].startswith("jumps") and not table.loc["b", "reached"]
    assert np.isnan(table.loc["steered", "settled_dose"]) and "jumps" not in table.loc["steered", "note"]
    assert table.loc["b", "dose"] == table.loc["steered", "dose"] == pytest.approx(world.dose(world.persona))


def test_the_worst_case_is_told_where_mass_leaves_the_labels_and_holds_the_truth() -> None:
    rng = np.random.default_rng(4)
    world = World.drawn(rng)
    arm = world.arm("steered", "steered", 8 * world.head[3])
    row = recovery(world.comparison([arm])).query("kind == 'steered' and outcome == 'expected_urgency'").iloc[0]
    assert row["worst_low"] < row["difference"] < row["worst_high"]
    small = recovery(world.comparison([world.arm("steered", "steered", 0.01 * world.head[3])]))
    assert small.loc[small["kind"] == "steered", "worst_low"].isna().all()
    low, high = worst_case(world.logp(), world.logp())
    assert low < 0 < high


def test_a_control_without_the_dose_is_counted_and_not_ranked() -> None:
    rng = np.random.default_rng(5)
    world = World.drawn(rng)
    arms = [world.arm("steered", "steered", world.persona), world.arm("isotropic", "a", 0.1 * world.persona)]
    arms.append(world.arm("isotropic", "b", 50 * world.persona, reached=False))
    found = world.comparison(arms)
    row = standing(recovery(found), patterns(found)).query("stratum == 'all' and quantity == 'fit'").iloc[0]
    assert (row["n"], row["n_unreached"]) == (1, 1)


def test_the_layer_is_the_one_that_fits_best_of_those_that_reach_the_dose_unbroken() -> None:
    rng = np.random.default_rng(6)
    world = World.drawn(rng, size=2.0)
    arms = [
        ("good", world.persona, True),
        ("weak", 0.3 * world.persona, True),
        ("best, unreached", world.prompted, False),
    ]
    rows = []
    for layer, (name, added, reached) in enumerate(arms):
        arm = world.arm("steered", name, added, 1.0, reached=reached)
        rows.append(layer_row(world.comparison([arm]), arm) | {"layer": layer})
    assert chosen_layer(rows) == 0
    with pytest.raises(ProbeError, match="there is none"):
        chosen_layer([row | {"reached": False} for row in rows])


def test_distances_are_nil_for_the_prompted_run_and_whole_for_the_unsteered() -> None:
    rng = np.random.default_rng(7)
    world = World.drawn(rng)
    layers = np.stack([world.x, world.x, 2 * world.x])
    shift = np.stack([np.zeros_like(world.x), np.broadcast_to(world.persona, world.x.shape), world.prompted])
    arms = [world.arm("steered", "steered", world.persona)]
    resid = {"none": layers, "prompted": layers + shift, "steered": layers + np.stack([shift[0], shift[1], shift[1]])}
    table = distances(world.comparison(arms), resid, (0, 1, 2)).set_index(["arm", "at"])
    assert np.isnan(table.loc[("none", 0), "share"]) and table.loc[("none", 1), "share"] == 1
    assert table.loc[("steered", 1), "distance"] == pytest.approx(0)
    assert 0 < table.loc[("steered", 2), "share"] < 1


def test_a_comparison_needs_one_arm_without_a_persona_and_one_prompted() -> None:
    world = World.drawn(np.random.default_rng(8))
    arms = [world.arm("none", "none", 0.0), world.arm("steered", "steered", world.persona)]
    with pytest.raises(ProbeError, match="'prompted'"):
        Comparison("persona", "none", 2, "prompt_end", world.cases(), arms)


def test_divergences_are_those_of_the_label_and_other_distribution() -> None:
    one, other = np.log([[0.2, 0.3, 0.1]]), np.log([[0.1, 0.5, 0.2]])
    by_hand = 0.2 * np.log(2) + 0.3 * np.log(0.6) + 0.1 * np.log(0.5) + 0.4 * np.log(2)
    assert divergence(one, other)[0] == pytest.approx(by_hand)
    assert divergence(one, one)[0] == pytest.approx(0, abs=1e-12)
    assert with_other(one)[0, 3] == pytest.approx(0.4)
    with pytest.raises(ProbeError, match="full softmax"):
        with_other(np.log([[0.6, 0.6, 0.1]]))


def test_log_ratios_forget_the_mass_on_the_labels_and_keep_their_ratios() -> None:
    logp = np.log([[0.2, 0.3, 0.1]])
    assert np.allclose(log_ratios(logp), log_ratios(logp - 3.0))
    found = log_ratios(logp)[0]
    assert found[1] - found[0] == pytest.approx(np.log(1.5)) and found.sum() == pytest.approx(0)


def test_random_controls_are_unit_vectors_and_drawn_where_the_cases_vary() -> None:
    rng = np.random.default_rng(9)
    x = rng.standard_normal((400, 16)) * np.array([5.0] + [0.1] * 15)
    plain = controls.isotropic(300, 16, rng)
    like = controls.covariance_drawn(300, x, rng)
    assert np.allclose(np.linalg.norm(np.concatenate([plain, like]), axis=1), 1)
    assert np.abs(plain[:, 0]).mean() < 0.35 and np.abs(like[:, 0]).mean() > 0.9
    assert np.abs(plain.mean(0)).max() < 0.1  # both signs alike


def test_a_random_split_never_cuts_through_a_family() -> None:
    rng = np.random.default_rng(10)
    x = np.repeat(np.array([[1.0, 0.0], [0.0, 1.0]]), 5, axis=0)
    family = np.repeat(["a", "b"], 5)
    for unit in controls.base_split(x, family, 6, rng):
        assert np.allclose(np.abs(unit), 1 / np.sqrt(2))


def test_the_label_contrast_points_to_the_high_scores_and_its_sign_can_be_turned() -> None:
    rng = np.random.default_rng(11)
    score = rng.standard_normal(200)
    x = np.outer(score, [0.0, 1.0, 0.0]) + 0.1 * rng.standard_normal((200, 3))
    assert controls.label_contrast(x, score)[1] > 0.98
    assert controls.label_contrast(x, score, sign=-0.3)[1] < -0.98
    with pytest.raises(ProbeError, match="same"):
        controls.label_contrast(x, np.ones(200))


def test_broken_is_said_of_what_fell_and_of_nothing_else() -> None:
    sound = Health(0.4, 1.0, 0.98, 0.02)
    assert broken(sound, [sound]) == ()
    assert broken(Health(0.36, 0.9, 0.93, 0.05), [sound]) == ()
    for worse, word in (
        (Health(0.1, 1.0, 0.98, 0.02), "label mass"),
        (Health(0.4, 0.1, 0.98, 0.02), "entropy"),
        (Health(0.4, 2.5, 0.98, 0.02), "entropy"),
        (Health(0.4, 1.0, 0.80, 0.02), "parse rate"),
        (Health(0.4, 1.0, 0.98, 0.40), "repetition"),
    ):
        assert len(found := broken(worse, [sound])) == 1 and word in found[0]
    mass_only = Health(0.05, 1.0, 0.98, 0.02)  # a prompt that takes the mass from the letters did not break the model
    assert broken(mass_only, [sound, mass_only]) == ()


def test_the_collapse_point_is_where_it_stays_broken() -> None:
    strengths = (0.1, 0.2, 0.4, 0.8, 1.6)
    assert collapse_point(strengths, (False, True, False, True, True)) == 0.8
    assert collapse_point(strengths, (False,) * 5) is None
    assert collapse_point(strengths[::-1], (True,) * 5) == 0.1


def test_repetition_counts_sequences_that_stood_before() -> None:
    assert repetition_rate([1, 2, 3, 4, 5, 6]) == 0
    assert repetition_rate([1, 2, 3, 4] * 5) == pytest.approx(13 / 17)
    assert repetition_rate([1, 2]) == 0


def test_a_subspace_is_scored_by_the_effect_that_it_finds() -> None:
    """The known span has two dimensions; an estimate of one of them, of both, and one that is only decodable."""
    rng = np.random.default_rng(12)
    world = World.drawn(rng, n=200, width=8, size=0.0, own=0.0)
    known = np.linalg.qr(np.stack([world.head[2] - world.head[0], rng.standard_normal(8)]).T)[0].T
    outside = rng.standard_normal(8)
    taken, _ = np.linalg.qr(np.concatenate([known, world.head]).T)
    outside -= outside @ taken @ taken.T  # no label reads it
    donor = world.x + 1.5 * known[0] + 4 * outside

    def urgency(x: np.ndarray) -> np.ndarray:
        return outcomes(world.logp(x - world.x), world.cases())["expected_urgency"]

    none, planted = urgency(world.x), urgency(exchanged(world.x, donor, known))

    def score(basis: np.ndarray) -> tuple[float, float]:
        swapped = urgency(exchanged(world.x, donor, basis))
        rest = urgency(world.x + (donor - world.x) - (exchanged(world.x, donor, basis) - world.x))
        found = score_subspace(swapped, rest, planted, none, world.family)
        assert found.share.value is not None and found.complement.value is not None
        return found.share.value, found.complement.value

    assert score(known) == (pytest.approx(1), pytest.approx(0, abs=1e-6))
    assert score(known[:1]) == (pytest.approx(1, abs=1e-6), pytest.approx(0, abs=1e-6))
    decodable = (outside / np.linalg.norm(outside))[None]
    assert score(decodable) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))
    assert principal_cosines(known, known) == (pytest.approx(1), pytest.approx(1))
    assert principal_cosines(decodable, known) == (pytest.approx(0, abs=1e-7),)


def test_shifts_are_of_the_most_against_the_least_urgent_label() -> None:
    world = World.drawn(np.random.default_rng(13))
    found = world.comparison([world.arm("steered", "steered", world.prompted)])
    table = shifts(found)
    assert np.allclose(table["prompted"], table["steered"])
    direct = world.logp(world.prompted) - world.logp()
    assert np.allclose(table["prompted"], direct[:, 2] - direct[:, 0])
