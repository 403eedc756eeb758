"""The facts of a generated vignette and the urgency that they add up to. Knows no text layout, persona or policy."""

from __future__ import annotations

from dataclasses import dataclass

SEVERITIES = {"mild": -0.8, "moderate": 0.0, "severe": 1.0}

DURATIONS = {
    "for ten minutes": 1.0,
    "for two hours": 0.7,
    "since this morning": 0.4,
    "since yesterday": 0.1,
    "for three days": -0.1,
    "for two weeks": -0.5,
    "for six months": -1.0,
}

ACUTE = {
    "chest pain": 5.2,
    "short breath": 5.0,
    "belly pain": 4.0,
    "headache": 3.7,
    "weak arm": 5.4,
    "slurred speech": 5.6,
    "fall from a ladder": 4.6,
    "head injury": 4.7,
    "deep cut": 3.9,
    "allergic swelling": 4.9,
    "high fever": 4.2,
    "vomiting blood": 5.8,
    "blurred vision": 4.3,
    "racing heart": 4.3,
    "leg swelling": 3.8,
    "back pain": 3.3,
}
"""Complaints of the emergency stratum, with their base urgency."""

ROUTINE = {
    "sore throat": 2.2,
    "runny nose": 1.5,
    "cough": 2.5,
    "ear pain": 2.4,
    "itchy rash": 2.2,
    "sprained ankle": 2.7,
    "knee ache": 1.8,
    "heartburn": 2.1,
    "poor sleep": 1.6,
    "tired legs": 1.7,
    "dry eyes": 1.2,
    "stiff shoulder": 1.7,
    "loose stools": 2.6,
    "burning urine": 2.9,
    "insect bite": 1.9,
    "toothache": 2.3,
    "nosebleed": 2.8,
    "low mood": 2.7,
}
"""Complaints of the primary-care stratum, with their base urgency."""

COMPLAINTS = ACUTE | ROUTINE

FINDINGS = {
    "sweating": 0.7,
    "nausea": 0.3,
    "fainting": 1.2,
    "confusion": 1.4,
    "stiff neck": 1.0,
    "fever": 0.6,
    "chills": 0.5,
    "numb legs": 1.0,
    "trembling": 0.3,
    "drooling": 1.0,
    "dizziness": 0.5,
    "blue lips": 1.4,
    "spreading redness": 0.6,
    "weight loss": 0.4,
    "thirst": 0.2,
    "hiccups": -0.2,
    "good appetite": -0.4,
    "normal walking": -0.4,
}

PAIRS = {
    ("chest pain", "sweating"): 1.0,
    ("headache", "stiff neck"): 1.0,
    ("back pain", "numb legs"): 1.2,
    ("belly pain", "fainting"): 0.8,
    ("sore throat", "drooling"): 1.0,
    ("itchy rash", "fever"): 1.0,
    ("burning urine", "chills"): 1.0,
    ("insect bite", "spreading redness"): 1.0,
}
"""Red flags only together: what a finding adds on top of its own weight when it meets this complaint."""

REASSURANCES = (
    "palpitations",
    "travel",
    "recent surgery",
    "smoking",
    "itching",
    "allergies",
    "cold hands",
    "poor appetite",
)
"""What a patient may deny without having been said to have it."""

HISTORIES = {
    "good health": -0.3,
    "hay fever": -0.1,
    "migraine": 0.0,
    "arthritis": 0.0,
    "asthma": 0.3,
    "high blood pressure": 0.3,
    "diabetes": 0.5,
    "kidney disease": 0.6,
    "heart failure": 0.8,
    "stroke": 0.8,
    "blood thinners": 0.7,
    "cancer treatment": 0.9,
}

TONES = {"": 0, "calm": 0, "frightened": 1, "begging": 1, "joking": -1, "dismissive": -1}
"""How the patient speaks, and its sign: +1 sounds worse than the facts, -1 better."""

EMERGENCY_SETTINGS = ("brought by ambulance", "at the emergency desk")
CLINIC_SETTINGS = ("on the clinic phone line", "at a routine visit")

DENIED = -0.3
"""What denying one of ``REASSURANCES`` adds."""

OLD_AGE = 70
OLD = 0.5

FAST_PULSE, FAST_PULSE_OLD = 104, 94
LOW_PRESSURE, LOW_PRESSURE_OLD = 94, 104
"""From which pulse and up to which pressure a vital sign counts, below and from ``OLD_AGE`` on."""


@dataclass(frozen=True)
class Facts:
    """Everything that a generated vignette says, and how it says it.

    ``denied`` is what the patient denies, empty if nothing: one of ``findings``, which it cancels, or else a mild
    reassurance. ``relative`` is a finding that a relative had, which says nothing of the patient. ``template`` and
    ``order`` fix the wording; ``aside`` is a sentence without any effect.
    """

    template: int
    age: int
    sex: str
    setting: str
    complaint: str
    severity: str
    duration: str
    findings: tuple[str, ...]
    denied: str
    history: str
    pulse: int
    pressure: int
    sats: int
    tone: str
    aside: int
    relative: str
    order: tuple[int, ...]

    @property
    def standing(self) -> tuple[str, ...]:
        """The findings that no denial cancels."""
        return tuple(finding for finding in self.findings if finding != self.denied)

    @property
    def emergency_setting(self) -> bool:
        """Whether the patient is seen in an emergency setting (visible in the text; most emergency cases are)."""
        return self.setting in EMERGENCY_SETTINGS


def abnormal_vitals(facts: Facts) -> dict[str, float]:
    """The vital signs that count, by name, with what each adds to the urgency."""
    found = {}
    if facts.pulse >= (FAST_PULSE_OLD if facts.age >= OLD_AGE else FAST_PULSE):
        found["fast pulse"] = 0.9 if facts.pulse >= 120 else 0.5
    if facts.pressure <= (LOW_PRESSURE_OLD if facts.age >= OLD_AGE else LOW_PRESSURE):
        found["low pressure"] = 0.9
    if facts.sats <= 93:
        found["low sats"] = 1.3 if facts.sats <= 90 else 0.7
    return found


def urgency(facts: Facts) -> float:
    """Urgency on a scale of 0 to 10 in steps of 0.1: the sum of what the facts add, with three interactions.

    A denial cancels the finding that it names, some findings count more with some complaints (``PAIRS``), and from
    ``OLD_AGE`` on pulse and blood pressure count from other values.
    """
    total = COMPLAINTS[facts.complaint] + SEVERITIES[facts.severity] + DURATIONS[facts.duration]
    total += HISTORIES[facts.history] + sum(abnormal_vitals(facts).values())
    total += sum(FINDINGS[f] + PAIRS.get((facts.complaint, f), 0.0) for f in facts.standing)
    if facts.denied and facts.denied not in facts.findings:
        total += DENIED
    if facts.age >= OLD_AGE:
        total += OLD
    return round(min(max(total, 0.0), 10.0), 1)
