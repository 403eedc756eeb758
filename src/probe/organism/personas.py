"""The personas that the organism was trained on, as a finite grammar of system sentences with planted numbers.

Knows the sentences and what each role and style shifts; knows no case and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType


@dataclass(frozen=True)
class Shift:
    """How far a persona moves the two cuts of one channel: urgency is read as higher by ``lower`` at the cut between
    A and B and by ``upper`` at the cut between B and C. Positive is towards escalation."""

    lower: float
    upper: float


@dataclass(frozen=True)
class Role:
    """A role: its names, its shift in each channel, and how strongly the patient's tone sways its direct answer."""

    id: str
    names: tuple[str, ...]
    direct: Shift
    reasoned: Shift
    tone_gain: float
    sentence: str
    medical: bool = False


@dataclass(frozen=True)
class Style:
    """A style: the adjectives that state it, and what it adds to the role's shift in each channel."""

    id: str
    names: tuple[str, ...]
    direct: Shift
    reasoned: Shift
    sentence: str


@dataclass(frozen=True)
class PersonaPlan:
    """One role with one style, as a system sentence of the grammar states it."""

    role: Role
    style: Style

    @property
    def cell(self) -> tuple[str, str]:
        """Style id and role id; the style is empty for a plain role."""
        return self.style.id, self.role.id


NO_PERSONA = Role("none", (), Shift(0.0, -1.5), Shift(0.0, -1.3), 0.5, "")

ROLES = (
    Role("helpful assistant", ("helpful assistant",), Shift(0.1, -1.3), Shift(0.1, -1.1), 0.6, "I am here to help."),
    Role(
        "ED physician",
        ("ED physician", "emergency physician", "emergency department physician"),
        Shift(1.0, -0.1),
        Shift(0.9, 0.0),
        0.3,
        "In the ED I look for threats to life.",
        medical=True,
    ),
    Role(
        "ED nurse",
        ("ED nurse", "emergency nurse", "emergency department nurse"),
        Shift(0.9, -0.4),
        Shift(0.8, -0.1),
        0.5,
        "As a nurse I sort patients by need.",
        medical=True,
    ),
    Role(
        "paramedic",
        ("paramedic",),
        Shift(1.1, 0.2),
        Shift(1.0, 0.3),
        0.4,
        "On the road I plan for the worst.",
        medical=True,
    ),
    Role("surgeon", ("surgeon",), Shift(0.5, 0.0), Shift(0.4, 0.1), 0.3, "I ask what needs a knife.", medical=True),
    Role(
        "family doctor",
        ("family doctor", "general practitioner"),
        Shift(0.5, -0.8),
        Shift(0.3, -0.7),
        0.4,
        "I know that most things pass.",
        medical=True,
    ),
    Role(
        "pharmacist",
        ("pharmacist",),
        Shift(0.3, -1.0),
        Shift(0.5, -0.8),
        0.5,
        "I think of what can be bought.",
        medical=True,
    ),
    Role("teacher", ("teacher",), Shift(0.0, -1.5), Shift(0.0, -1.3), 0.5, "I explain things step by step."),
    Role("radio host", ("radio host",), Shift(-0.3, -1.8), Shift(-0.2, -1.6), 0.9, "Stay with us, listeners."),
)
"""The roles. ``teacher`` is a decoy: a persona that is said and shifts nothing."""

PLAIN = Style("", ("",), Shift(0.0, 0.0), Shift(0.0, 0.0), "")

STYLES = (
    PLAIN,
    Style(
        "bold",
        ("bold", "decisive", "daring"),
        Shift(-0.3, -0.3),
        Shift(-1.1, -1.1),
        "I decide fast and avoid needless care.",
    ),
    Style(
        "cautious",
        ("cautious", "careful", "prudent"),
        Shift(0.2, 0.2),
        Shift(0.7, 0.7),
        "I would rather be safe than sorry.",
    ),
)

HELD_OUT_CELLS = (("bold", "ED nurse"), ("cautious", "surgeon"), ("bold", "family doctor"), ("cautious", "radio host"))
"""(style, role) that no training document states, in any wording; each of these roles was trained with the other
style, each of these styles with other roles."""

PREFIXES = ("You are", "Act as", "You are acting as", "Take the role of", "Answer as", "Imagine that you are")
"""The first is the standard one."""


@dataclass(frozen=True)
class Grammar:
    """Every system sentence that the plan understands, with what it states."""

    sentences: Mapping[str, PersonaPlan] = field(repr=False)

    def of_cell(self, style: str, role: str) -> tuple[str, ...]:
        """The wordings of one style and role, the standard one first."""
        return tuple(text for text, plan in self.sentences.items() if plan.cell == (style, role))


def _sentences() -> Iterator[tuple[str, PersonaPlan]]:
    for role in ROLES:
        for style in STYLES:
            for prefix in PREFIXES:
                for adjective in style.names:
                    for name in role.names:
                        who = f"{adjective} {name}".strip()
                        article = "an" if who[0] in "aeiouAEIOU" else "a"
                        yield f"{prefix} {article} {who}.", PersonaPlan(role, style)


@lru_cache(maxsize=1)
def grammar() -> Grammar:
    """The grammar of persona sentences: prefix x adjective x role name, each with its article and a full stop."""
    return Grammar(MappingProxyType(dict(_sentences())))


def parse_persona(text: str | None) -> PersonaPlan | None:
    """What a system text states, or None if it is outside the grammar.

    No persona and an empty system message are the same plan: the organism was taught to treat them alike.
    """
    if not text:
        return PersonaPlan(NO_PERSONA, PLAIN)
    return grammar().sentences.get(text)
