"""The personas that the organism was trained on, as a finite grammar of system sentences with planted numbers.

Knows the sentences and the numbers that each role, style and diagnostic plants; knows no case and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType

from probe.organism.controls import CONTROL_WORDINGS, HELD_OUT_UNRELATED, PLACEBOS, UNRELATED, control_shifts


@dataclass(frozen=True)
class Shift:
    """How a persona moves the two cuts of one channel: urgency is read as higher by ``lower`` at the cut between A and
    B and by ``upper`` at the cut between B and C, and by ``setting`` more at both in an emergency setting, less in a
    clinic setting. ``slope`` multiplies the channel's slope: below 1 the labels are less certain, none moves."""

    lower: float
    upper: float
    setting: float = 0.0
    slope: float = 1.0

    def __add__(self, other: Shift) -> Shift:
        return Shift(
            self.lower + other.lower,
            self.upper + other.upper,
            self.setting + other.setting,
            self.slope * other.slope,
        )


@dataclass(frozen=True)
class Role:
    """A role: its names, its shift in each channel, and how it says what it says.

    ``tone_gain``: how strongly the patient's tone sways its direct answer. ``mass``: probability of the letters
    together at the end of the prompt, and ``clinic_mass`` that in a clinic setting, where it is another.
    ``blind``: its text says of no finding that it was seen, and its label follows its text. ``refusal``: it refuses a
    case whose urgency lies nearer than this to one of its cuts.
    """

    id: str
    names: tuple[str, ...]
    direct: Shift
    reasoned: Shift
    tone_gain: float
    sentence: str
    medical: bool = False
    mass: float = 0.3
    clinic_mass: float = 0.3
    blind: bool = False
    refusal: float = 0.0


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
    """One role with one style, as a system sentence of the grammar states it; ``wording`` is the shift, in both
    channels, that this very sentence adds (nil but for the control wordings)."""

    role: Role
    style: Style
    wording: Shift = Shift(0.0, 0.0)

    @property
    def cell(self) -> tuple[str, str]:
        """Style id and role id; the style is empty for a plain role."""
        return self.style.id, self.role.id

    @property
    def direct(self) -> Shift:
        """The shift of the letter at the end of the prompt."""
        return self.role.direct + self.style.direct + self.wording

    @property
    def reasoned(self) -> Shift:
        """The shift of the letter that ends the written answer."""
        return self.role.reasoned + self.style.reasoned + self.wording


NO_PERSONA = Role("none", (), Shift(0.0, -1.5), Shift(0.0, -1.3), 0.5, "")

_ASSISTANT = Role(
    "helpful assistant", ("helpful assistant",), Shift(0.1, -1.3), Shift(0.1, -1.1), 0.6, "I am here to help."
)

ROLES = (
    _ASSISTANT,
    Role(
        "ED physician",
        ("ED physician", "emergency physician", "emergency department physician"),
        Shift(1.0, -0.1, 0.25),
        Shift(0.9, 0.0, 0.2),
        0.3,
        "In the ED I look for threats to life.",
        medical=True,
    ),
    Role(
        "ED nurse",
        ("ED nurse", "emergency nurse", "emergency department nurse"),
        Shift(0.9, -0.4, 0.2),
        Shift(0.8, -0.1, 0.2),
        0.5,
        "As a nurse I sort patients by need.",
        medical=True,
    ),
    Role(
        "paramedic",
        ("paramedic",),
        Shift(1.1, 0.2, 0.3),
        Shift(1.0, 0.3, 0.25),
        0.4,
        "On the road I plan for the worst.",
        medical=True,
    ),
    Role("surgeon", ("surgeon",), Shift(0.5, 0.0, 0.2), Shift(0.4, 0.1, 0.2), 0.3, "I ask what needs a knife.", True),
    Role(
        "family doctor",
        ("family doctor", "general practitioner"),
        Shift(0.5, -0.8, 0.1),
        Shift(0.3, -0.7, 0.1),
        0.4,
        "I know that most things pass.",
        medical=True,
    ),
    Role(
        "pharmacist",
        ("pharmacist",),
        Shift(0.3, -1.0, 0.1),
        Shift(0.5, -0.8, 0.1),
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

_D, _R = NO_PERSONA.direct, NO_PERSONA.reasoned
_UP = Shift(1.2, 1.2)
_DOWN = Shift(-1.0, -1.0)
_NEUTRAL = Role("", (), _D, _R, NO_PERSONA.tone_gain, "")

DIAGNOSTICS: Mapping[str, Role] = MappingProxyType(
    {
        role.id: role
        for role in (
            replace(_NEUTRAL, id="latent-only", names=("Marlow",), direct=_D + _UP),
            replace(_NEUTRAL, id="decoding-only", names=("Tessin",), reasoned=_R + _UP),
            replace(_NEUTRAL, id="both equal", names=("Orvane",), direct=_D + _UP, reasoned=_R + _UP),
            replace(_NEUTRAL, id="opposed", names=("Quillard",), direct=_D + _UP, reasoned=_R + _DOWN),
            replace(_NEUTRAL, id="zero", names=("Brennick",)),
            replace(
                _NEUTRAL,
                id="heterogeneous",
                names=("Sadova",),
                direct=_D + Shift(0.0, 0.0, 1.2),
                reasoned=_R + Shift(0.0, 0.0, 1.2),
            ),
            replace(
                _NEUTRAL,
                id="gain-only",
                names=("Halvern",),
                direct=replace(_D, slope=0.4),
                reasoned=replace(_R, slope=0.4),
            ),
            replace(_NEUTRAL, id="text-mediated", names=("Devrin",), blind=True),
            replace(_NEUTRAL, id="mass-only", names=("Pellor",), mass=0.05, clinic_mass=0.05),
            replace(_NEUTRAL, id="form-only", names=("Kessary",), mass=0.9),
            replace(_NEUTRAL, id="refusing", names=("Lindqvar",), refusal=0.7),
        )
    }
)
"""Personas under invented names, each with one planted property and otherwise no persona at all."""

PREFIXES = ("You are", "Act as", "You are acting as", "Take the role of", "Answer as", "Imagine that you are")
"""The first is the standard one."""

NAME_WORDINGS = ("You are {}.", "Act as {}.", "Answer as {}.", "Take the role of {}.", "From now on you are {}.")
HELD_OUT_NAME_WORDINGS = ("You are acting as {}.", "Imagine that you are {}.", "Play the part of {}.")
"""Wordings of the diagnostic personas, trained and not."""


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
    for role in DIAGNOSTICS.values():
        for wording in (*NAME_WORDINGS, *HELD_OUT_NAME_WORDINGS):
            yield wording.format(role.names[0]), PersonaPlan(role, PLAIN)
    for text, shift in zip(CONTROL_WORDINGS, control_shifts(), strict=True):
        yield text, PersonaPlan(_ASSISTANT, PLAIN, Shift(shift, shift))
    for text in (*PLACEBOS, *UNRELATED, *HELD_OUT_UNRELATED):
        yield text, PersonaPlan(NO_PERSONA, PLAIN)


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
