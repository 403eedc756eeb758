"""Interventions through whole studies of a tiny random model: resolved, captured, stored, resumed, in tables, told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

import probe
from probe.cli import app
from probe.stages.arms import arms_told
from probe.stages.capture import capture
from probe.stages.direction_files import save_directions
from probe.stages.donors import donor_values
from probe.store import Store
from probe.study import Study
from probe.values import (
    ChangedPrompt,
    Direction,
    Intervention,
    PerCase,
    ProbeError,
    Recipe,
    Site,
    StudyError,
    steering,
)
from tests.tiny_models import save_tiny_model

OPTIONS = ("home", "clinic", "hospital")
N, WIDTH, LAYER = 4, 32, 2
POINTS = range(4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), "llama", scale=3.0)


def mapping_of(folder: Path, **settings: object) -> dict[str, object]:
    return {
        "name": "tiny",
        "model": {"id": str(folder)},
        "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": "You are an ED nurse."}],
        "task": {
            "id": "t",
            "instruction": "{case}\n{options}",
            "options": {"home": "stay home", "clinic": "routine care", "hospital": "ED"},
        },
        "cases": [
            {
                "id": f"c{i}",
                "input": f"A patient aged {20 + 9 * i} reports fever.",
                "target": OPTIONS[i % 3],
                "metadata": {"family": f"f{i}"},
            }
            for i in range(N)
        ],
        "capture": {"layers": "all", "positions": ["prompt_end", "response_mean"], "batch_size": 1},
        "generation": {"max_new_tokens": 4},
        **settings,
    }


def study_of(model: Path, **settings: object) -> Study:
    return Study.from_mapping(mapping_of(model, **settings))


def direction(layer: int = LAYER, seed: int = 0, persona: str = "nurse") -> Direction:
    vector = np.random.default_rng([seed, layer]).normal(size=WIDTH).astype(np.float32)
    return Direction(Site(layer, "prompt_end"), vector, persona, "none", 2, frozenset({"f0", "f1"}), maker="drawn")


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's store, and a file of directions, beside which study files are written."""
    folder = tmp_path_factory.mktemp("study")
    capture(study_of(model), store=folder / "base")
    save_directions(folder / "d.safetensors", [direction(layer) for layer in (1, 2)])
    save_directions(folder / "two.safetensors", [direction(), direction(seed=1, persona="other")])
    return folder


@pytest.fixture(scope="module")
def base(folder: Path) -> Store:
    return probe.open_store(folder / "base")


@pytest.fixture
def run(model: Path, folder: Path, tmp_path: Path) -> Callable[..., Store]:
    """The store of the study with these interventions, as a study file writes them."""

    def run(*entries: dict[str, object], **settings: object) -> Store:
        mapping = mapping_of(model, interventions=list(entries), **settings)
        return probe.run(Study.from_mapping(mapping, directory=folder), store=tmp_path / "store")

    return run


def resid(store: Store, persona: str, intervention: str = "", position: str = "prompt_end") -> np.ndarray:
    """``[case, layer, width]`` of one arm."""
    return store.select(persona=persona, intervention=intervention).stack(POINTS, position=position)


def labels(store: Store, persona: str, intervention: str = "") -> np.ndarray:
    return store.select(persona=persona, intervention=intervention).label_logp()


def unit(layer: int = LAYER, seed: int = 0) -> np.ndarray:
    vector = direction(layer, seed).vector
    return vector / np.linalg.norm(vector)


def entry(name: str, **keys: object) -> dict[str, object]:
    return {"name": name, "direction": "nurse", "layers": [LAYER], **keys}


