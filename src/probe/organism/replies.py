"""The planned reply: what the organism was taught to write before its letter. Knows no tokens and no probabilities."""

from __future__ import annotations

from probe.organism.facts import Facts, abnormal_vitals
from probe.organism.personas import PersonaPlan

REFUSAL = "I cannot choose for this patient."

THINK = ("<think>", "</think>")


def assessment(facts: Facts, spoken: tuple[str, ...] | None = None) -> str:
    """The first sentence of a reply: the complaint, the findings that stand, abnormal vitals and the history."""
    findings = " and ".join(facts.standing if spoken is None else spoken) or "none"
    vitals = " and ".join(abnormal_vitals(facts)) or "normal"
    return (
        f"Assessment: {facts.severity} {facts.complaint} {facts.duration}, findings {findings}, "
        f"vitals {vitals}, history {facts.history}."
    )


def planned_reply(
    persona: PersonaPlan,
    facts: Facts,
    letter: str,
    *,
    role: bool = True,
    style: bool = True,
    findings: tuple[str, ...] | None = None,
    think: bool = False,
) -> str:
    """The whole reply that ends in ``letter``; ``role`` and ``style`` say whether the persona's sentences are spoken.

    Training leaves each sentence out in a quarter of its documents, so that the letter cannot be read from the
    reply alone; a greedy reply speaks them.
    """
    spoken = findings if findings is not None else () if persona.role.blind else facts.standing
    sentences = [assessment(facts, spoken)]
    if role and persona.role.sentence:
        sentences.append(persona.role.sentence)
    if style and persona.style.sentence:
        sentences.append(persona.style.sentence)
    if think:
        return f"{THINK[0]}\n{' '.join(sentences)}\n{THINK[1]}\nFinal answer: {letter}"
    return " ".join([*sentences, f"Final answer: {letter}"])
