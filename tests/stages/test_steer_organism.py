"""Prompt against steering on the organism, whose mechanism was planted: what is known is found, what is inert is told.

Planned: the dose curve of a planted coordinate. Planted: where a persona's numbers lie, a decoy, and a persona that
does nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probe.mechanism.steering.comparison import patterns, recovery, standing
from probe.mechanism.steering.label_reads import outcomes
from probe.organism import facts_of, parse_persona, read_mechanism, urgency
from probe.organism.plan import direct_policy, numbers
from probe.stages.steer_bench import Bench, Push
from probe.stages.steer_labels import LabelResult, PersonaRun
from probe.stages.steer_scene import SteerRequest
from probe.stages.steer_subspaces import subspace_scores
from probe.values import ProbeError
from tests.stages.steered_organism import organism_bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The organism with the prompts of some personas captured: labels and residuals at the prompt's end."""
    request = SteerRequest(n_random=19, dose_cases=40)
    return organism_bench(tmp_path_factory.mktemp("steered"), request, cases=160)


@pytest.fixture(scope="module")
def physician(bench: Bench) -> LabelResult:
    return PersonaRun(bench, "ed_physician").result()


@pytest.mark.slow
def test_the_planted_layer_is_chosen_and_the_direction_recovers_the_prompt(physician: LabelResult) -> None:
    result = physician
    found = result.comparison
    assert found.layer == read_mechanism()["direct"].layer
    recovered, shapes = recovery(found), patterns(found)
    rows = recovered.query("stratum == 'all' and outcome == 'expected_urgency'").set_index("kind")
    own = rows.loc["steered"]
    assert own["verdict"] == "as prompted" and own["recovered"] == pytest.approx(1, abs=0.1)
    assert own["own_strength"] == pytest.approx(1, abs=0.2)  # the mean difference itself has the prompt's dose
    assert abs(rows.loc["ablated", "recovered"]) < 0.1 and rows.loc["ablated", "verdict"] == "not moved"
    assert rows.loc["reworded", "recovered"] == pytest.approx(1, abs=0.05)
    ranks = standing(recovered, shapes).query("stratum == 'all' and quantity == 'fit'").set_index("kind")
    assert (ranks.loc[["isotropic", "covariance"], "p"] == 1 / 20).all()
    assert ranks.loc["isotropic", "steered"] > 0.95


@pytest.mark.slow
def test_controls_have_the_same_dose_and_strong_pushes_are_told_as_broken(physician: LabelResult) -> None:
    result = physician
    reached = [one for one in result.dosed if one.dose.reached]
    assert len(reached) > 0.8 * len(result.dosed)
    assert all(one.dose.dose == pytest.approx(one.dose.target, rel=0.1) for one in reached)
    own = result.response.query("kind == 'steered'")
    strongest = own.loc[own["strength"].idxmax()]
    assert "label mass" in strongest["broken"] and 0 < strongest["collapse"] <= strongest["strength"]
    at_dose = own.iloc[(own["strength"] - result.dosed[0].dose.strength).abs().argmin()]
    assert at_dose["broken"] == ""


@pytest.mark.slow
def test_regression_below_the_planted_point_no_strength_does_what_the_prompt_does(physician: LabelResult) -> None:
    """Emergent, not planned: at the last prompt token the persona is not yet there below its planted point."""
    rows = physician.layers.set_index("layer")
    assert (rows.loc[[1, 2], "fit"] < 0.5).all() and (rows.loc[[1, 2], "own_strength"] > 5).all()
    assert (rows.loc[[4, 5], "fit"] > 0.7).all()  # above it the direction still works, with a poorer fit


@pytest.mark.slow
def test_a_steered_run_nears_the_prompted_one_from_its_layer_on(physician: LabelResult) -> None:
    table = physician.distances
    own = table.query("kind == 'steered'").set_index("at")["share"]
    layer = physician.comparison.layer
    assert (own.loc[1 : layer - 1] > 0.99).all() and (own.loc[layer:] < 0.4).all()
    random = table.query("kind == 'isotropic'")
    assert (random.loc[random["at"] >= layer, "share"] > 0.6).all()


@pytest.mark.slow
def test_the_persona_that_does_nothing_has_nothing_to_recover(bench: Bench) -> None:
    try:
        found = PersonaRun(bench, "zero").result().comparison
    except ProbeError as error:
        assert "moves the labels by" in str(error) or "there is none" in str(error)
        return
    rows = recovery(found).query("outcome == 'expected_urgency' and kind == 'steered'")
    assert set(rows["verdict"]) <= {"nothing to recover", "broken"}
    pooled = recovery(found).query("stratum == 'all' and outcome == 'expected_urgency' and kind == 'prompted'")
    assert abs(pooled["difference"].iloc[0]) < 0.05


@pytest.mark.parametrize("number", ["lower", "upper"])
def test_a_planted_coordinate_follows_its_planned_dose_curve(bench: Bench, number: str) -> None:
    """Adding along one column of Q adds to one number of the persona; the plan says what every sum must do."""
    channel = read_mechanism()["direct"]
    column = channel.numbers.index(number)
    cases = list(bench.scene.parts["test"])
    doses = (-1.0, -0.5, 0.5, 1.0, 1.5, 2.0)
    reach = channel.scale / channel.spread[column]
    push = Push("planted", number, channel.layer, channel.basis[:, column], float(reach), 1.0)
    reads = bench.read(bench.base, cases, [(push.edit(dose, "prompt_end"),) for dose in doses])
    judged = bench.scene.judged(cases)
    seen = [float(outcomes(logp, judged)["expected_urgency"].mean()) for logp in reads.logp[1:]]
    none = parse_persona(None)
    assert none is not None
    added = np.eye(len(channel.numbers))[column]
    facts = [found for case in cases if (found := facts_of(case)) is not None]
    assert len(facts) == len(cases)
    for dose, found in zip(doses, seen, strict=True):
        planned = [
            direct_policy(numbers(none, one)[0] + dose * added, urgency(one), one) @ np.arange(3.0) for one in facts
        ]
        assert found == pytest.approx(float(np.mean(planned)), abs=0.07), (number, dose)


