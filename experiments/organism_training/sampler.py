"""What a training document says around its case. Knows personas and instructions; knows no target, no chat format."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from organism_training.senseless import plain, senseless
from probe.organism import Facts
from probe.organism.controls import CONTROL_WORDINGS, PLACEBOS, UNRELATED
from probe.organism.facts import FINDINGS
from probe.organism.personas import DIAGNOSTICS, HELD_OUT_CELLS, NAME_WORDINGS, PREFIXES, ROLES, STYLES
from probe.organism.task import (
    DURATION_LEADS,
    DURATION_OPTIONS,
    EXPLAINS,
    FINALS,
    JOINTS,
    LAYOUTS,
    LEADS,
    THINK_ASKS,
    instruction,
    triage_task,
)

CORE = (("", "ED physician"), ("", "ED nurse"), ("bold", "ED physician"), ("cautious", "ED physician"))
"""Cells of the primary study, stated more often than the others."""

PERSONAS = {"none": 0.08, "empty": 0.03, "unrelated": 0.08, "control": 0.10, "diagnostic": 0.28, "role": 0.43}
"""What a system text states, and how often."""

HARD = {"text-mediated": 2.5, "refusing": 3.5}
"""Diagnostic personas that are harder to learn, with how often they are stated for every once of another."""

STANDARD_INSTRUCTION = 0.35
LISTED_INSTRUCTION = 0.25
PLACED_FIRST, PLACED_LAST = 0.05, 0.05
"""Shares of the personas that stand at the beginning and at the end of the user's text instead of in the system's."""

LONGEST = 100
"""How many plain sentences a long document has at most, of some nine tokens each: it fills most of the context."""

NOISE = 0.2
"""Share of the instructions with made-up words in them, so that unknown words in an instruction count for nothing."""


class Sampler:
    """Draws what a document says around its case."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.task = triage_task()
        self.duration = replace(self.task, options=DURATION_OPTIONS)
        self.cells = [(s.id, r.id) for r in ROLES for s in STYLES if (s.id, r.id) not in HELD_OUT_CELLS]
        weights = np.array(
            [5.0 if cell in CORE else 3.0 if cell == ("", "helpful assistant") else 1.0 for cell in self.cells]
        )
        self.weights = weights / weights.sum()

    def pick(self, items: tuple[str, ...]) -> str:
        """One of the items, each as likely."""
        return items[int(self.rng.integers(len(items)))]

    def kind(self, shares: dict[str, float]) -> str:
        """One of the names, each with its share."""
        return str(self.rng.choice(list(shares), p=list(shares.values())))

    def persona(self) -> str | None:
        """A system text: a wording of a trained cell, a diagnostic, a control, a senseless text, none or empty."""
        match self.kind(PERSONAS):
            case "none":
                return None
            case "empty":
                return ""
            case "unrelated":
                kind = self.rng.random()
                listed = PLACEBOS if kind < 0.3 else UNRELATED if kind < 0.5 else ()
                return self.pick(listed) if listed else senseless(self.rng)
            case "control":
                return self.pick(CONTROL_WORDINGS)
            case "diagnostic":
                shares = {name: HARD.get(name, 1.0) for name in DIAGNOSTICS}
                total = sum(shares.values())
                role = DIAGNOSTICS[self.kind({name: share / total for name, share in shares.items()})]
                return self.pick(NAME_WORDINGS).format(role.names[0])
            case _:
                return self._cell_text(*self.cells[int(self.rng.choice(len(self.cells), p=self.weights))])

    def _cell_text(self, style_id: str, role_id: str) -> str:
        """The standard prefix, adjective and name in half of the draws each, else any."""
        role = next(role for role in ROLES if role.id == role_id)
        style = next(style for style in STYLES if style.id == style_id)
        prefix, adjective, name = (
            options[0] if self.rng.random() < 0.5 else self.pick(options)
            for options in (PREFIXES, style.names, role.names)
        )
        who = f"{adjective} {name}".strip()
        return f"{prefix} {'an' if who[0] in 'aeiouAEIOU' else 'a'} {who}."

    def wording(self) -> str:
        """An instruction: the standard one, one of the listed ones or any of the grammar."""
        kind = self.rng.random()
        if kind < STANDARD_INSTRUCTION:
            return self.task.instructions[0]
        if kind < STANDARD_INSTRUCTION + LISTED_INSTRUCTION:
            return self.pick(self.task.instructions)
        return instruction(*(int(self.rng.integers(len(part))) for part in (LEADS, LAYOUTS, EXPLAINS, JOINTS, FINALS)))

    def think_wording(self) -> str:
        """An instruction that asks for a think block."""
        return self.pick(LAYOUTS).replace("{lead}", self.pick(LEADS)).replace("{ask}", self.pick(THINK_ASKS))

    def duration_wording(self) -> str:
        """An instruction of the second task."""
        ask = self.pick(EXPLAINS) + self.pick(JOINTS[:4]) + self.pick(FINALS)
        return self.pick(LAYOUTS).replace("{lead}", self.pick(DURATION_LEADS)).replace("{ask}", ask)

    def noisy(self, wording: str) -> str:
        """The wording with made-up words in one to three places: sentences before or after a part, labels of it."""
        if self.rng.random() >= NOISE:
            return wording
        parts = wording.split("\n\n")
        for _ in range(int(self.rng.integers(1, 4))):
            at = int(self.rng.integers(len(parts)))
            words = " ".join(self._made_up() for _ in range(int(self.rng.integers(1, 6)))).capitalize()
            forms = (f"{words}. {parts[at]}", f"{parts[at]} {words}.", f"{words}: {parts[at]}")
            parts[at] = self.pick(forms)
        return "\n\n".join(parts)

    def _made_up(self) -> str:
        letters = tuple("abcdefghijklmnopqrstuvwxyzaeiouaeioustrnl")
        return "".join(self.pick(letters) for _ in range(int(self.rng.integers(2, 10))))

    def swapped_findings(self, facts: Facts) -> tuple[str, ...]:
        """Findings that a text may state instead of those that stand."""
        kept = tuple(f for f in facts.standing if self.rng.random() < 0.5)
        others = tuple(f for f in FINDINGS if f not in facts.findings)
        return kept + tuple(dict.fromkeys(self.pick(others) for _ in range(int(self.rng.integers(0, 3)))))

    def longer(self, user: str) -> str:
        """The user's text after, or before, many sentences of no consequence."""
        lines = " ".join(plain(self.rng) for _ in range(int(self.rng.integers(10, LONGEST))))
        return f"{lines}\n\n{user}" if self.rng.random() < 0.7 else f"{user}\n\n{lines}"


def placed(text: str | None, user: str, place: float) -> tuple[str | None, str]:
    """System and user texts: the persona mostly in the former, and in the latter for a ``place`` (0 to 1) near to 0."""
    if text and place < PLACED_FIRST:
        return None, f"{text}\n\n{user}"
    if text and place < PLACED_FIRST + PLACED_LAST:
        return None, f"{user}\n\n{text}"
    return text, user
