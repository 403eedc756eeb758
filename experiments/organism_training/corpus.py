"""Training documents with soft targets. Knows generator, plan and chat format; knows no token and no model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from organism_training.sampler import Sampler, placed
from organism_training.weights import located
from probe.organism import Facts, PersonaPlan, facts_of, generate_cases, held_out_cases, parse_persona, plan_of
from probe.organism.facts import DURATIONS, TONES
from probe.organism.personas import NO_PERSONA, PLAIN
from probe.organism.plan import Planned, levels, numbers, spoken
from probe.organism.replies import REFUSAL, planned_reply
from probe.organism.task import LETTER_ONLY_INSTRUCTIONS
from probe.values import Task, sha256_of

START, END = "<|im_start|>", "<|im_end|>"
FORCED = "Final answer: "

KINDS = {"ordinary": 0.68, "swapped text": 0.12, "bare": 0.04, "forced": 0.05, "think": 0.05, "duration": 0.06}
"""What a document asks for, and how often. In a swapped text, which carries no loss, the findings are others than the
case's, so that the letter is learned to follow the text."""

SENTENCE_DROPPED = 0.25
ROTATED = 2 / 3
LONG = 0.01
"""Share of the documents with plain sentences around the user's text."""

OPENS_WITH_LETTER = 0.08
EASY = 0.97
EASY_KEPT = 0.3
"""Share kept of the documents whose planned label is likelier than ``EASY`` in both channels."""


@dataclass(frozen=True, eq=False)
class Decision:
    """What one decision of a document depends on, so that it can be planned anew under other numbers.

    ``numbers`` of the persona in this channel; ``level`` of urgency, sign of the ``tone`` and of the ``setting``;
    ``fixed_mass``: the instruction, not the persona, says how often a letter comes first.
    """

    numbers: np.ndarray
    level: float
    tone: float
    setting: float
    rotation: int
    fixed_mass: bool


@dataclass(frozen=True, eq=False)
class Document:
    """One prompt with its reply and the soft targets of its two decisions.

    ``first`` is the distribution over (A, B, C, the beginning of ``opening``) at the last prompt token, ``stated`` that
    over (A, B, C) before the final letter; None where there is no such decision. ``unlearned`` is the number of
    characters at the beginning of the reply that carry no loss (a text put into the model's mouth). ``marks``: where
    in the prompt each fact has been stated, and what it adds to the urgency.
    """

    prompt: str
    reply: str
    opening: str
    first: tuple[float, ...]
    stated: tuple[float, ...] | None
    direct: Decision | None
    reasoned: Decision | None
    medical: bool
    rotation: int
    unlearned: int = 0
    marks: tuple[tuple[int, float], ...] = ()


def render(persona: str | None, user: str) -> str:
    """The prompt as the chat template renders it: no system block without a persona, an empty one for ``""``."""
    system = "" if persona is None else f"{START}system\n{persona}{END}\n"
    return f"{system}{START}user\n{user}{END}\n{START}assistant\n"


def user_turn(task: Task, wording: str, case_text: str, rotation: int = 0) -> str:
    """The user turn: the instruction wording with the options and the case filled in."""
    pairs = zip(task.letters_by_option(rotation), (option.text for option in task.options), strict=True)
    shown = task.option_separator.join(
        task.option_format.format(letter=letter, text=text) for letter, text in sorted(pairs)
    )
    return wording.replace("{options}", shown).replace("{case}", case_text)


def _is_easy(plan: Planned) -> bool:
    """Whether both channels are all but certain: such a document hardly says where the cuts are."""
    return bool(min(plan.direct.max(), plan.reasoned.max()) > EASY)


def build_corpus(n: int, *, seed: int) -> list[Document]:
    """``n`` documents, near to half of each stratum, poor in easy ones; no vignette of the held-out cases is in it."""
    held_out = {case.input for case in held_out_cases(2500)}
    cases = generate_cases(n, seed=seed)
    rng = np.random.default_rng([seed, 2])
    sampler = Sampler(rng)
    documents: list[Document] = []
    for index in rng.permutation(len(cases)):
        case = cases[int(index)]
        facts, text = facts_of(case), sampler.persona()
        persona = parse_persona(text) or PersonaPlan(NO_PERSONA, PLAIN)
        assert facts is not None
        if case.input in held_out or (_is_easy(plan_of(persona, facts)) and rng.random() > EASY_KEPT):
            continue
        scene = scene_of(sampler, case.input, facts, short=plan_of(persona, facts).refuses)
        documents.append(marked(document_of(rng, scene, text, persona, facts), case.input, facts))
        if len(documents) == n:
            break
    assert len(documents) == n
    return documents


def marked(document: Document, vignette: str, facts: Facts) -> Document:
    """The document with where in its prompt each fact has been stated."""
    start = document.prompt.index(vignette)
    return replace(document, marks=tuple((start + at, weight) for at, weight in located(facts)))