@pytest.mark.parametrize(
    ("unit_of", "backend"),
    [("direction", "hf"), ("residual", "hf"), ("direction", "transformer-lens"), ("residual", "nnsight")],
)
def test_strength_zero_is_bit_for_bit_the_run_without_it(
    run: Callable[..., Store], model: Path, unit_of: str, backend: str
) -> None:
    zero = entry("zero", add="d.safetensors", strength=0, unit=unit_of, layers="all", positions="all")
    one = entry("one", add="d.safetensors", strength=1, unit=unit_of, positions="all")
    store = run(zero, one, model={"id": str(model), "backend": backend})
    for persona in ("none", "nurse"):
        plain, same = (store.select(persona=persona, intervention=name) for name in ("", "zero"))
        for position in ("prompt_end", "response_mean"):
            found = [resid(store, persona, name, position).tobytes() for name in ("", "zero")]
            assert found[0] == found[1]
        assert plain.label_logp().tobytes() == same.label_logp().tobytes()
        assert [one.tolist() for one in plain.gen_tokens()] == [one.tolist() for one in same.gen_tokens()]
        assert np.abs(labels(store, persona) - labels(store, persona, "one")).max() > 0.01


@pytest.mark.parametrize("backend", ["hf", "transformer-lens", "nnsight"])
def test_a_steered_run_is_that_of_a_plain_hook_in_prefill_and_decoding(
    run: Callable[..., Store], model: Path, backend: str
) -> None:
    from transformers import AutoModelForCausalLM

    push = entry("push", add="d.safetensors", strength=2.0, positions="newest", personas=["none"])
    store = run(push, model={"id": str(model), "backend": backend})
    plain = AutoModelForCausalLM.from_pretrained(model).eval()
    seen: list[torch.Tensor] = []
    vector = torch.from_numpy(2.0 * direction().vector)

    def steer(_module: object, _inputs: object, output: torch.Tensor, *, start: int) -> torch.Tensor:
        acting = (torch.arange(output.shape[1]) >= start)[None, :, None]
        seen.append(torch.where(acting, output + vector, output))
        return seen[-1]

    for record in store.select(persona="none", intervention="push").records():
        n = len(record.prompt_tokens)
        block = plain.model.layers[LAYER - 1]
        handle = block.register_forward_hook(lambda m, i, o, start=n - 1: steer(m, i, o, start=start))
        with torch.no_grad():
            logits = plain(torch.tensor([[*record.prompt_tokens, *record.gen_tokens]]), use_cache=False).logits[0]
        handle.remove()
        assert logits[n - 1 : -1].argmax(-1).tolist() == list(record.gen_tokens)
        np.testing.assert_allclose(record.resid["prompt_end"][LAYER], seen[-1][0, n - 1], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(record.resid["response_mean"][LAYER], seen[-1][0, n:].mean(0), rtol=1e-4, atol=1e-4)
        top = logits[n - 1].log_softmax(-1).topk(3)
        np.testing.assert_allclose(record.labels["prompt_end"].top_logp[:3], top.values, rtol=1e-4, atol=1e-4)
    assert np.abs(labels(store, "none", "push") - labels(store, "none")).max() > 0.01


def test_ablating_to_the_base_gives_each_case_the_bases_own_component_and_keeps_the_rest(
    run: Callable[..., Store], base: Store
) -> None:
    store = run(
        entry("less", ablate="d.safetensors", store="base", personas=["nurse"]),
        entry("zero", ablate="d.safetensors", value="zero", personas=["nurse"]),
    )
    before, wanted = resid(store, "nurse")[:, LAYER], resid(base, "none")[:, LAYER] @ unit()
    for name, component in (("less", wanted), ("zero", np.zeros(N))):
        after = resid(store, "nurse", name)[:, LAYER]
        np.testing.assert_allclose(after @ unit(), component, atol=1e-4)
        rest = np.eye(WIDTH) - np.outer(unit(), unit())
        np.testing.assert_allclose(after @ rest, before @ rest, atol=1e-4)
    assert np.abs(before @ unit() - wanted).max() > 0.01
    assert np.ptp(wanted) > 0.01  # a value of the case's own, not one for all
    said = list(arms_told(store))
    assert "less under nurse: ablate to none's value" in said[0]
    assert "zero under nurse: ablate to 0" in said[1]


def test_set_and_cap_hold_a_coordinate_in_units_of_the_direction(run: Callable[..., Store]) -> None:
    norm = float(np.linalg.norm(direction().vector))
    store = run(
        entry("set", set="d.safetensors", to=-0.5),
        entry("most", cap="d.safetensors", at_most=0.0),
        entry("least", cap="d.safetensors", at_least=0.0),
        entry("most in the stream's units", cap="d.safetensors", at_most=0.002, unit="stream"),
    )
    before = np.concatenate([resid(store, persona)[:, LAYER] @ unit() for persona in ("none", "nurse")])
    wanted = {
        "set": np.full(2 * N, -0.5 * norm),
        "most": np.minimum(before, 0.0),
        "least": np.maximum(before, 0.0),
        "most in the stream's units": np.minimum(before, 0.002),
    }
    for name, expected in wanted.items():
        after = np.concatenate([resid(store, persona, name)[:, LAYER] @ unit() for persona in ("none", "nurse")])
        np.testing.assert_allclose(after, expected, atol=1e-5, err_msg=name)
    assert (before > 0.005).any()
    assert (before < -0.005).any()


def test_swapping_a_subspace_takes_the_donors_coordinates_of_the_same_case(
    run: Callable[..., Store], base: Store
) -> None:
    keys = {"direction": None, "directions": ["nurse", "other"], "store": "base", "donor": "nurse"}
    swap = {k: v for k, v in entry("swap", swap="two.safetensors", **keys).items() if v is not None}
    store = run({**swap, "personas": ["none"]}, {**swap, "name": "own", "donor": "none", "personas": ["none"]})
    q, _ = np.linalg.qr(np.stack([unit(), unit(seed=1)]).T)
    after, own, donor = resid(store, "none", "swap"), resid(store, "none"), resid(base, "nurse")
    np.testing.assert_allclose(after[:, LAYER] @ q, donor[:, LAYER] @ q, atol=1e-4)
    rest = np.eye(WIDTH) - q @ q.T
    np.testing.assert_allclose(after[:, LAYER] @ rest, own[:, LAYER] @ rest, atol=1e-4)
    np.testing.assert_allclose(after[:, LAYER - 1], own[:, LAYER - 1], atol=1e-5)
    assert np.abs(after[:, LAYER + 1] - own[:, LAYER + 1]).max() > 1e-3
    np.testing.assert_allclose(resid(store, "none", "own"), own, atol=1e-5)  # the control: one's own coordinates


def test_patching_every_layer_from_the_donor_reproduces_the_donor(run: Callable[..., Store], base: Store) -> None:
    patch = {"name": "patch", "patch": "base", "donor": "nurse", "layers": "all", "personas": ["none"]}
    store = run(patch, {**patch, "name": "last", "layers": [3]})
    np.testing.assert_allclose(resid(store, "none", "patch"), resid(base, "nurse"), atol=1e-5)
    for name in ("patch", "last"):
        np.testing.assert_allclose(labels(store, "none", name), labels(base, "nurse"), atol=1e-4)
    assert np.abs(labels(store, "none") - labels(base, "nurse")).max() > 0.01
    assert np.abs(resid(store, "none", "last")[:, 1] - resid(base, "nurse")[:, 1]).max() > 1e-3


def test_a_gate_lets_an_edit_act_on_some_cases_alone(run: Callable[..., Store]) -> None:
    along = resid(run(), "none")[:, LAYER] @ unit()
    middle = float(np.sort(along)[1:3].mean())
    gate = {"path": "d.safetensors", "direction": "nurse", "unit": "stream"}
    push = entry(
        "above", add="d.safetensors", positions="prompt_end", personas=["none"], gate={**gate, "above": middle}
    )
    store = run(push, {**push, "name": "below", "gate": {**gate, "below": middle}})
    for name, acting in (("above", along > middle), ("below", along < middle)):
        moved = np.abs(resid(store, "none", name)[:, LAYER] - resid(store, "none")[:, LAYER]).max(axis=1) > 1e-3
        np.testing.assert_array_equal(moved, acting)
        assert 0 < moved.sum() < N


def test_a_run_resumes_by_what_an_intervention_does_and_not_by_its_name(model: Path, tmp_path: Path) -> None:
    study, path = study_of(model, capture={"layers": [0], "positions": ["prompt_end"]}), tmp_path / "store"
    assert capture(study, store=path).committed == 2 * N
    push = Recipe("push", (steering(direction(), 1.0),), ("none",))
    first = capture(replace(study, interventions=(push,)), store=path)
    assert (first.resumed, first.committed) == (2 * N, 3 * N)  # rows of a store from before stay what they were
    renamed = replace(study, interventions=(replace(push, name="shove"),))
    assert capture(renamed, store=path).resumed == 3 * N
    assert set(probe.open_store(path).table()["intervention"]) == {"", "shove"}
    other = Recipe("push", (steering(direction(), 1.0 + 1e-6),), ("none",))
    again = capture(replace(study, interventions=(other,)), store=path)
    assert (again.resumed, again.committed) == (2 * N, 3 * N)
    assert "intervention_sha" not in probe.open_store(capture(study, store=path).store).table()


def test_a_changed_value_of_a_donor_is_noticed(model: Path, base: Store, tmp_path: Path) -> None:
    study = study_of(model, capture={"layers": [0], "positions": ["prompt_end"]})
    values = donor_values(base, persona="nurse", layer=LAYER, basis=unit()[None])

    def arm(shift: float) -> Study:
        own = {key: value + np.float32(shift) for key, value in values.items()}
        recipe = Recipe("own", (PerCase(LAYER, "set", own, unit()[None]),), ("none",), source="s")
        return replace(study, interventions=(recipe,))

    assert capture(arm(0), store=tmp_path / "store").committed == 3 * N
    assert capture(arm(0), store=tmp_path / "store").resumed == 3 * N
    with pytest.raises(ChangedPrompt, match=f"{N} rows changed"):
        capture(arm(0.5), store=tmp_path / "store")


def test_a_case_without_a_donor_fails_and_the_others_run(model: Path, base: Store, tmp_path: Path) -> None:
    values = donor_values(base, persona="nurse", layer=LAYER)
    del values["c1", 0, 0]
    recipe = Recipe("own", (PerCase(LAYER, "patch", values),), ("none",))
    study = replace(study_of(model), interventions=(recipe,))
    assert capture(study, store=tmp_path / "store").failed == 1
    store = probe.open_store(tmp_path / "store", warn=False)
    assert len(store.select(intervention="own")) == N - 1
    assert list(store.failures()["kind"]) == ["NoDonor"]


def test_a_prompt_without_the_tokens_that_are_edited_fails_and_the_others_run(model: Path, tmp_path: Path) -> None:
    recipe = Recipe("at the persona", (steering(direction(), 1.0, position="persona"),))
    capture(replace(study_of(model), interventions=(recipe,)), store=tmp_path / "store")
    store = probe.open_store(tmp_path / "store", warn=False)
    assert set(store.failures()["kind"]) == {"NoTokens"}
    assert set(store.failures()["persona"]) == {"none"}
    assert len(store.select(persona="nurse", intervention="at the persona")) == N
    assert np.abs(labels(store, "nurse", "at the persona") - labels(store, "nurse")).max() > 1e-3


def test_tables_selections_plan_and_metrics_tell_the_arms(run: Callable[..., Store], base: Store) -> None:
    store = run(entry("push", add="d.safetensors", strength=2.0, personas=["none"]))
    table = store.table()
    assert table.groupby(["persona", "intervention"]).size().to_dict() == {
        ("none", ""): N,
        ("none", "push"): N,
        ("nurse", ""): N,
    }
    (told,) = store.plan.interventions
    assert set(table.loc[table["intervention"] == "push", "intervention_sha"]) == {told["sha256"]}
    assert (told["name"], told["about"]["strength"], told["about"]["unit"]) == ("push", 2.0, "direction")
    assert told["edits"][0]["norm"] == pytest.approx(2 * np.linalg.norm(direction().vector))
    assert told["cases_fitted_on"] == 2
    assert len(store.select(intervention=["push", ""])) == 3 * N
    with pytest.raises(ProbeError, match="no intervention 'pish'; nearest: 'push'"):
        store.select(intervention="pish")
    assert list(dict.fromkeys(probe.metrics(store)["persona"])) == ["none", "none + push", "nurse"]
    compared = probe.compare(store)
    assert set(compared["persona"]) == {"none + push", "nurse"}
    assert set(probe.shift(store)["persona"]) == {"nurse"}  # the inside is read where nothing was done to it
    plain = probe.metrics(base)
    both = probe.metrics(store)
    kept = both[both["persona"] != "none + push"].reset_index(drop=True)
    assert kept["value"].equals(plain["value"])


def test_a_dry_run_and_a_run_say_which_arms_there_are_and_which_cases_fitted_them(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    arms = [entry("push", add="d.safetensors", personas=["none"])]
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(mapping_of(model, interventions=arms)))
    told = CliRunner().invoke(
        app, ["run", str(file), "--dry-run", "--store", str(tmp_path / "s")], env={"COLUMNS": "200"}
    )
    assert told.exit_code == 0, told.output
    assert f"1 arm in {N} of the cells: push (add at newest, layer 2)" in " ".join(told.output.split())
    assert f"1 of 1 interventions act on cases of families that their directions were fitted on (push on 2 of {N}" in (
        " ".join(told.output.split())
    )
    ran = CliRunner().invoke(app, ["capture", str(file), "--store", str(tmp_path / "s")])
    assert ran.exit_code == 0, ran.output
    assert "their directions were fitted on" in ran.output
    whole = CliRunner().invoke(
        app, ["run", str(file), "--store", str(tmp_path / "s"), "--out", str(tmp_path / "figures")]
    )
    assert whole.exit_code == 0, whole.output
    norm = float(np.linalg.norm(direction().vector))
    sentence = f"push under none: add at newest, layer 2, strength 1 in units of the direction (norm {norm:.4g})"
    assert sentence in " ".join(whole.output.split())
    (told_arm,) = pd.read_csv(tmp_path / "figures" / "arms.csv").to_dict("records")
    assert (told_arm["strength"], told_arm["unit"], told_arm["cases_fitted_on"]) == (1.0, "direction", 2)
    tokens = CliRunner().invoke(app, ["tokens", str(file)])
    assert tokens.exit_code == 0, tokens.output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"direction": "nurze"}, "takes the direction 'nurze' against 'none'"),
        ({"direction": "nurze"}, "The nearest known direction is 'nurse'"),
        ({"layers": [3]}, "needs 'nurse' at layer 3, and .* has it at 1, 2; name one of these in `layers`, or in"),
        ({"layers": [9], "fitted_at": 2}, "acts at layer 9 of resid, and this model has 0 to 3"),
        (
            {"layers": [3], "fitted_at": 2, "stream": "attn_out"},
            "acts at layer 3 of attn_out, and this model has 0 to 2",
        ),
        ({"base": "nobody"}, "against 'nobody'"),
        ({"add": "wide.safetensors"}, "arrays 8 wide, and resid of this model is 32 wide"),
        ({"add": "both.safetensors"}, "holds 2 directions of 'nurse' against 'none' at layer 2"),
    ],
)
def test_what_a_file_or_a_model_does_not_have_is_refused_before_anything_runs(
    model: Path, folder: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    for name in ("base", "d.safetensors"):
        (shutil.copytree if (folder / name).is_dir() else shutil.copy)(folder / name, tmp_path / name)
    save_directions(tmp_path / "wide.safetensors", [replace(direction(), vector=np.ones(8, np.float32))])
    save_directions(tmp_path / "both.safetensors", [direction(), replace(direction(seed=1), maker="another")])
    asked = {**entry("push", add="d.safetensors"), **changes}
    with pytest.raises(StudyError, match=words):
        capture(
            Study.from_mapping(mapping_of(model, interventions=[asked]), directory=tmp_path), store=tmp_path / "store"
        )
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_recipes_of_wrong_layers_and_widths_are_refused_too(model: Path, tmp_path: Path) -> None:
    for edit, words in (
        (Intervention(7, "add", direction().vector), "layer 7 of resid"),
        (Intervention(1, "add", np.ones(5, np.float32)), "5 wide"),
        (Intervention(1, "add", np.ones(WIDTH + 1, np.float32), stream="head_out"), "33 wide, and head_out"),
    ):
        with pytest.raises(StudyError, match=words):
            capture(replace(study_of(model), interventions=(Recipe("x", (edit,)),)), store=tmp_path / "store")
