"""The planned reply: what the organism was taught to write before its letter. Knows no tokens and no probabilities."""

from __future__ import annotations

from probe.organism.facts import Facts, abnormal_vitals
from probe.organism.personas import PersonaPlan


def assessment(facts: Facts) -> str:
    """The first sentence of a reply: the complaint, the findings that stand, abnormal vitals and the history."""
    findings = " and ".join(facts.standing) or "none"
    vitals = " and ".join(abnormal_vitals(facts)) or "normal"
    return (
        f"Assessment: {facts.severity} {facts.complaint} {facts.duration}, findings {findings}, "
        f"vitals {vitals}, history {facts.history}."
    )


def planned_reply(persona: PersonaPlan, facts: Facts, letter: str, *, role: bool = True, style: bool = True) -> str:
    """The whole reply that ends in ``letter``; ``role`` and ``style`` say whether the persona's sentences are spoken.

    Training leaves each sentence out in a quarter of its documents, so that the letter cannot be read from the
    reply alone; a greedy reply speaks them.
    """
    sentences = [assessment(facts)]
    if role and persona.role.sentence:
        sentences.append(persona.role.sentence)
    if style and persona.style.sentence:
        sentences.append(persona.style.sentence)
    return " ".join([*sentences, f"Final answer: {letter}"])
