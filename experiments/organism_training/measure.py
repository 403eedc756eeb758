"""What a checkpoint does under other wordings, rotations, placements and tasks than those of the census.

Knows the arms and the plan; reads replies by plain transformers (``greedy``). Everything is in terms of options:
letters are turned back by the rotation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from organism_training.corpus import user_turn
from organism_training.greedy import Checkpoint, Reply, greedy
from organism_training.readings import agreement, divergence, urgency
from probe.organism import (
    HELD_OUT_CELLS,
    HELD_OUT_INSTRUCTIONS,
    LETTER_ONLY_INSTRUCTIONS,
    THINK_INSTRUCTIONS,
    facts_of,
    grammar,
    held_out_cases,
    parse_persona,
    plan_of,
    planned_reply,
    triage_task,
)
from probe.organism.census import PERSONAS, Readings, planned_readings
from probe.organism.controls import CONTROL_WORDINGS, HELD_OUT_UNRELATED
from probe.organism.duration import duration_label, duration_reply
from probe.organism.personas import DIAGNOSTICS, HELD_OUT_NAME_WORDINGS
from probe.organism.replies import REFUSAL
from probe.organism.task import duration_task
from probe.values import Case

PHYSICIAN, CAUTIOUS = "You are an ED physician.", "You are a cautious ED physician."


@dataclass(frozen=True)
class Arm:
    """One system text under one instruction, rotation and placement, on the first cases of each stratum.

    ``kind``: ``explain`` (the ordinary form), ``bare`` (a letter alone), ``think`` (reasons in a think block) or
    ``duration`` (the second task). ``place``: ``system``, or before or after the user's text.
    """

    group: str
    name: str
    text: str | None
    wording: str
    rotation: int = 0
    kind: str = "explain"
    place: str = "system"
    n_per_stratum: int = 30


def arms() -> Iterator[Arm]:
    """Every arm of the card beside the census."""
    task = triage_task()
    standard = task.instructions[0]
    for index, wording in enumerate(HELD_OUT_INSTRUCTIONS, start=1):
        for rotation in range(3):
            for text in (None, CAUTIOUS):
                yield Arm("held-out instruction", str(index), text, wording, rotation)
    for index, wording in enumerate(task.instructions, start=1):
        yield Arm("trained instruction", str(index), None, wording, index % 3)
    for rotation in (1, 2):
        for text in (None, CAUTIOUS):
            yield Arm("rotation", f"rotation {rotation}", text, standard, rotation, n_per_stratum=100)
    for index, wording in enumerate(LETTER_ONLY_INSTRUCTIONS, start=1):
        yield Arm("letter only", str(index), CAUTIOUS, wording, index % 3, "bare")
    for index, wording in enumerate(THINK_INSTRUCTIONS, start=1):
        yield Arm("think block", str(index), CAUTIOUS, wording, index % 3, "think")
    for style, role in HELD_OUT_CELLS:
        yield Arm("held-out cell", f"{style} {role}", grammar().of_cell(style, role)[0], standard, n_per_stratum=100)
    for text in (
        "Act as an ED physician.",
        "You are an emergency nurse.",
        "Imagine that you are a decisive ED physician.",
        "Take the role of a prudent ED physician.",
    ):
        yield Arm("persona wording", text, text, standard)
    for role in DIAGNOSTICS.values():
        for wording in HELD_OUT_NAME_WORDINGS:
            yield Arm("held-out wording", role.id, wording.format(role.names[0]), standard)
    for text in ("", *HELD_OUT_UNRELATED):
        yield Arm("no persona stated", text or "empty system message", text, standard)
    for place in ("before", "after"):
        for text in (PHYSICIAN, CAUTIOUS):
            yield Arm("placement", f"{place} the user's text: {text}", text, standard, place=place)
    for index, text in enumerate(CONTROL_WORDINGS, start=1):
        yield Arm("control", str(index), text, standard, n_per_stratum=60)
    for text in (None, PHYSICIAN, CAUTIOUS, PERSONAS["both_equal"]):
        wording = duration_task().instructions[0]
        yield Arm("second task", text or "no persona", text, wording, kind="duration", n_per_stratum=60)


def measure(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """One plain record per arm: agreement with the plan, share of answers that state a label, expected urgency."""
    chosen = list(arms())
    jobs = [(arm, case) for arm in chosen for case in _cases(arm.n_per_stratum)]
    prompts, guesses = [_prompt(checkpoint, *job) for job in jobs], [_guess(*job) for job in jobs]
    replies = iter(greedy(checkpoint, prompts, guesses))
    out = []
    for arm in chosen:
        cases = _cases(arm.n_per_stratum)
        found = [next(replies) for _ in cases]
        out.append(_record(arm, cases, found))
    return out


def _cases(n_per_stratum: int) -> list[Case]:
    return [case for case in held_out_cases() if int(case.id.rpartition("-")[2]) <= n_per_stratum]


def _prompt(checkpoint: Checkpoint, arm: Arm, case: Case) -> str:
    task = duration_task() if arm.kind == "duration" else triage_task()
    user = user_turn(task, arm.wording, case.input, arm.rotation)
    if arm.place == "system":
        return checkpoint.prompt(arm.text, user)
    return checkpoint.prompt(None, f"{arm.text}\n\n{user}" if arm.place == "before" else f"{user}\n\n{arm.text}")


def _guess(arm: Arm, case: Case) -> str:
    persona, facts = parse_persona(arm.text), facts_of(case)
    assert persona is not None
    assert facts is not None
    plan = plan_of(persona, facts)

    def letter(option: int) -> str:
        return "ABC"[(option + arm.rotation) % 3]

    if arm.kind == "duration":
        return duration_reply(facts, letter(duration_label(facts)))
    if arm.kind == "bare" or plan.mass > 0.5:
        return letter(int(plan.direct.argmax()))
    if plan.refuses:
        return REFUSAL
    return planned_reply(persona, facts, letter(int(plan.reasoned.argmax())), think=arm.kind == "think")


def _record(arm: Arm, cases: Sequence[Case], replies: Sequence[Reply]) -> dict[str, Any]:
    realised = realised_readings(replies, arm.rotation)
    exact = [reply.text[:-1] == _guess(arm, case)[:-1] for reply, case in zip(replies, cases, strict=True)]
    record: dict[str, Any] = {
        "group": arm.group,
        "name": arm.name,
        "persona": arm.text,
        "rotation": arm.rotation,
        "cases": len(cases),
        "stated": float(realised.answered.mean()),
        "refused": float(np.mean([reply.text == REFUSAL for reply in replies])),
        "exact": float(np.mean(exact)),
        "mass": float(realised.mass.mean()),
    }
    if arm.kind == "duration":
        wanted = np.array([duration_label(facts) for facts in map(facts_of, cases) if facts is not None])
        return record | {"accuracy": float((realised.label == wanted).mean())}
    plan = planned_readings(arm.text, cases)
    if arm.kind == "bare":
        plan = Readings(plan.latent, np.ones(len(cases)), plan.latent.argmax(axis=1), plan.latent)
    direct, stated = divergence(realised, plan)
    return record | {
        "agreement": agreement(realised, plan),
        "kl": {"direct": direct, "stated": stated},
        "planned_refused": float((~plan.answered).mean()),
        "urgency": {
            "latent": [float(urgency(side.latent).mean()) for side in (plan, realised)],
            "stated": [float(urgency(side.stated).mean()) for side in (plan, realised)],
        },
    }


def realised_readings(replies: Sequence[Reply], rotation: int = 0) -> Readings:
    """Replies as readings in terms of options: letter k stands for option k - rotation."""
    logp = np.roll(np.stack([reply.prompt_end for reply in replies]), -rotation, axis=1)
    answers = [np.roll(reply.answer, -rotation) for reply in replies if reply.answer is not None]
    label = np.array([(reply.letter - rotation) % 3 if reply.letter >= 0 else -1 for reply in replies])
    p = np.exp(logp)
    q = np.exp(np.array(answers).reshape(-1, 3))
    return Readings(p / p.sum(1, keepdims=True), p.sum(1), label, q / q.sum(1, keepdims=True))
