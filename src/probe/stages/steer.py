"""Prompting a persona against steering towards it: sweeps, written answers, and what both say. Knows both wings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from probe import behaviour
from probe.mechanism.steering.comparison import patterns, recovery, shifts, standing
from probe.mechanism.steering.controls import RANDOM
from probe.mechanism.steering.costs import cost_table
from probe.stages.analysis import save_tables
from probe.stages.interrupts import Interrupted, terminable
from probe.stages.places import beside, figures_path, folder_beside, store_path
from probe.store import Store, open_store
from probe.study import Study
from probe.values import ProbeError, StoreError, sha256_of

if TYPE_CHECKING:
    from probe.stages.policy import CaptureOutcome, CapturePolicy
    from probe.stages.steer_bench import Bench
    from probe.stages.steer_kept import KeptReads
    from probe.stages.steer_labels import LabelResult
    from probe.stages.steer_scene import Scene, SteerRequest


@dataclass(frozen=True, eq=False)
class SteerTables:
    """What a comparison says: see the functions of :mod:`probe.mechanism.steering.comparison`, ``response`` and
    ``costs`` beside it.

    ``recovery`` and ``pattern`` are of the label reads at the site, and where answers were written also of the stated
    label (``position`` *stated*). ``layers`` is the choice on the validation cases. ``rules``: what other rules than
    equal dose give. ``metrics`` are those of :mod:`probe.behaviour`, by arm. ``notes``: what could not be compared.
    ``outcomes``: how the captures of written answers, and of these texts read again, ended.
    """

    recovery: pd.DataFrame
    pattern: pd.DataFrame
    standing: pd.DataFrame
    layers: pd.DataFrame
    response: pd.DataFrame
    distances: pd.DataFrame
    shifts: pd.DataFrame
    costs: pd.DataFrame
    rules: pd.DataFrame
    metrics: pd.DataFrame = field(default_factory=pd.DataFrame)
    site: str = "prompt_end"
    notes: tuple[str, ...] = ()
    outcomes: tuple[CaptureOutcome, ...] = ()

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by the names of their files."""
        return {f"{self.prefix}_{name}": table for name, table in vars(self).items() if isinstance(table, pd.DataFrame)}

    @property
    def exit_status(self) -> int:
        """0 where every answer was captured, else 3."""
        return max((one.exit_status for one in self.outcomes), default=0)

    @property
    def prefix(self) -> str:
        """What the names of all files of this comparison begin with."""
        return "steer" if self.site == "prompt_end" else f"steer_{self.site}"


@dataclass(frozen=True, eq=False)
class Written:
    """The stores of the answers that the arms wrote, and of those texts read again; how their captures ended."""

    answers: Store
    texts: Store
    outcomes: tuple[CaptureOutcome, ...]


def prompt_against_steering(
    study: Study,
    request: SteerRequest | None = None,
    *,
    store: str | Path | None = None,
    fresh: bool = False,
    policy: CapturePolicy | None = None,
) -> SteerTables:
    """Every persona of a study prompted and steered, with all controls at equal dose, judged on held-out cases.

    What is not captured yet is captured first, into ``store`` (by default ``cache/<study name>``); label reads
    (``-steer-reads``) and the answers that the arms write (``-steer``) lie beside it. A second call resumes all of
    them. ``fresh`` starts reads and answers again and leaves the captures.

    Raises:
        ProbeError: the study, the model or a store refuses, or nothing can be compared.
        Interrupted: SIGINT or SIGTERM; what was committed stays.
    """
    from probe.stages.capture import capture
    from probe.stages.resolution import resolve
    from probe.stages.steer_scene import SteerRequest, base_of, scene_of

    if policy is not None and policy.share:
        raise ProbeError(
            "steering is planned from all captures, so it has one writer; fill the store of the captures first with "
            "`probe capture --writer`, then start the comparison without it"
        )
    asked, path = request or SteerRequest(), store_path(study, store)
    base_of(study, asked)
    source = open_store(capture(study, store=path, policy=policy).store, warn=False)
    resolved = resolve(study)
    scene = scene_of(study, resolved, source, asked)
    results, notes, costs = _label_reads(scene, kept_reads(scene, path), fresh=fresh)
    written = write_answers(scene, results, path, fresh=fresh, policy=policy) if asked.text_cases else None
    return steer_tables(scene, results, costs, written, notes)


def _label_reads(
    scene: Scene, kept: KeptReads, *, fresh: bool
) -> tuple[dict[str, LabelResult], tuple[str, ...], list[pd.DataFrame]]:
    """All that is read without writing: results, notes, and costs on the other task."""
    from probe.stages.running import load_model, threads_for
    from probe.stages.steer_bench import Bench

    if fresh:
        kept.clear()
    with threads_for(scene.resolved), terminable():
        try:
            bench = Bench(scene, load_model(scene.resolved), kept)
            results, notes = label_results(bench)
            return results, notes, _off_target(bench, results)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(
                f"interrupted: label reads so far are kept in {kept.folder}; run the same command again to continue",
                143 if interrupt.args else 130,
            ) from None


def kept_reads(scene: Scene, path: str | Path) -> KeptReads:
    """Where the label reads of a scene are kept, beside the store of its captures."""
    from probe.stages.resolution import model_identity
    from probe.stages.steer_kept import SUFFIX, KeptReads

    return KeptReads(folder_beside(path, SUFFIX, scene.study.name), sha256_of(model_identity(scene.resolved)))


