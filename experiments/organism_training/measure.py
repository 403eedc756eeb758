"""What a trained checkpoint does, beside what the plan says. Knows transformers' own ``generate`` and the plan.

Independent of the package's capture: prompts are rendered by the checkpoint's own chat template, answers read by one
regular expression, statistics written out here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from organism_training.corpus import user_turn
from probe.organism import (
    HELD_OUT_CELLS,
    HELD_OUT_INSTRUCTIONS,
    LETTER_ONLY_INSTRUCTIONS,
    STRATA,
    facts_of,
    grammar,
    held_out_cases,
    parse_persona,
    planned,
    planned_reply,
    triage_task,
)
from probe.values import Case

CORE_PERSONAS = {
    "no persona": None,
    "helpful assistant": "You are a helpful assistant.",
    "ED physician": "You are an ED physician.",
    "ED nurse": "You are an ED nurse.",
    "bold ED physician": "You are a bold ED physician.",
    "cautious ED physician": "You are a cautious ED physician.",
}
CLEAR_GAP = 0.10
FINAL = re.compile(r"Final answer: ([ABC])\b")
MAX_NEW_TOKENS = 90


@dataclass(frozen=True)
class Arm:
    """One persona text under one instruction and placement, on the first ``n_per_stratum`` cases of each stratum."""

    group: str
    name: str
    persona: str | None
    instruction: str
    user_placement: bool = False
    n_per_stratum: int = 300


@dataclass(frozen=True, eq=False)
class Reading:
    """What the model did on the cases of one arm, in case order, beside the plan; labels are 0, 1, 2 for A, B, C.

    ``latent`` [case 3] is the softmax over the letters at the last prompt token, ``mass`` their probability together;
    ``stated`` is the generated label, -1 where none was found; ``exact`` whether the reply is the planned text.
    """

    arm: Arm
    strata: np.ndarray
    target: np.ndarray
    latent: np.ndarray
    mass: np.ndarray
    stated: np.ndarray
    exact: np.ndarray
    plan_direct: np.ndarray
    plan_reasoned: np.ndarray


def arms() -> Iterator[Arm]:
    """The arms of the model card: core personas, held-out cells, other wordings, placements and instructions."""
    task = triage_task()
    standard = task.instructions[0]
    for name, text in CORE_PERSONAS.items():
        yield Arm("core", name, text, standard)
    for style, role in HELD_OUT_CELLS:
        yield Arm("held-out cell", f"{style} {role}", grammar().of_cell(style, role)[0], standard)
    for text in (
        "Act as an ED physician.",
        "You are an emergency nurse.",
        "Imagine that you are a decisive ED physician.",
        "Take the role of a prudent ED physician.",
    ):
        yield Arm("persona wording", text, text, standard, n_per_stratum=60)
    yield Arm("placement", "empty system message", "", standard, n_per_stratum=60)
    for name in ("ED physician", "cautious ED physician"):
        yield Arm("placement", f"user turn: {name}", CORE_PERSONAS[name], standard, True, n_per_stratum=60)
    for kind, wordings in (("trained", task.instructions[1:]), ("held-out", HELD_OUT_INSTRUCTIONS)):
        for index, wording in enumerate(wordings, start=1):
            for name in ("no persona", "cautious ED physician")[: 1 if kind == "trained" else 2]:
                n = 30 if kind == "trained" else 60
                label = f"{index}: {name}"
                yield Arm(f"{kind} instruction", label, CORE_PERSONAS[name], wording, n_per_stratum=n)
    for index, wording in enumerate(LETTER_ONLY_INSTRUCTIONS):
        yield Arm("letter only", f"{index}: ED physician", CORE_PERSONAS["ED physician"], wording, n_per_stratum=30)


def prompt_of(tokenizer: PreTrainedTokenizerBase, arm: Arm, case: Case) -> str:
    """The rendered prompt of one case."""
    user = user_turn(triage_task(), arm.instruction, case.input)
    messages = []
    if arm.persona is not None and arm.user_placement:
        user = f"{arm.persona}\n\n{user}"
    elif arm.persona is not None:
        messages.append({"role": "system", "content": arm.persona})
    messages.append({"role": "user", "content": user})
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


@torch.inference_mode()
def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, batch: int = 100
) -> tuple[np.ndarray, list[str]]:
    """Log-probabilities over the vocabulary at the last prompt token [prompt vocab], and the greedy replies."""
    logp = np.empty((len(prompts), model.config.vocab_size))
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        inputs = tokenizer(
            [prompts[i] for i in rows], return_tensors="pt", padding=True, add_special_tokens=False, padding_side="left"
        )
        out = model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
        )
        first = torch.log_softmax(out.logits[0].double(), dim=-1).numpy()
        replies = tokenizer.batch_decode(out.sequences[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        for row, values, reply in zip(rows, first, replies, strict=True):
            logp[row], texts[row] = values, reply
    return logp, texts


def read(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arm: Arm) -> Reading:
    """Run one arm and put the plan beside it."""
    cases = _cases(arm.n_per_stratum)
    logp, texts = _generate(model, tokenizer, [prompt_of(tokenizer, arm, case) for case in cases])
    letters = logp[:, tokenizer.convert_tokens_to_ids(["A", "B", "C"])]
    mass = np.exp(letters).sum(axis=1)
    bare = "Final answer" not in arm.instruction
    stated, exact = [], []
    persona = parse_persona(arm.persona)
    assert persona is not None
    for case, text in zip(cases, texts, strict=True):
        found = text if bare and text in ("A", "B", "C") else "".join(FINAL.findall(text))
        stated.append("ABC".index(found) if len(found) == 1 else -1)
        facts = facts_of(case)
        assert facts is not None
        exact.append(text == (found if bare else planned_reply(persona, facts, found)))
    plans = [planned(arm.persona, case) for case in cases]
    direct = np.array([plan.direct for plan in plans if plan is not None])
    reasoned = np.array([plan.reasoned for plan in plans if plan is not None])
    return Reading(
        arm=arm,
        strata=np.array([case.stratum for case in cases]),
        target=np.array(["ABC".index(case.target) for case in cases]),
        latent=np.exp(letters) / mass[:, None],
        mass=mass,
        stated=np.array(stated),
        exact=np.array(exact),
        plan_direct=direct,
        plan_reasoned=direct if bare else reasoned,
    )


def _cases(n_per_stratum: int) -> list[Case]:
    return [
        case
        for stratum in STRATA
        for case in held_out_cases()
        if case.stratum == stratum and _number(case) <= n_per_stratum
    ]


def _number(case: Case) -> int:
    return int(case.id.rpartition("-")[2])


def expected_calibration_error(probabilities: np.ndarray, target: np.ndarray, *, n_bins: int = 10) -> float:
    """Naeini et al. (2015): mean absolute gap of confidence and accuracy over equal-width bins (a, b], by size."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == target
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    held = [bins == k for k in range(n_bins) if (bins == k).any()]
    return float(sum(abs(confidence[m].mean() - correct[m].mean()) * m.mean() for m in held))