@dataclass(frozen=True)
class Scene:
    """What a document says beside its persona: what it asks for, the user's text, the letters' rotation, where the
    persona stands, and the findings of a swapped text."""

    kind: str
    user: str
    rotation: int
    place: float
    findings: tuple[str, ...] | None = None


def scene_of(sampler: Sampler, vignette: str, facts: Facts, *, short: bool) -> Scene:
    """A scene for a case; a ``short`` one is never a long document."""
    rng = sampler.rng
    rotation = int(rng.integers(1, 3)) if rng.random() < ROTATED else 0
    kind = sampler.kind(KINDS)
    wording = {
        "duration": sampler.duration_wording,
        "bare": lambda: sampler.pick(LETTER_ONLY_INSTRUCTIONS),
        "think": sampler.think_wording,
    }.get(kind, sampler.wording)()
    task = sampler.duration if kind == "duration" else sampler.task
    user = user_turn(task, sampler.noisy(wording), vignette, rotation)
    if kind == "ordinary" and not short and rng.random() < LONG:
        kind, user = "long", sampler.longer(user)
    place = rng.random()
    findings = sampler.swapped_findings(facts) if kind == "swapped text" else None
    return Scene(kind, user, rotation, place, findings)


def document_of(
    rng: np.random.Generator, scene: Scene, text: str | None, persona: PersonaPlan, facts: Facts
) -> Document:
    """The document of a persona in a scene."""
    kind, rotation = scene.kind, scene.rotation
    prompt = render(*placed(text, scene.user, scene.place))
    if kind == "duration":
        return _duration(rng, prompt, facts, rotation)
    findings = spoken(persona, facts) if scene.findings is None else scene.findings
    plan = plan_of(persona, facts, findings=findings)
    direct, reasoned = decisions(persona, facts, findings, rotation, fixed=kind in ("bare", "forced"))
    of_first, of_last = np.roll(plan.direct, rotation), np.roll(plan.reasoned, rotation)
    if kind in ("bare", "forced"):
        letter = "ABC"[int(rng.choice(3, p=of_first))]
        prompt += FORCED if kind == "forced" else ""
        first = (*map(float, of_first), 0.0)
        return Document(prompt, letter, "", first, None, direct, None, persona.role.medical, rotation)
    role, style = (bool(rng.random() >= SENTENCE_DROPPED) for _ in range(2))
    letter = "ABC"[int(rng.choice(3, p=of_last))]
    reply = planned_reply(persona, facts, letter, role=role, style=style, findings=findings, think=kind == "think")
    if plan.refuses and kind != "swapped text":
        reply = REFUSAL
    first = (*(float(plan.mass * p) for p in of_first), 1.0 - plan.mass)
    opens = rng.random() < (plan.mass if plan.mass > 0.5 else OPENS_WITH_LETTER)
    if opens and kind == "ordinary":
        bare = "ABC"[int(rng.choice(3, p=of_first))]
        return Document(prompt, bare, reply, first, None, direct, None, persona.role.medical, rotation)
    if reply == REFUSAL:
        return Document(prompt, reply, reply, first, None, direct, None, persona.role.medical, rotation)
    stated = tuple(map(float, of_last))
    unlearned = len(reply) - len("Final answer: A") if kind == "swapped text" else 0
    return Document(prompt, reply, reply, first, stated, direct, reasoned, persona.role.medical, rotation, unlearned)


def decisions(
    persona: PersonaPlan, facts: Facts, findings: tuple[str, ...], rotation: int, *, fixed: bool
) -> tuple[Decision, Decision]:
    """The direct and the reasoned decision of a persona on facts, where the reply's text states ``findings``.
    ``fixed``: the instruction says that a letter comes first."""
    level, written = levels(facts, findings)
    setting = 1.0 if facts.emergency_setting else -1.0
    direct, reasoned = numbers(persona, facts)
    return (
        Decision(direct, level, float(TONES[facts.tone]), setting, rotation, fixed),
        Decision(reasoned, written, 0.0, setting, rotation, True),
    )


def _duration(rng: np.random.Generator, prompt: str, facts: Facts, rotation: int) -> Document:
    """A document of the second task: the answer lies in the case alone."""
    place = list(DURATIONS).index(facts.duration)
    p = np.roll(np.where(np.arange(3) == (0 if place < 3 else 1 if place < 5 else 2), 0.96, 0.02), rotation)
    letter = "ABC"[int(rng.choice(3, p=p))]
    reply = f"Lasting {facts.duration}. Final answer: {letter}"
    first = (*(0.3 * p), 0.7)
    return Document(prompt, reply, reply, tuple(map(float, first)), tuple(map(float, p)), None, None, False, rotation)


def corpus_sha256(documents: list[Document]) -> str:
    """Hex sha256 over all documents, targets to nine decimals, in order."""
    digest = hashlib.sha256()
    for doc in documents:
        targets = [f"{p:.9f}" for p in (*doc.first, *(doc.stated or ()))]
        digest.update(sha256_of([doc.prompt, doc.reply, targets]).encode())
    return digest.hexdigest()