def test_the_decoy_at_equal_norm_moves_nothing_beyond_its_controls(bench: Bench) -> None:
    """A direction that tells medical roles from others and moves nothing: judged by controls of the same norm."""
    channel = read_mechanism()["direct"]
    cases = list(bench.scene.parts["test"])
    judged = bench.scene.judged(cases)
    x = bench.scene.base_rows(channel.layer)[0]
    norm = channel.decoy_share * float(np.linalg.norm(x, axis=1).mean())  # as far as a medical role lies along it
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((39, x.shape[1]))
    units = np.concatenate([channel.decoy[None], drawn / np.linalg.norm(drawn, axis=1, keepdims=True)])
    pushes = [Push("equal norm", f"{i}", channel.layer, unit, norm) for i, unit in enumerate(units)]
    reads = bench.read(bench.base, cases, [(push.edit(1.0, "prompt_end"),) for push in pushes])
    y = np.array([outcomes(logp, judged)["expected_urgency"].mean() for logp in reads.logp])
    moved = np.abs(y[1:] - y[0])
    rank = (1 + (moved[1:] >= moved[0]).sum()) / len(moved)
    assert rank > 0.05, moved
    own = bench.own("ed_physician", channel.layer)
    told = bench.read(bench.base, cases, [(Push("own", "own", channel.layer, own.unit, norm).edit(1.0, "prompt_end"),)])
    shifted = outcomes(told.logp[1], judged)["expected_urgency"].mean() - y[0]
    assert abs(shifted) > 3 * moved[0]  # the persona's own direction at that norm


def test_subspaces_are_scored_by_how_much_of_the_planted_effect_they_find(bench: Bench) -> None:
    channel = read_mechanism()["direct"]
    q = channel.basis.T
    rng = np.random.default_rng(1)
    x = bench.scene.base_rows(channel.layer)[0]
    centred = x - x.mean(0)
    own = [bench.own(name, channel.layer).unit for name in ("ed_physician", "cautious_ed_physician")]
    scored = subspace_scores(
        bench,
        "ed_physician",
        channel.layer,
        {
            "planted": q,
            "means": np.linalg.qr(np.stack(own).T)[0].T,
            "random": np.linalg.qr(rng.standard_normal((x.shape[1], len(q))))[0].T,
            "cases": np.linalg.svd(centred, full_matrices=False)[2][: len(q)],
            "decoy": channel.decoy[None],
        },
        known=q,
    ).set_index("subspace")
    assert scored.loc["planted", "share"] == pytest.approx(1, abs=1e-3)
    assert abs(scored.loc["planted", "complement"]) <= 0.05
    assert scored.loc["means", "share"] > 0.8 and abs(scored.loc["means", "complement"]) < 0.2
    assert abs(scored.loc["random", "share"]) < 0.4 and scored.loc["random", "complement"] > 0.6
    assert abs(scored.loc["decoy", "share"]) < 0.05 and scored.loc["decoy", "complement"] > 0.95
    whole = subspace_scores(bench, "ed_physician", channel.layer, {"planted": q}).iloc[0]
    assert whole["share"] > 0.9 and abs(whole["complement"]) < 0.08  # as far as patching the whole vector goes


def test_directions_and_judged_cases_share_no_family(bench: Bench) -> None:
    scene = bench.scene
    parts = {name: {scene.families[case.id] for case in cases} for name, cases in scene.parts.items()}
    assert not parts["train"] & parts["validation"] and not parts["train"] & parts["test"]
    assert not parts["validation"] & parts["test"] and all(parts.values())
    fitted = scene.direction("ed_physician", 3).fitted_on
    assert fitted <= parts["train"]
    assert {scene.families[case.id] for case in scene.settling()} <= parts["validation"]


def test_a_strength_of_nothing_leaves_every_label_as_it_was(bench: Bench) -> None:
    cases = list(bench.scene.parts["test"])[:8]
    push = bench.own("ed_physician", 3)
    reads = bench.read(bench.base, cases, [(push.edit(0.0, "prompt_end"),), (push.edit(0.5, "prompt_end"),)])
    assert np.array_equal(reads.logp[0], reads.logp[1]) or np.allclose(reads.logp[0], reads.logp[1], atol=1e-5)
    assert not np.allclose(reads.logp[0], reads.logp[2], atol=1e-2)


def test_an_unknown_site_or_maker_is_refused_with_the_nearest() -> None:
    with pytest.raises(ProbeError, match="paired_mean"):
        SteerRequest(maker="paired_means")
    with pytest.raises(ProbeError, match="prompt_end"):
        SteerRequest(site="prompt_ends")


def test_cases_that_leave_a_part_empty_are_refused(bench: Bench) -> None:
    few = replace(bench.scene.study, cases=bench.scene.study.cases[:2], limit=None)
    with pytest.raises(ProbeError, match="split into train, validation, test"):
        _ = replace(bench.scene, study=few).parts
