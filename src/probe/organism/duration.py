"""The second task, which no persona moves: for how long has the complaint lasted? Knows its cases, answers and plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from probe.organism.facts import DURATIONS, Facts
from probe.organism.personas import parse_persona
from probe.organism.plan import Planned
from probe.organism.task import DURATION_OPTIONS
from probe.organism.vignettes import facts_of, held_out_cases
from probe.values import Case

SURE = 0.96
"""Planned probability of the right answer; the other two share the rest."""

_TODAY, _DAYS = 3, 5
"""Of the durations, from the shortest: the first three are "today", the next two "days"."""


def duration_label(facts: Facts) -> int:
    """The right option: 0 (today), 1 (days), 2 (weeks)."""
    place = list(DURATIONS).index(facts.duration)
    return 0 if place < _TODAY else 1 if place < _DAYS else 2


def duration_reply(facts: Facts, letter: str) -> str:
    """The reply that the organism was taught to write."""
    return f"Lasting {facts.duration}. Final answer: {letter}"


def duration_cases(n_per_stratum: int = 300) -> tuple[Case, ...]:
    """The built-in cases with the duration as their reference label."""
    out = []
    for case in held_out_cases(n_per_stratum):
        facts = facts_of(case)
        assert facts is not None
        out.append(replace(case, target=DURATION_OPTIONS[duration_label(facts)].id))
    return tuple(out)


def planned_duration(persona_text: str | None, case: Case) -> Planned | None:
    """The plan of the second task, the same for every persona; None where the plan says nothing, as in the first."""
    persona, facts = parse_persona(persona_text), facts_of(case)
    if persona is None or facts is None:
        return None
    p = np.where(np.arange(3) == duration_label(facts), SURE, (1 - SURE) / 2)
    return Planned(direct=p, reasoned=p)
