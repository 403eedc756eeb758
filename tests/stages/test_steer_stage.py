"""The steps of `probe steer` around its sweeps: arms as recipes, their answers as tables, and the whole of it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probe.cli_steering import SteerOptions
from probe.mechanism.steering.dose import EqualDose
from probe.stages.capture import capture
from probe.stages.places import beside, folder_beside
from probe.stages.steer import arm_metrics, label_results, prompt_against_steering
from probe.stages.steer_answers import stated_tables, written_arms, written_costs
from probe.stages.steer_bench import Bench, Dosed, Push
from probe.stages.steer_labels import LabelResult
from probe.stages.steer_off_target import OffTarget, off_target_costs
from probe.stages.steer_plan import plan_steer
from probe.stages.steer_scene import Scene, SteerRequest, scene_of
from probe.stages.steer_subspaces import subspace_scores
from probe.stages.steer_texts import read_again, recipes, steered_study
from probe.store import open_store
from probe.study import Study
from probe.study.off_target import questions
from probe.values import Direction, ProbeError
from tests.mechanism.steering.steering_world import World
from tests.stages.steered_organism import organism_bench

SCRIPT = Path(__file__).parents[2] / "experiments" / "05_prompt_vs_steering.py"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    request = SteerRequest(n_random=2, n_generated=1, text_cases=6)
    return organism_bench(tmp_path_factory.mktemp("steered"), request, cases=32, tokens=60)


@pytest.fixture(scope="module")
def result(bench: Bench) -> LabelResult:
    """What sweeps would have settled: the physician's own direction once, a random one, and one that breaks it."""
    own = bench.own("ed_physician", 3)
    unit = np.random.default_rng(0).standard_normal(len(own.unit))
    unit /= np.linalg.norm(unit)

    def dosed(push: Push, strength: float, *, reached: bool = True) -> Dosed:
        return Dosed(push, EqualDose(strength, 0.1, 0.1, reached, 7))

    others = [
        dosed(Push("isotropic", "isotropic 0", 3, unit, own.scale), 0.3),
        dosed(Push("isotropic", "isotropic 1", 3, -unit, own.scale), 0.3),
        dosed(Push("label_contrast", "too strong", 3, unit, own.scale), 60.0),
        dosed(Push("nonsense", "never there", 3, unit, own.scale), 4.0, reached=False),
    ]
    nothing = pd.DataFrame()
    world = World.drawn(np.random.default_rng(0), n=6).comparison()
    steered = dosed(own, own.norm / own.scale)
    return LabelResult(world, (steered, *others), nothing, nothing, nothing, nothing)


def test_arms_are_recipes_of_the_base_and_the_ablation_one_of_the_persona(bench: Bench, result: LabelResult) -> None:
    made = {one.about["kind"]: one for one in recipes(bench.scene, "ed_physician", result)}
    assert set(made) == {"steered", "ablated", "isotropic", "label_contrast"}  # one without the dose is left out
    assert made["steered"].personas == ("none",) and made["ablated"].personas == ("ed_physician",)
    assert made["steered"].fitted_on == bench.scene.training and not made["isotropic"].fitted_on
    own = result.dosed[0].push
    added = made["steered"].edits[0]
    assert added.position == "newest" and np.allclose(added.vector, own.norm * own.unit, rtol=1e-4)
    assert [edit.position for edit in made["ablated"].edits] == ["prompt_end", "response"]


def test_the_steered_study_judges_held_out_families_alone(bench: Bench, result: LabelResult) -> None:
    study = steered_study(bench.scene, {"ed_physician": result})
    families = {bench.scene.families[case.id] for case in study.cases}
    assert len(study.cases) == 6 and not families & bench.scene.training
    assert [one.id for one in study.personas] == ["none", "ed_physician", "ed_physician-reworded"]
    assert study.personas[2].wordings == ("Act as an ED physician.",)
    assert study.generation.max_new_tokens <= 60


def test_two_personas_at_the_same_strength_of_one_direction_have_an_arm_each(bench: Bench, result: LabelResult) -> None:
    both = {"ed_physician": result, "cautious_ed_physician": result}
    study = steered_study(bench.scene, both)
    assert len({arm.sha256 for arm in study.interventions}) == len(study.interventions) == 8


