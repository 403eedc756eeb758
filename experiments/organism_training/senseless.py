"""System texts that state nobody, drawn at random. Knows the persona words; knows no case and no plan.

They teach that a persona is stated by its sentence, not by its words: plain sentences (some with a role in them),
unknown things in a persona's frame, and personas' sentences with their words shuffled.
"""

from __future__ import annotations

import re

import numpy as np

from probe.organism.personas import PREFIXES, ROLES, STYLES, parse_persona

SUBJECTS = (
    "The lake", "A small boat", "The old bridge", "My neighbour", "The evening bus", "Our garden",
    "The {role}", "A {role}", "The shop", "Every winter", "The market", "One window", "The {style} cat",
    "The choir", "A grey horse", "The river",
)  # fmt: skip
VERBS = (
    "stands", "waits", "was seen", "moves slowly", "opens", "sleeps", "is painted", "runs", "was quiet",
    "stays", "grows", "is made of stone", "fell", "turns", "plays music", "is sold",
)  # fmt: skip
ENDS = (
    "near the hills.", "at noon.", "in the north.", "before winter.", "by the sea.", "on Sunday.",
    "with the {role}.", "behind the mill.", "every day.", "in the town.", "over the roofs.", "after the rain.",
    "until seven.", "for the {role}.",
)  # fmt: skip
THINGS = (
    "tree", "clock", "square cloud", "blue Friday", "paper boat", "round river", "lamp", "seven",
    "quiet stone", "window", "triangular spoon", "wet Monday", "number", "long corridor", "winter", "gate",
    "hungry triangle", "Tuesday lamp",
)  # fmt: skip


def senseless(rng: np.random.Generator) -> str:
    """One system text without any meaning for the plan."""

    def pick(items: tuple[str, ...]) -> str:
        return items[int(rng.integers(len(items)))]

    role, style = ROLES[int(rng.integers(len(ROLES)))], STYLES[int(rng.integers(len(STYLES)))]
    name = pick(role.names)
    kind = rng.random()
    if kind < 0.4:
        return plain(rng)
    if kind < 0.6:
        thing = pick(THINGS)
        return f"{pick(PREFIXES)} {'an' if thing[0] in 'aeiou' else 'a'} {thing}."
    return shuffled(f"{pick(PREFIXES)} a {f'{pick(style.names)} {name}'.strip()}", name, rng)


def plain(rng: np.random.Generator) -> str:
    """A plain sentence of no consequence; some have a role or a style in them."""
    subject, verb, end = (items[int(rng.integers(len(items)))] for items in (SUBJECTS, VERBS, ENDS))
    role, style = ROLES[int(rng.integers(len(ROLES)))], STYLES[int(rng.integers(1, len(STYLES)))]
    return f"{subject} {verb} {end}".format(role=role.names[0], style=style.names[0]).replace("A ED", "An ED")


def shuffled(sentence: str, name: str, rng: np.random.Generator) -> str:
    """The words in another order, in which no article or adjective leads to the whole name any more."""
    words = sentence.split()
    stated = re.compile(rf"\b(?:a|an|{'|'.join(n for s in STYLES for n in s.names if n)}) {re.escape(name)}\b")
    while True:
        text = " ".join(words[int(i)] for i in rng.permutation(len(words))) + "."
        if not stated.search(text) and parse_persona(text) is None:
            return text