def label_results(bench: Bench) -> tuple[dict[str, LabelResult], tuple[str, ...]]:
    """The label reads of every persona, and why one or one of its controls could not be compared.

    Raises:
        ProbeError: none could.
    """
    from probe.stages.steer_labels import PersonaRun

    found, notes = {}, []
    for persona in bench.scene.personas:
        try:
            found[persona] = PersonaRun(bench, persona).result()
            notes += [f"{persona}: {note}" for note in found[persona].notes]
        except StoreError:  # reads that cannot be kept are no fact about a persona
            raise
        except ProbeError as error:
            notes.append(f"{persona}: {error}")
    if not found:
        raise ProbeError(f"no persona can be compared: {'; '.join(notes) or 'there is none beside the base'}")
    return found, tuple(notes)


def write_answers(
    scene: Scene,
    results: Mapping[str, LabelResult],
    path: str | Path,
    *,
    fresh: bool = False,
    policy: CapturePolicy | None = None,
) -> Written:
    """The arms' answers to held-out cases, and their texts read by the unprompted and the prompted model."""
    from probe.stages.capture import capture
    from probe.stages.steer_texts import read_again, steered_study

    study = steered_study(scene, results)
    suffix = study.name.removeprefix(scene.study.name)
    outcome = capture(study, store=beside(path, suffix), fresh=fresh, policy=policy)
    answers = open_store(outcome.store, warn=False)
    texts = read_again(study, answers, tuple(results), scene.base)
    again = capture(texts, store=beside(path, f"{suffix}-texts"), fresh=fresh, policy=policy)
    return Written(answers, open_store(again.store, warn=False), (outcome, again))


def steer_tables(
    scene: Scene,
    results: Mapping[str, LabelResult],
    off_target: Sequence[pd.DataFrame],
    written: Written | None,
    notes: tuple[str, ...] = (),
) -> SteerTables:
    """Everything that was read as tables."""
    from probe.stages.steer_answers import stated_tables, written_arms, written_costs

    recovered = [recovery(one.comparison) for one in results.values()]
    shaped = [patterns(one.comparison) for one in results.values()]
    costs = list(off_target)
    for persona in results if written is not None else ():
        assert written is not None
        arms = written_arms(scene, written.answers, persona, written.texts)
        stated, shapes = stated_tables(scene, persona, arms)
        recovered.append(stated)
        shaped.append(shapes)
        costs.append(written_costs(scene, persona, arms))
    every, all_shapes = pd.concat(recovered, ignore_index=True), pd.concat(shaped, ignore_index=True)
    return SteerTables(
        recovery=every,
        pattern=all_shapes,
        standing=standing(every, all_shapes),
        layers=pd.concat([one.layers for one in results.values()], ignore_index=True),
        response=pd.concat([one.response for one in results.values()], ignore_index=True),
        distances=pd.concat([one.distances for one in results.values()], ignore_index=True),
        shifts=pd.concat([shifts(one.comparison) for one in results.values()], ignore_index=True),
        costs=pd.concat(costs, ignore_index=True) if costs else pd.DataFrame(),
        rules=pd.concat([one.rules for one in results.values()], ignore_index=True),
        metrics=pd.DataFrame() if written is None else arm_metrics(written.answers),
        site=scene.request.site,
        notes=notes,
        outcomes=() if written is None else written.outcomes,
    )


def arm_metrics(answers: Store) -> pd.DataFrame:
    """Every metric of behaviour by arm, of all arms but the random ones."""
    drawn = [str(one["name"]) for one in answers.plan.interventions if one["about"].get("kind") in RANDOM]
    table = answers.table()
    kept = table[~table["intervention"].isin(drawn)].reset_index(drop=True)
    kept.attrs = table.attrs
    return behaviour.metrics(behaviour.arms(kept))


def run_steer(
    study: Study,
    request: SteerRequest,
    *,
    store: str | Path | None = None,
    fresh: bool = False,
    policy: CapturePolicy | None = None,
    out: Path | None = None,
) -> int:
    """Compare, draw and tell; the exit status."""
    from probe.report.drawn import save
    from probe.report.steering import steering_figures
    from probe.stages.terminal import announce_capture, announce_files
    from probe.stages.terminal_steer import show_steering

    folder = figures_path(study.name, out)
    tables = prompt_against_steering(study, request, store=store, fresh=fresh, policy=policy)
    for outcome in tables.outcomes:
        announce_capture(outcome)
    show_steering(tables)
    written = save_tables(folder, tables.tables)
    for name, drawn in steering_figures(tables.tables, tables.prefix).items():
        written += save(drawn, folder, name)
    announce_files(folder, written)
    return tables.exit_status


def _off_target(bench: Bench, results: Mapping[str, LabelResult]) -> list[pd.DataFrame]:
    """The costs on the other task; where edits act on the answer alone there is none to read."""
    from probe.stages.steer_off_target import off_target_costs

    if bench.scene.request.site != "prompt_end":
        return []
    found = []
    for persona, one in results.items():
        task, scores = off_target_costs(bench, persona, one.dosed)
        found.append(cost_table(persona, scores, task.family).assign(task=task.name))
    return found
