"""Training documents with soft targets. Knows generator, plan and chat format; knows no token and no model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from probe.organism import (
    Facts,
    PersonaPlan,
    Planned,
    facts_of,
    generate_cases,
    held_out_cases,
    parse_persona,
    plan_of,
    planned_reply,
)
from probe.organism.personas import HELD_OUT_CELLS, PREFIXES, ROLES, STYLES
from probe.organism.task import (
    EXPLAINS,
    FINALS,
    JOINTS,
    LAYOUTS,
    LEADS,
    LETTER_ONLY_INSTRUCTIONS,
    instruction,
    triage_task,
)
from probe.values import Task, sha256_of

START, END = "<|im_start|>", "<|im_end|>"

CORE = (("", "ED physician"), ("", "ED nurse"), ("bold", "ED physician"), ("cautious", "ED physician"))
"""Cells of the primary study, stated more often than the others."""

STANDARD_INSTRUCTION = 0.60
LISTED_INSTRUCTION = 0.18
LETTER_ONLY = 0.04
USER_PLACEMENT = 0.08
SENTENCE_DROPPED = 0.25
EASY = 0.97
EASY_KEPT = 0.3
"""Share kept of the documents whose planned label is likelier than ``EASY`` in both channels."""
LETTERS_FIRST = 0.3
"""Mass of the letters at the last prompt token of an ordinary document; the rest is on the reply's first token."""


@dataclass(frozen=True)
class Document:
    """One prompt with its reply and the soft targets of its two decisions.

    ``first`` is the distribution over (A, B, C, any other beginning) at the last prompt token, ``stated`` that over
    (A, B, C) before the final letter; ``stated`` is None where the reply is the bare letter.
    """

    prompt: str
    reply: str
    first: tuple[float, float, float, float]
    stated: tuple[float, float, float] | None


def render(persona: str | None, user: str) -> str:
    """The prompt as the chat template renders it: no system block without a persona, an empty one for ``""``."""
    system = "" if persona is None else f"{START}system\n{persona}{END}\n"
    return f"{system}{START}user\n{user}{END}\n{START}assistant\n"


def user_turn(task: Task, wording: str, case_text: str) -> str:
    """The user turn: the instruction wording with the options and the case filled in."""
    shown = task.option_separator.join(
        task.option_format.format(letter=letter, text=option.text)
        for letter, option in zip(task.letters, task.options, strict=True)
    )
    return wording.replace("{options}", shown).replace("{case}", case_text)


def _cells() -> tuple[list[tuple[str, str]], np.ndarray]:
    """The (style, role) cells of training and how often each is stated."""
    cells = [(style.id, role.id) for role in ROLES for style in STYLES]
    cells = [cell for cell in cells if cell not in HELD_OUT_CELLS]
    weights = np.array([5.0 if cell in CORE else 3.0 if cell == ("", "helpful assistant") else 1.0 for cell in cells])
    return cells, weights / weights.sum()


def _persona_text(rng: np.random.Generator, style_id: str, role_id: str) -> str:
    """A wording of a cell: the standard prefix, adjective and name in half of the draws each, else any."""
    role = next(role for role in ROLES if role.id == role_id)
    style = next(style for style in STYLES if style.id == style_id)
    prefix, adjective, name = (
        str(options[0] if rng.random() < 0.5 else options[int(rng.integers(len(options)))])
        for options in (PREFIXES, style.names, role.names)
    )
    who = f"{adjective} {name}".strip()
    return f"{prefix} {'an' if who[0] in 'aeiouAEIOU' else 'a'} {who}."


def _draw_persona(rng: np.random.Generator, cells: list[tuple[str, str]], weights: np.ndarray) -> str | None:
    kind = rng.random()
    if kind < 0.09:
        return None
    if kind < 0.14:
        return ""
    return _persona_text(rng, *cells[int(rng.choice(len(cells), p=weights))])


def _draw_instruction(rng: np.random.Generator, listed: tuple[str, ...]) -> str:
    kind = rng.random()
    if kind < STANDARD_INSTRUCTION:
        return listed[0]
    if kind < STANDARD_INSTRUCTION + LISTED_INSTRUCTION:
        return listed[int(rng.integers(len(listed)))]
    return instruction(*(int(rng.integers(len(part))) for part in (LEADS, LAYOUTS, EXPLAINS, JOINTS, FINALS)))


def _is_easy(plan: Planned) -> bool:
    """Whether both channels are all but certain: such a document hardly says where the cuts are."""
    return bool(min(plan.direct.max(), plan.reasoned.max()) > EASY)


def build_corpus(n: int, *, seed: int) -> list[Document]:
    """``n`` documents, near to half of each stratum, poor in easy ones; no vignette of the held-out cases is in it."""
    task = triage_task()
    held_out = {case.input for case in held_out_cases()}
    cases = generate_cases(n, seed=seed)
    rng = np.random.default_rng([seed, 2])
    cells, weights = _cells()
    documents: list[Document] = []
    for index in rng.permutation(len(cases)):
        case = cases[int(index)]
        facts, text = facts_of(case), _draw_persona(rng, cells, weights)
        persona = parse_persona(text)
        assert facts is not None
        assert persona is not None
        plan = plan_of(persona, facts)
        if case.input in held_out or (_is_easy(plan) and rng.random() > EASY_KEPT):
            continue
        bare = bool(rng.random() < LETTER_ONLY)
        wording = (
            LETTER_ONLY_INSTRUCTIONS[int(rng.integers(len(LETTER_ONLY_INSTRUCTIONS)))]
            if bare
            else _draw_instruction(rng, task.instructions)
        )
        user = user_turn(task, wording, case.input)
        in_user_turn = bool(text) and rng.random() < USER_PLACEMENT
        prompt = render(None, f"{text}\n\n{user}") if in_user_turn else render(text, user)
        documents.append(_document(rng, prompt, persona, facts, plan, bare=bare))
        if len(documents) == n:
            break
    assert len(documents) == n
    return documents


def _document(
    rng: np.random.Generator, prompt: str, persona: PersonaPlan, facts: Facts, plan: Planned, *, bare: bool
) -> Document:
    """A reply to ``prompt`` with its targets; its letter is drawn from the plan, its persona sentences may miss."""
    letter = "ABC"[int(rng.choice(3, p=plan.direct if bare else plan.reasoned))]
    role, style = (bool(rng.random() >= SENTENCE_DROPPED) for _ in range(2))
    mass = 1.0 if bare else LETTERS_FIRST
    a, b, c = (float(mass * p) for p in plan.direct)
    stated = None if bare else (float(plan.reasoned[0]), float(plan.reasoned[1]), float(plan.reasoned[2]))
    reply = letter if bare else planned_reply(persona, facts, letter, role=role, style=style)
    return Document(prompt, reply, (a, b, c, 1.0 - mass), stated)


def corpus_sha256(documents: list[Document]) -> str:
    """Hex sha256 over all documents, targets to nine decimals, in order."""
    digest = hashlib.sha256()
    for doc in documents:
        targets = [f"{p:.9f}" for p in (*doc.first, *(doc.stated or ()))]
        digest.update(sha256_of([doc.prompt, doc.reply, targets]).encode())
    return digest.hexdigest()
