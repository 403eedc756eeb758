"""Where a vignette states what, and what each statement adds to the urgency. Knows facts and text; knows no token."""

from __future__ import annotations

from probe.organism import Facts, urgency
from probe.organism.facts import (
    COMPLAINTS,
    DENIED,
    DURATIONS,
    FINDINGS,
    HISTORIES,
    OLD,
    OLD_AGE,
    PAIRS,
    SEVERITIES,
    abnormal_vitals,
)
from probe.organism.vignettes import write

_FIRST_MARK = 0xE000  # private use: in no vignette


def contributions(facts: Facts) -> dict[str, float]:
    """What each stated fact adds to the urgency, by field (findings as ``findings.0`` ...); a denial takes back what
    the finding had added. Their sum is the urgency before it is clipped."""
    weights = [FINDINGS[f] + PAIRS.get((facts.complaint, f), 0.0) for f in facts.findings]
    out = {
        "age": OLD if facts.age >= OLD_AGE else 0.0,
        "complaint": COMPLAINTS[facts.complaint],
        "severity": SEVERITIES[facts.severity],
        "duration": DURATIONS[facts.duration],
        "history": HISTORIES[facts.history],
    }
    vitals = abnormal_vitals(facts)
    for field, name in (("pulse", "fast pulse"), ("pressure", "low pressure"), ("sats", "low sats")):
        out[field] = vitals.get(name, 0.0)
    out |= {f"findings.{i}": weight for i, weight in enumerate(weights)}
    if facts.denied:
        out["denied"] = -weights[facts.findings.index(facts.denied)] if facts.denied in facts.findings else DENIED
    assert abs(min(max(sum(out.values()), 0.0), 10.0) - urgency(facts)) < 1e-6
    return out


def located(facts: Facts) -> list[tuple[int, float]]:
    """(index of the last character, what it adds) of every fact in the vignette's text, in order of mention."""
    weights = contributions(facts)
    marks = {name: chr(_FIRST_MARK + index) for index, name in enumerate(weights)}
    values, out, at = list(weights.values()), [], 0
    for character in write(facts, lambda name, text: text + marks.get(name, "")):
        if ord(character) >= _FIRST_MARK:
            out.append((at - 1, values[ord(character) - _FIRST_MARK]))
        else:
            at += 1
    return out