def test_a_second_call_names_the_same_recipes(bench: Bench, result: LabelResult) -> None:
    one, other = (steered_study(bench.scene, {"ed_physician": result}) for _ in range(2))
    assert [arm.sha256 for arm in one.interventions] == [arm.sha256 for arm in other.interventions]
    stronger = replace(result.dosed[0], dose=replace(result.dosed[0].dose, strength=1.0))
    changed = steered_study(bench.scene, {"ed_physician": replace(result, dosed=(stronger, *result.dosed[1:]))})
    assert changed.interventions[0].sha256 != one.interventions[0].sha256


def test_the_plan_promises_no_fewer_answers_than_are_written(bench: Bench, result: LabelResult) -> None:
    scene = bench.scene
    request = replace(scene.request, personas=("ed_physician",))
    plan = plan_steer(scene.study, request)
    assert sum(plan.cases.values()) == 32 and plan.layers == (1, 2, 3, 4, 5)
    assert plan.cases["test"] == len(scene.parts["test"])
    written = steered_study(scene, {"ed_physician": result}).cells()
    assert len(written) <= plan.answers
    assert plan_steer(scene.study, replace(request, n_random=40)).reads > plan.reads
    with pytest.raises(ProbeError, match="persona beside the base"):
        plan_steer(replace(scene.study, personas=scene.study.personas[:1]), scene.request)


def test_the_base_is_no_persona_to_compare_and_nothing_is_captured_to_find_that_out(
    bench: Bench, tmp_path: Path
) -> None:
    request = replace(bench.scene.request, personas=("none",))
    for refused in (
        lambda: plan_steer(bench.scene.study, request),
        lambda: prompt_against_steering(bench.scene.study, request, store=tmp_path / "store"),
        lambda: scene_of(bench.scene.study, bench.scene.resolved, bench.scene.store, request),
    ):
        with pytest.raises(ProbeError, match=r"'none' is the base.* ask for 'ed_physician' or"):
            refused()
    assert not (tmp_path / "store").exists()
    other = replace(request, base="ed_physician")  # of another base it is one
    assert plan_steer(bench.scene.study, other).personas == ("none",)


def test_subspaces_are_exchanged_at_the_prompts_end_and_at_no_other_site(bench: Bench) -> None:
    whole = {"whole": np.eye(len(bench.own("ed_physician", 3).unit))}
    request = replace(bench.scene.request, site="answer")
    with pytest.raises(ProbeError, match="at 'answer', another token"):
        subspace_scores(Bench(replace(bench.scene, request=request), bench.backend), "ed_physician", 3, whole)
    assert subspace_scores(bench, "ed_physician", 3, whole)["share"].iloc[0] == pytest.approx(1)


def test_a_control_that_cannot_be_had_is_noted_and_takes_nothing_else_with_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compared() -> tuple[LabelResult, tuple[str, ...]]:
        request = replace(bench.scene.request, layers=(3,), n_random=1, dose_cases=4, personas=("ed_physician",))
        found, notes = label_results(Bench(replace(bench.scene, request=request), bench.backend))
        return found["ed_physician"], notes

    def arms(found: LabelResult) -> set[str]:
        return {one.push.name for one in found.dosed}

    sound, none = compared()
    assert not none and {"cautious_ed_physician", "zero", "towards the most urgent label"} <= arms(sound)
    fitted = Scene.direction

    def without_length(scene: Scene, persona: str, layer: int) -> Direction:
        made = fitted(scene, persona, layer)
        return replace(made, vector=0 * made.vector) if persona == "zero" else made

    def same(*_: object, **__: object) -> None:
        raise ProbeError("all of these have the same")

    monkeypatch.setattr(Scene, "direction", without_length)
    monkeypatch.setattr("probe.mechanism.steering.controls.label_contrast", same)
    fewer, notes = compared()
    assert arms(sound) - arms(fewer) == {"zero", "towards the most urgent label"} and not arms(fewer) - arms(sound)
    assert [note.split(": ")[:2] for note in notes] == [
        ["ed_physician", "label contrast"],
        ["ed_physician", "the direction of 'zero' as a control"],
    ]
    assert "has norm 0: its runs do not differ from 'none'" in notes[1]
    assert fewer.comparison.the("steered").settled_dose == pytest.approx(
        fewer.comparison.the("steered").wanted, rel=0.1
    )


