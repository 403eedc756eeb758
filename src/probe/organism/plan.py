"""The planned truth: for a persona and a case, the exact distribution over A, B, C in each channel.

Knows the planted equations; knows no token, no model and no measurement.

With urgency ``u``, the cuts ``t1, t2`` of the reference label, and the shift ``(lower, upper)`` of persona and channel:

    log P(B)/P(A) = slope (u' - t1 + lower)        log P(C)/P(B) = slope (u' - t2 + upper)

*Direct* (the letter, were it given at the end of the prompt): ``u' = u + tone_gain x tone``.
*Reasoned* (the letter after "Final answer:"): ``u' = u``, for the reasoning discounts the patient's tone.
The shift of a persona is ``none + m (role - none) + style`` where ``m`` is 1.2 for a medical role in an emergency
setting, 0.8 for one in a clinic setting, and 1 for any other role.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probe.organism.facts import TONES, Facts, urgency
from probe.organism.personas import NO_PERSONA, PersonaPlan, Shift, parse_persona
from probe.organism.vignettes import CUTS, facts_of
from probe.values import Case

DIRECT_SLOPE = 3.0
REASONED_SLOPE = 3.5
EMERGENCY_GAIN = 1.2
CLINIC_GAIN = 0.8


@dataclass(frozen=True, eq=False)
class Planned:
    """The planned distributions over the options A, B, C of one persona on one case.

    ``direct`` belongs to the letter logits at the last prompt token (given that a letter is said), ``reasoned`` to
    the letter that ends the written answer.
    """

    direct: Float[np.ndarray, " label"]
    reasoned: Float[np.ndarray, " label"]


def planned(persona_text: str | None, case: Case) -> Planned | None:
    """The plan for a persona's system text on a case; None where the plan says nothing.

    The plan is silent on persona texts outside the grammar and on cases that the generator did not write. Probabilities
    are exact; their argmax is the planned label.
    """
    persona, facts = parse_persona(persona_text), facts_of(case)
    if persona is None or facts is None:
        return None
    return plan_of(persona, facts)


def plan_of(persona: PersonaPlan, facts: Facts) -> Planned:
    """The planned distributions of a persona on facts."""
    gain = _context_gain(persona, facts)
    role, style = persona.role, persona.style
    level = urgency(facts)
    swayed = level + role.tone_gain * TONES[facts.tone]
    return Planned(
        direct=policy(swayed, _shift(NO_PERSONA.direct, role.direct, style.direct, gain), DIRECT_SLOPE),
        reasoned=policy(level, _shift(NO_PERSONA.reasoned, role.reasoned, style.reasoned, gain), REASONED_SLOPE),
    )


def policy(level: float, shift: Shift, slope: float) -> Float[np.ndarray, " label"]:
    """P(A), P(B), P(C) at an urgency, for cuts moved by ``shift`` and a slope in nats per unit of urgency."""
    lower = slope * (level - CUTS[0] + shift.lower)
    upper = slope * (level - CUTS[1] + shift.upper)
    logits = np.array([0.0, lower, lower + upper])
    weights: Float[np.ndarray, " label"] = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def _context_gain(persona: PersonaPlan, facts: Facts) -> float:
    if not persona.role.medical:
        return 1.0
    return EMERGENCY_GAIN if facts.emergency_setting else CLINIC_GAIN


def _shift(none: Shift, role: Shift, style: Shift, gain: float) -> Shift:
    return Shift(
        none.lower + gain * (role.lower - none.lower) + style.lower,
        none.upper + gain * (role.upper - none.upper) + style.upper,
    )
