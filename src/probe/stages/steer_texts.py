"""Steered runs that write their answers, as conditions of an ordinary capture. Knows studies and recipes; no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from probe.mechanism.steering.controls import RANDOM
from probe.stages.donors import donor_values
from probe.stages.steer_bench import Dosed, Push
from probe.stages.steer_labels import LabelResult
from probe.stages.steer_scene import Scene
from probe.store import Store
from probe.study import CaptureSpec, ConditionSpec, GivenSpec, LabelSpec, Study
from probe.study.fits import evenly
from probe.values import Case, GivenText, Persona, ProbeError, Recipe, is_cut
from probe.values.recipes import PerCase

SUFFIX = "-steer"
"""Steered answers lie beside the captures, in a store of their own: ``cache/<study name>-steer``."""

LONGEST = 3
"""Answers of arms are cut at so many times the longest answer of the captures: a broken model writes without end."""

READ_AGAIN = 5
"""Random directions whose texts are read again for their fluency."""


def rewording_id(persona: str) -> str:
    """What the second wording of a persona is called where it is a persona of its own."""
    return f"{persona}-reworded"


def steered_study(scene: Scene, results: Mapping[str, LabelResult]) -> Study:
    """The study whose arms answer the held-out cases in writing: no persona, every persona prompted and reworded, and
    each persona's recipes (:func:`recipes`). Of the residual stream only what a store cannot be without is kept.
    """
    study, condition = scene.study, scene.first
    personas = [study.persona(scene.base)]
    for name in results:
        own = study.persona(name)
        personas.append(replace(own, wordings=own.wordings[:1]))
        if scene.rewording(name) is not None:
            personas.append(Persona(rewording_id(name), own.wordings[1:2], own.role, own.style))
    arms = [recipe for persona, result in results.items() for recipe in recipes(scene, persona, result)]
    kept = {name: getattr(study.capture, name) for name in ("batch_size", "dtype", "special_tokens")}
    return replace(
        study,
        name=f"{study.name}{SUFFIX}" + ("" if scene.request.site == "prompt_end" else f"-{scene.request.site}"),
        personas=tuple(personas),
        cases=written_cases(scene),
        interventions=tuple(arms),
        conditions=ConditionSpec(
            instructions=(condition.instruction,),
            rotations=(condition.rotation,),
            placement=study.conditions.placement,
        ),
        capture=replace(CaptureSpec(layers=(0,), positions=("answer",), keep_text=False), **kept),
        labels=LabelSpec(score=study.labels.score),
        generation=replace(study.generation, seeds=1, max_new_tokens=_longest(scene)),
        base=scene.base,
        given=None,
        limit=None,
        confirm=(),
    )


def _longest(scene: Scene) -> int:
    written = scene.read.table["n_gen"].max() if "n_gen" in scene.read.table else np.nan
    most = scene.study.generation.max_new_tokens
    return most if np.isnan(written) else min(most, LONGEST * max(int(written), 1))


def written_cases(scene: Scene) -> tuple[Case, ...]:
    """The held-out cases that are answered in writing, spread over the strata."""
    return evenly(scene.parts["test"], scene.request.text_cases)


def recipes(scene: Scene, persona: str, result: LabelResult) -> list[Recipe]:
    """The arms of one persona: steered by its own direction, by each control at its own dose, and its prompt with the
    direction ablated. Controls without the dose are left out; of what is drawn, as many as are asked for."""
    found = [_adding(scene, persona, one) for one in _written(result.dosed, scene.request.n_generated)]
    return [found[0], _ablating(scene, persona, result.dosed[0].push), *found[1:]]


def _written(dosed: Sequence[Dosed], n_drawn: int) -> Iterable[Dosed]:
    seen: dict[str, int] = {}
    most = {"isotropic": n_drawn, "covariance": 0, "base_split": 1}
    for one in dosed:
        kind = one.push.kind
        if kind != "steered" and not one.dose.reached:
            continue
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= most.get(kind, len(dosed)):
            yield one


def _adding(scene: Scene, persona: str, one: Dosed) -> Recipe:
    position = "newest" if scene.request.site == "prompt_end" else "response"
    about = {
        "persona": persona,
        "kind": one.push.kind,
        "arm": one.push.name,
        "strength": one.dose.strength,
        "unit": "mean residual norm of the base at the site",
        "own_strength": None if np.isnan(one.push.norm) else one.push.own(one.dose.strength),
        "dose_reached": one.dose.reached,
        "layer": one.push.layer,
        "fitted_at": scene.request.site,
    }
    fitted = scene.training if one.push.kind not in RANDOM else frozenset[str]()
    edits = (one.push.edit(one.dose.strength, position),)
    # Two personas may come to the same strength of one direction; each has its own arm.
    return Recipe(f"{persona} | {one.push.name}", edits, (scene.base,), fitted, about, source=persona)


def _ablating(scene: Scene, persona: str, own: Push) -> Recipe:
    """The prompted run whose component along the direction is the base's for the same case: at the prompt's end that
    of the base there, in the answer that of the base where it writes its letter (the mean over cases where it writes
    none there, and its value at the prompt's end where it writes none at all)."""
    basis = own.unit[None].astype(np.float32)

    def values(position: str) -> dict[tuple[str, int, int], np.ndarray]:
        known = donor_values(scene.store, persona=scene.base, layer=own.layer, position=position, basis=basis)
        usual = np.mean(list(known.values()), axis=0).astype(np.float32)
        first = (scene.first.instruction, scene.first.rotation)
        return {(case.id, *first): known.get((case.id, *first), usual) for case in written_cases(scene)}

    in_answer = "answer" if _base_writes_letters(scene, own.layer) else "prompt_end"
    edits = [PerCase(own.layer, "set", values(in_answer), basis, "response")]
    if scene.request.site == "prompt_end":
        edits.insert(0, PerCase(own.layer, "set", values("prompt_end"), basis, "prompt_end"))
    about = {"persona": persona, "kind": "ablated", "arm": "ablated", "layer": own.layer, "to": "base, same case"}
    return Recipe(f"{persona} | ablated", tuple(edits), (persona,), scene.training, about, source=persona)


def _base_writes_letters(scene: Scene, layer: int) -> bool:
    if "answer" not in scene.read.positions:
        return False
    places = scene.read.at(layer, "answer").places
    return bool((scene.read.table["persona"].to_numpy(dtype=object)[places] == scene.base).any())


def read_again(study: Study, store: Store, names: Sequence[str], base: str) -> Study:
    """The study in which the base and each prompted persona read the texts that the persona's arms wrote.

    Raises:
        ProbeError: no answer was written.
    """
    told = {str(one["name"]): dict(one["about"]) for one in store.plan.interventions}
    view = store.select(given="")
    table = view.table()
    tokens, texts = view.gen_tokens(), view.texts()["gen_text"]
    drawn: dict[tuple[str, str], list[str]] = {}
    for one in told.values():
        drawn.setdefault((one["persona"], one["kind"]), []).append(one["arm"])
    found: list[GivenText] = []
    entries = [row.located.entry for row in view.rows]
    for place, row in enumerate(table.to_dict("records")):
        about = told.get(str(row["intervention"]))
        if about is not None and about["arm"] not in drawn[about["persona"], about["kind"]][:READ_AGAIN]:
            continue
        if not len(tokens[place]) or not str(texts.iloc[place]).strip():
            continue
        written_by = str(row["persona"]).removesuffix("-reworded")
        readers = [about["persona"]] if about else [written_by] if written_by != base else list(names)
        cut = is_cut(str((entries[place].get("extra") or {}).get("stop", "end")))
        found.append(
            GivenText(
                str(row["case"]),
                source_of(str(row["persona"]), str(row["intervention"])),
                str(texts.iloc[place]),
                int(row["instruction"]),
                int(row["rotation"]),
                tuple(tokens[place].tolist()),
                cut,
                (base, *readers),
            )
        )
    if not found:
        raise ProbeError(f"{store.place.url} holds no written answer that could be read again")
    kept = tuple(one for one in study.personas if not one.id.endswith("-reworded"))
    return replace(
        study,
        name=f"{study.name}-texts",
        personas=kept,
        interventions=(),
        given=GivenSpec(tuple(found), only=True),
    )


def source_of(persona: str, intervention: str) -> str:
    """How the text of an arm is called where it is read again."""
    return f"{persona} + {intervention}" if intervention else persona
