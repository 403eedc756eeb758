"""What edits do to a task of another kind, on which neither they nor the prompts should do anything. Runs sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probe.capture import PassInput
from probe.capture.planning import JobPlanner
from probe.mechanism.steering.costs import CostsOf
from probe.models.points import residual_points
from probe.prompts import PromptBuilder
from probe.stages.steer_bench import Bench, Dosed, ablation
from probe.stages.steer_reads import Edits, Reads, SweepOrder
from probe.stages.steer_scene import Prompted, Scene
from probe.study.off_target import duration_twins, questions
from probe.values import Case, Cell, Condition, Task


@dataclass(frozen=True, eq=False)
class OffTarget:
    """A task with its cases: the organism's second question on the held-out cases, or thirty plain questions."""

    name: str
    task: Task
    cases: tuple[Case, ...]

    @staticmethod
    def of(scene: Scene) -> OffTarget:
        """The one that the model of a scene can be asked."""
        if scene.resolved.source.is_organism and (twins := duration_twins(scene.parts["test"]))[1]:
            return OffTarget("duration", *twins)
        return OffTarget("questions", *questions())

    @property
    def family(self) -> np.ndarray:
        """The family of each case."""
        return np.array([case.family or case.id for case in self.cases], dtype=object)

    def rows(self, scene: Scene, prompted: Prompted) -> list[PassInput]:
        """The prompts of a persona's wording on this task."""
        planner = JobPlanner(PromptBuilder(scene.resolved.tokenizer, self.task), scene.study.personas, self.cases)
        found = []
        for case in self.cases:
            cell = Cell(prompted.persona, case.id, Condition(prompted.wording, placement=scene.first.placement))
            job = planner.job(cell, 0, planned=lambda _, __: None, keep_text=True)
            found.append(PassInput(job.prompt.token_ids, job.prompt.persona_end, job.prompt.case_tokens, job.labels))
        return found


def off_target_costs(bench: Bench, persona: str, dosed: Sequence[Dosed]) -> tuple[OffTarget, list[CostsOf]]:
    """Accuracy on the other task, and how far its next token moves, under every arm of a persona, label reads alone.

    Edits act at the prompt's end, as on the study's own cases at the same strength; those of controls that never have
    the dose are left out.
    """
    scene, dosed = bench.scene, [one for one in dosed if one.dose.reached]
    task = OffTarget.of(scene)
    own = dosed[0].push
    base, prompted = (task.rows(scene, one) for one in (bench.base, Prompted(persona)))
    arms: list[list[Edits]] = [[(one.push.edit(one.dose.strength, "prompt_end"),) for one in dosed]] * len(base)
    what = f"{persona}: other task"
    plain = bench.sweep(SweepOrder(base, arms), what)
    there = bench.sweep(SweepOrder(base, [[]] * len(base), points=residual_points((own.layer,))))
    values = there.resid[0, 0].astype(np.float64) @ own.unit
    ablated: list[list[Edits]] = [[(ablation(own, value, "prompt_end"),)] for value in values]
    shown = bench.sweep(SweepOrder(prompted, ablated, [base]), what)
    found = [
        task_scores(task, "none", scene.base, plain, 0, plain.kl[0]),
        task_scores(task, "prompted", "prompted", shown, 0, shown.kl_to[0, :, 0]),
        task_scores(task, "ablated", "ablated", shown, 1, shown.kl_to[1, :, 0]),
    ]
    found += [
        task_scores(task, one.push.kind, one.push.name, plain, i + 1, plain.kl[i + 1]) for i, one in enumerate(dosed)
    ]
    if (other := scene.rewording(persona)) is not None:
        again = bench.sweep(SweepOrder(task.rows(scene, other), [[]] * len(base), [base]), "reworded")
        found.append(task_scores(task, "reworded", "reworded", again, 0, again.kl_to[0, :, 0]))
    return task, found


def task_scores(task: OffTarget, kind: str, name: str, reads: Reads, arm: int, kl: np.ndarray) -> CostsOf:
    """Whether each answer is right, and how far the next token moved from no persona's (nats)."""
    target = np.array([task.task.option_ids.index(case.target) for case in task.cases])
    right = (reads.logp[arm].argmax(1) == target).astype(float)
    return CostsOf(kind, name, {"off_target_accuracy": right, "off_target_kl": kl})
