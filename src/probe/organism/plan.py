"""The planted truth: for a persona and a case, the exact distribution over A, B, C in each channel.

Knows the planted equations; knows no token, no model and no measurement.

With urgency ``u``, the cuts ``t1, t2`` of the reference label, and the numbers of persona and channel:

    log P(B)/P(A) = b s (u' - t1 + lower + k setting)        log P(C)/P(B) = b s (u' - t2 + upper + k setting)

where ``b`` is the channel's slope, ``s`` the persona's factor of it, ``k`` the persona's number for the setting, and
``setting`` is +1 in an emergency setting and -1 in a clinic setting.

*Direct* (the letter, were it given at the end of the prompt): ``u' = u + tone_gain x tone``.
*Reasoned* (the letter after "Final answer:"): ``u'`` is the urgency of the facts as *the written text* states them; it
is ``u`` unless the text leaves findings out. The reasoning discounts the patient's tone.

The *numbers* of a channel are these raw quantities of a persona. They do not depend on the case, so a planted code of
them may be moved between cases and strata.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from probe.organism.facts import TONES, Facts, urgency
from probe.organism.personas import PersonaPlan, parse_persona
from probe.organism.vignettes import CUTS, facts_of
from probe.values import Case

DIRECT_SLOPE = 3.0
REASONED_SLOPE = 3.5

DIRECT_NUMBERS = ("lower", "upper", "setting", "slope", "tone_gain", "mass")
REASONED_NUMBERS = ("lower", "upper", "setting", "slope")
"""Names of the raw numbers of each channel, in the order of :func:`numbers`; ``mass`` is the letters' log-odds."""


@dataclass(frozen=True, eq=False)
class Planned:
    """The planned distributions over the options A, B, C of one persona on one case.

    ``direct`` belongs to the letter logits at the last prompt token (given that a letter is said), ``reasoned`` to
    the letter that ends the written answer. ``mass`` is the probability of all letters at the last prompt token;
    ``refuses``: the answer declines to choose.
    """

    direct: Float[np.ndarray, " label"]
    reasoned: Float[np.ndarray, " label"]
    mass: float = 0.3
    refuses: bool = False

    @property
    def stated(self) -> Float[np.ndarray, " label"] | None:
        """The distribution of the letter that a greedy answer states: the direct one where the answer opens with its
        letter, and None where it declines to choose."""
        if self.refuses:
            return None
        return self.direct if self.mass > 0.5 else self.reasoned


def planned(persona_text: str | None, case: Case) -> Planned | None:
    """The plan for a persona's system text on a case; None where the plan says nothing.

    The plan is silent on persona texts outside the grammar and on cases that the generator did not write. Probabilities
    are exact; their argmax is the planned label.
    """
    persona, facts = parse_persona(persona_text), facts_of(case)
    if persona is None or facts is None:
        return None
    return plan_of(persona, facts)


def plan_of(persona: PersonaPlan, facts: Facts, *, findings: tuple[str, ...] | None = None) -> Planned:
    """The planned distributions of a persona on facts.

    ``findings`` are those that the answer's text states; by default what this persona writes of itself.
    """
    if findings is None:
        findings = spoken(persona, facts)
    direct, reasoned = numbers(persona, facts)
    level, written = levels(facts, findings)
    return Planned(
        direct=direct_policy(direct, level, facts),
        reasoned=reasoned_policy(reasoned, written, facts),
        mass=float(1 / (1 + np.exp(-direct[-1]))),
        refuses=near_cut(persona, facts),
    )


def spoken(persona: PersonaPlan, facts: Facts) -> tuple[str, ...]:
    """The findings that this persona's own text states."""
    return () if persona.role.blind else facts.standing


def levels(facts: Facts, findings: tuple[str, ...]) -> tuple[float, float]:
    """Urgency of the facts, and urgency of the facts as a text with these findings states them."""
    denied = facts.denied if facts.denied not in facts.findings else ""
    return urgency(facts), urgency(replace(facts, findings=findings, denied=denied))


def near_cut(persona: PersonaPlan, facts: Facts) -> bool:
    """Whether the persona declines the case, because its urgency lies too near to one of the persona's own cuts."""
    if not persona.role.refusal:
        return False
    shift, level = persona.reasoned, urgency(facts)
    cuts = (CUTS[0] - shift.lower, CUTS[1] - shift.upper)
    return min(abs(level - cut) for cut in cuts) < persona.role.refusal


def numbers(persona: PersonaPlan, facts: Facts) -> tuple[Float[np.ndarray, " direct"], Float[np.ndarray, " reasoned"]]:
    """The raw numbers of a persona in each channel, in the order of ``DIRECT_NUMBERS`` and ``REASONED_NUMBERS``.

    Only the letter mass of the form-only persona depends on the case, by its setting.
    """
    role = persona.role
    mass = role.mass if facts.emergency_setting else role.clinic_mass
    shifts = [np.array([s.lower, s.upper, s.setting, s.slope]) for s in (persona.direct, persona.reasoned)]
    return np.array([*shifts[0], role.tone_gain, np.log(mass / (1 - mass))]), shifts[1]


def direct_policy(numbers: Float[np.ndarray, " direct"], level: float, facts: Facts) -> Float[np.ndarray, " label"]:
    """P(A), P(B), P(C) at the last prompt token, given that a letter is said."""
    lower, upper, setting, slope, tone_gain, _ = numbers.tolist()
    sign = 1.0 if facts.emergency_setting else -1.0
    swayed = level + tone_gain * TONES[facts.tone] + sign * setting
    return policy(swayed, lower, upper, slope * DIRECT_SLOPE)


def reasoned_policy(
    numbers: Float[np.ndarray, " reasoned"], written: float, facts: Facts
) -> Float[np.ndarray, " label"]:
    """P(A), P(B), P(C) of the letter that ends a text which states facts of this urgency."""
    lower, upper, setting, slope = numbers.tolist()
    sign = 1.0 if facts.emergency_setting else -1.0
    return policy(written + sign * setting, lower, upper, slope * REASONED_SLOPE)


def policy(level: float, lower: float, upper: float, slope: float) -> Float[np.ndarray, " label"]:
    """P(A), P(B), P(C) at an urgency, for cuts moved by ``lower`` and ``upper`` and a slope in nats per unit."""
    first = slope * (level - CUTS[0] + lower)
    second = slope * (level - CUTS[1] + upper)
    logits = np.array([0.0, first, first + second])
    weights: Float[np.ndarray, " label"] = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())
