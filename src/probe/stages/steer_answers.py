"""What steered runs wrote: stated labels against the prompted run, and what each arm costs. Reads stores; no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probe.mechanism.steering.breakage import repetition_rate
from probe.mechanism.steering.comparison import Arm, Comparison, patterns, recovery
from probe.mechanism.steering.costs import CostsOf, cost_table
from probe.mechanism.steering.label_reads import divergence
from probe.stages.steer_scene import Scene
from probe.stages.steer_texts import rewording_id, source_of, written_cases
from probe.store import Store
from probe.values import ProbeError


@dataclass(frozen=True, eq=False)
class WrittenArm:
    """The rows of one arm, one for each case in the order of the cases; NaN and None where a case has none."""

    kind: str
    name: str
    rows: pd.DataFrame
    about: Mapping[str, object]


def written_arms(scene: Scene, store: Store, persona: str, texts: Store | None = None) -> list[WrittenArm]:
    """Every arm of one persona that was answered in writing: no persona, prompted, reworded, and its recipes.

    The rows have the columns of the table, ``repetition``, and with the store of texts read again ``fluency_none`` and
    ``fluency_prompted`` (mean log-probability per token, nats).

    Raises:
        ProbeError: the base or the persona has no answer.
    """
    view = store.select(given="")
    table = view.table()
    table["repetition"] = [repetition_rate(tokens.tolist()) for tokens in view.gen_tokens()]
    fluency = fluencies(texts) if texts is not None else {}
    order = [case.id for case in written_cases(scene)]

    def arm(kind: str, name: str, who: str, intervention: str, about: Mapping[str, object]) -> WrittenArm | None:
        own = table[(table["persona"] == who) & (table["intervention"] == intervention)]
        if own.empty:
            return None
        rows = own.drop_duplicates("case").set_index("case").reindex(order)
        source = source_of(who, intervention)
        for column, reader in (("fluency_none", scene.base), ("fluency_prompted", persona)):
            rows[column] = [fluency.get((source, case, reader), np.nan) for case in order]
        return WrittenArm(kind, name, rows, about)

    found = [
        arm("none", scene.base, scene.base, "", {}),
        arm("prompted", "prompted", persona, "", {}),
        arm("reworded", "reworded", rewording_id(persona), "", {}),
    ]
    for told in store.plan.interventions:
        about = dict(told["about"])
        if about.get("persona") == persona:
            who = persona if about["kind"] == "ablated" else scene.base
            found.append(arm(str(about["kind"]), str(about["arm"]), who, str(told["name"]), about))
    known = [one for one in found if one is not None]
    if {"none", "prompted"} - {one.kind for one in known}:
        raise ProbeError(f"{store.place.url} lacks the answers of {scene.base!r} or of {persona!r}; run it again")
    return known


def fluencies(texts: Store) -> dict[tuple[str, str, str], float]:
    """Mean log-probability per token of each text that was read again, by its source, case and reader."""
    view = texts.select()
    found = {}
    for row, logp in zip(view.rows, view.given_logp(), strict=True):
        cell = row.planned.cell
        if len(logp):
            found[cell.condition.given, cell.case, cell.persona] = float(np.mean(logp))
    return found


def costs_of(arm: WrittenArm) -> CostsOf:
    """The scores of one arm by case."""
    rows = arm.rows
    there = rows["status"].notna().to_numpy()
    scores = {
        "parse_rate": _score((rows["status"] == "parsed").to_numpy(float), there),
        "refusal_rate": _score((rows["status"] == "refused").to_numpy(float), there),
        "n_tokens": rows["n_gen"].to_numpy(float),
        "repetition": rows["repetition"].to_numpy(float),
        "label_mass": rows["label_mass"].to_numpy(float),
        "entropy": rows["entropy"].to_numpy(float),
    }
    for name in ("fluency_none", "fluency_prompted"):
        if rows[name].notna().any():
            scores[name] = rows[name].to_numpy(float)
    return CostsOf(arm.kind, arm.name, scores)


def written_costs(scene: Scene, persona: str, arms: Sequence[WrittenArm]) -> pd.DataFrame:
    """What each arm's answers cost: see :func:`probe.mechanism.steering.costs.cost_table`."""
    family = scene.judged(written_cases(scene)).family
    return cost_table(persona, [costs_of(arm) for arm in arms], family)


def stated_tables(scene: Scene, persona: str, arms: Sequence[WrittenArm]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Recovery and pattern of the stated label's distribution, each arm on the cases in which it, the prompted run and
    the unprompted one all state a label: these are cases that an arm can select, and ``n`` says how many they are."""
    options = [f"stated_logp_{option}" for option in scene.study.task.option_ids]
    by_kind = {arm.kind: arm for arm in arms if arm.kind in ("none", "prompted")}
    recovered, shaped = [], []
    for arm in arms:
        trio = {"none": by_kind["none"], "prompted": by_kind["prompted"], arm.kind: arm}
        both = np.all([one.rows[options].notna().all(axis=1) for one in trio.values()], axis=0)
        if both.sum() < 2:
            continue
        found = _comparison(scene, persona, list(trio.values()), np.flatnonzero(both), options)
        new = recovery(found)
        recovered.append(new if arm.kind == "none" else new[new["kind"] == arm.kind])
        if arm.kind not in by_kind:
            shaped.append(patterns(found))
    both_tables = [pd.concat(parts, ignore_index=True) if parts else pd.DataFrame() for parts in (recovered, shaped)]
    if recovered:
        both_tables[0] = both_tables[0].drop_duplicates(["kind", "arm", "stratum", "outcome"])
    return both_tables[0], both_tables[1]


def _comparison(
    scene: Scene, persona: str, arms: Sequence[WrittenArm], at: np.ndarray, options: list[str]
) -> Comparison:
    logp = {arm.name: arm.rows[options].to_numpy(float)[at] for arm in arms}
    of_kind = {arm.kind: logp[arm.name] for arm in arms}
    nothing = np.full(len(at), np.nan)
    made = [
        Arm(
            arm.kind,
            arm.name,
            logp[arm.name],
            nothing,
            divergence(logp[arm.name], of_kind["none"]),
            divergence(logp[arm.name], of_kind["prompted"]),
            _number(arm.about.get("strength")),
            _number(arm.about.get("own_strength")),
            bool(arm.about.get("dose_reached", True)),
            costs_of(arm).health,
        )
        for arm in arms
    ]
    cases = [case for place, case in enumerate(written_cases(scene)) if place in set(at.tolist())]
    layer = next((int(str(arm.about["layer"])) for arm in arms if "layer" in arm.about), -1)
    return Comparison(persona, scene.base, layer, "stated", scene.judged(cases), made, scene.request.margin)


def _score(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    return np.where(there, values, np.nan)


def _number(value: object) -> float:
    return float("nan") if value is None else float(str(value))