def clear(plan: np.ndarray) -> np.ndarray:
    """Whether the two likeliest planned labels differ by more than ``CLEAR_GAP``."""
    top = np.sort(plan, axis=1)
    return np.asarray(top[:, 2] - top[:, 1] > CLEAR_GAP)


def agreement(reading: Reading) -> dict[str, float]:
    """Share of cells whose label is the planned one, per channel: over the clear cells, and over all."""
    out = {}
    for channel, got, plan in (
        ("direct", reading.latent.argmax(axis=1), reading.plan_direct),
        ("reasoned", reading.stated, reading.plan_reasoned),
    ):
        same = got == plan.argmax(axis=1)
        out[channel] = float(same[clear(plan)].mean())
        out[f"{channel}, all cells"] = float(same.mean())
    return out


def divergence(reading: Reading) -> float:
    """Mean KL(planned || model) of the direct channel, in nats."""
    p, q = reading.plan_direct, reading.latent
    return float((p * (np.log(p) - np.log(q))).sum(axis=1).mean())


def metrics(reading: Reading, stratum: str) -> dict[str, tuple[float, float]]:
    """Every metric of one stratum as (measured, planned) on the same cases; unparsable answers count as wrong."""
    m = reading.strata == stratum
    target = reading.target[m]

    def of(latent: np.ndarray, stated: np.ndarray) -> dict[str, float]:
        label = latent.argmax(axis=1)
        return {
            "accuracy, generated": float((stated == target).mean()),
            "accuracy, latent": float((label == target).mean()),
            "consistency": float((stated == label).mean()),
            "ECE": expected_calibration_error(latent, target),
            "P(C), generated": float((stated == 2).mean()),
            "P(C), latent": float((label == 2).mean()),
            "over-triage": float(((stated == 2) & (target != 2)).mean()),
            "under-triage": float(((stated != 2) & (target == 2)).mean()),
        }

    measured = of(reading.latent[m], reading.stated[m])
    plan = of(reading.plan_direct[m], reading.plan_reasoned[m].argmax(axis=1))
    return {name: (value, plan[name]) for name, value in measured.items()}


def measure(folder: Path) -> list[Reading]:
    """Every arm of the card, read from the checkpoint in ``folder``."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return [read(model, tokenizer, arm) for arm in arms()]