def test_written_answers_become_tables_and_a_broken_arm_is_called_so(
    bench: Bench, result: LabelResult, tmp_path: Path
) -> None:
    scene = bench.scene
    study = steered_study(scene, {"ed_physician": result})
    answers = open_store(capture(study, store=tmp_path / "answers").store, warn=False)
    again = read_again(study, answers, ("ed_physician",), "none")
    texts = open_store(capture(again, store=tmp_path / "texts").store, warn=False)
    arms = written_arms(scene, answers, "ed_physician", texts)
    assert [arm.kind for arm in arms[:5]] == ["none", "prompted", "reworded", "steered", "ablated"]
    costs = written_costs(scene, "ed_physician", arms).set_index(["kind", "cost"])["value"]
    assert costs["steered", "parse_rate"] == 1 and costs["label_contrast", "parse_rate"] < 0.5
    assert costs["label_contrast", "repetition"] > 0.3 > costs["none", "repetition"]
    assert (
        costs["none", "fluency_none"] > costs["none", "fluency_prompted"]
    )  # one's own text is the likeliest to oneself
    assert costs["prompted", "fluency_prompted"] > costs["prompted", "fluency_none"]
    stated, shapes = stated_tables(scene, "ed_physician", arms)
    verdicts = stated.query("stratum == 'all' and outcome == 'expected_urgency'").set_index("kind")["verdict"]
    assert verdicts.get("label_contrast", "broken") == "broken" and set(shapes["kind"]) >= {"steered", "reworded"}
    options = [name for name in arms[0].rows if name.startswith("stated_logp_")]
    silent = [replace(arm, rows=arm.rows.assign(**dict.fromkeys(options, np.nan))) for arm in arms]
    assert all(table.empty for table in stated_tables(scene, "ed_physician", silent))  # no letter anywhere
    metrics = arm_metrics(answers)
    assert {"none", "none + ed_physician | steered"} <= set(metrics["persona"])
    assert not metrics["persona"].str.contains("isotropic").any()


def test_the_other_task_is_the_organisms_second_one_and_prompts_do_not_move_it(
    bench: Bench, result: LabelResult
) -> None:
    task, found = off_target_costs(bench, "ed_physician", result.dosed)
    assert task.name == "duration" and len(task.cases) == len(bench.scene.parts["test"])
    scores = {one.arm: one.scores for one in found}
    assert scores["none"]["off_target_accuracy"].mean() > 0.8
    assert scores["prompted"]["off_target_accuracy"].mean() > 0.8
    assert scores["too strong"]["off_target_kl"].mean() > 10 * scores["steered"]["off_target_kl"].mean()


def test_the_thirty_questions_have_their_right_options_evenly_placed() -> None:
    task, cases = questions()
    assert len(cases) == 30 == len({case.id for case in cases})
    assert [sum(case.target == option for case in cases) for option in task.option_ids] == [10, 10, 10]
    assert all(case.choices and len(set(case.choices)) == 3 for case in cases)
    assert isinstance(OffTarget("questions", task, cases).family[0], str)


def test_the_options_are_the_request_and_layers_are_whole_numbers() -> None:
    asked = SteerOptions(persona=["a"], layers="4, 8", random=9, texts=0).request
    assert (asked.personas, asked.layers, asked.n_random, asked.text_cases) == (("a",), (4, 8), 9, 0)
    with pytest.raises(ProbeError, match="whole numbers"):
        _ = SteerOptions(layers="4,b").request


def test_stores_lie_beside_their_source() -> None:
    assert beside(Path("cache/x"), "-steer") == Path("cache/x-steer")
    assert beside("s3://b/x/", "-steer") == "s3://b/x-steer"
    for path in (Path("mine/x"), "mine/x", "mine/x/"):
        assert folder_beside(path, "-steer-reads", "study") == Path("mine/x-steer-reads")
    assert folder_beside("s3://b/x", "-steer-reads", "study") == Path("cache/study-steer-reads")


def test_the_experiment_has_at_most_80_lines_and_its_study_loads() -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 80
    assert Study.load(SCRIPT.with_suffix(".yaml")).persona("nonsense").role == "placebo"


@pytest.mark.slow
@pytest.mark.parametrize("site", ["prompt_end", "answer"])
def test_the_experiment_runs_and_a_second_run_captures_nothing(site: str, tmp_path: Path) -> None:
    arguments = ["--limit", "60", "--random", "3", "--texts", "6", "--persona", "ed_physician", "--site", site]
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, str(SCRIPT), *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
    for words in ("Settled on validation cases", "What each arm recovers", "Among its controls", "What it costs"):
        assert words in ended.stdout
    prefix = "steer" if site == "prompt_end" else "steer_answer"
    folder = {path.name for path in (tmp_path / "figures" / "prompt-vs-steering").iterdir()}
    assert {f"{prefix}_{name}" for name in ("recovery.csv", "costs.csv", "recovered.svg", "dose.pdf")} <= folder
    assert "capture:" not in ended.stderr  # the second run: nothing to compute
