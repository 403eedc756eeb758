"""What the packaged checkpoint does, counted: every persona on 5,000 cases, beside what was planned for it.

Knows the file that ``experiments/organism_census.py`` writes, and the plan; runs no model. Two truths, never mixed: an
estimator is held to the *realised* readings, training to the *planned* ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt16

from probe.organism.facts import Facts
from probe.organism.personas import DIAGNOSTICS, parse_persona
from probe.organism.plan import plan_of
from probe.organism.vignettes import facts_of, held_out_cases
from probe.values import Case, ProbeError
from probe.values.nearest import nearest

FILE = Path(__file__).parent / "checkpoint" / "census.npz"

PER_STRATUM = 2500
"""Cases of each stratum. The built-in cases (``builtin:triage``) are the first 300 of each."""

FORCED_PER_STRATUM = 300
"""Cases of each stratum on which the forced prefix was read too."""

PERSONAS: Mapping[str, str | None] = {
    "none": None,
    "helpful_assistant": "You are a helpful assistant.",
    "ed_physician": "You are an ED physician.",
    "ed_nurse": "You are an ED nurse.",
    "bold_ed_physician": "You are a bold ED physician.",
    "cautious_ed_physician": "You are a cautious ED physician.",
} | {role.id.replace("-", "_").replace(" ", "_"): f"You are {role.names[0]}." for role in DIAGNOSTICS.values()}
"""The personas of the census, by the ids of ``builtin:persona-paradox`` and ``builtin:diagnostics``, in their first
wording."""

STATUSES = ("parsed", "refused", "unparsable", "truncated", "conflicting")

_FLOOR = 40.0


@dataclass(frozen=True, eq=False)
class Readings:
    """What one persona does on a row of cases, planned or realised.

    ``latent`` is P(A), P(B), P(C) at the last prompt token, given that a letter comes there, and ``mass`` the
    probability of the three letters together. ``label`` is the stated label (0, 1, 2; -1 where none is stated), and
    ``stated``, with a row for each case where there is one, the distribution over the letters at the position before
    the stated letter: that is the last prompt token where the answer opens with its letter.
    """

    latent: Float[np.ndarray, "case label"]
    mass: Float[np.ndarray, " case"]
    label: Int[np.ndarray, " case"]
    stated: Float[np.ndarray, "answered label"]

    @property
    def answered(self) -> Bool[np.ndarray, " case"]:
        """Whether the case has a stated label."""
        return self.label >= 0

    def of(self, cases: Bool[np.ndarray, " case"]) -> Readings:
        """The same on some of the cases."""
        return Readings(self.latent[cases], self.mass[cases], self.label[cases], self.stated[cases[self.answered]])


@dataclass(frozen=True, eq=False)
class Arm:
    """One persona of the census: its text, what it does, how its answers ended, and the raw log-probabilities.

    ``prompt_end`` and ``answer`` are log-probabilities of the letters A, B, C in the whole vocabulary (nats);
    ``answer`` has a row for each case with a stated label, ``forced`` one for each of the first cases of each stratum:
    there the reply is made to begin with "Final answer:".
    """

    persona: str
    text: str | None
    realised: Readings
    status: tuple[str, ...]
    prompt_end: Float[np.ndarray, "case label"]
    answer: Float[np.ndarray, "answered label"]
    forced: Float[np.ndarray, "first label"]

    def forced_of(self, cases: Bool[np.ndarray, " case"]) -> Float[np.ndarray, "some label"]:
        """``forced`` on some of the cases.

        Raises:
            ProbeError: it was not read on one of them.
        """
        per_stratum, n_read = len(cases) // 2, len(self.forced) // 2
        read = np.arange(len(cases)) % per_stratum < n_read
        if others := int((cases & ~read).sum()):
            raise ProbeError(
                f"the forced prefix was read on the first {n_read} cases of each stratum, {others} of these cases are "
                f"others; take those of census.first({n_read})"
            )
        return np.asarray(self.forced[cases[read]])


@dataclass(frozen=True, eq=False)
class Census:
    """The checkpoint (``weights`` is the sha256 of its safetensors file) on ``per_stratum`` cases of each stratum."""

    weights: str
    per_stratum: int
    personas: tuple[str, ...]
    _arms: Mapping[str, Arm] = field(repr=False)

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """The cases, in the order of every array: emergency first."""
        return held_out_cases(self.per_stratum)

    @cached_property
    def strata(self) -> np.ndarray:
        """The stratum of each case."""
        return np.array([case.stratum for case in self.cases])

    @cached_property
    def target(self) -> Int[np.ndarray, " case"]:
        """The reference label of each case, 0, 1, 2 for A, B, C."""
        return np.array(["ABC".index(case.target) for case in self.cases])

    def first(self, n_per_stratum: int) -> Bool[np.ndarray, " case"]:
        """Which cases are among the first ``n_per_stratum`` of their stratum; 300 are those of ``builtin:triage``."""
        return np.arange(2 * self.per_stratum) % self.per_stratum < n_per_stratum

    def arm(self, persona: str) -> Arm:
        """One persona's arm.

        Raises:
            ProbeError: no persona of the census has this id.
        """
        if persona not in self._arms:
            raise ProbeError(f"the census has no persona {persona!r}. {nearest(persona, self.personas, 'persona')}")
        return self._arms[persona]

    def planned(self, persona: str) -> Readings:
        """The planned readings of one persona on the same cases."""
        return _planned_on_the_census(self.arm(persona).text, self.per_stratum)


def planned_readings(text: str | None, cases: Sequence[Case]) -> Readings:
    """What the plan says of a system text on generated cases.

    Raises:
        ProbeError: the plan is silent on the text or on a case.
    """
    return _planned(text, [facts_of(case) for case in cases])


@lru_cache(maxsize=64)
def _planned_on_the_census(text: str | None, per_stratum: int) -> Readings:
    return _planned(text, _facts_of_the_census(per_stratum))


@lru_cache(maxsize=2)
def _facts_of_the_census(per_stratum: int) -> tuple[Facts | None, ...]:
    return tuple(facts_of(case) for case in held_out_cases(per_stratum))


def _planned(text: str | None, found: Sequence[Facts | None]) -> Readings:
    persona, known = parse_persona(text), [facts for facts in found if facts is not None]
    if persona is None or len(known) < len(found):
        raise ProbeError(
            f"the plan is silent on {text!r} or on {len(found) - len(known)} of {len(found)} cases; it knows the "
            "sentences of its grammar and the cases of its generator"
        )
    plans = [plan_of(persona, facts) for facts in known]
    stated = [plan.stated for plan in plans]
    return Readings(
        latent=np.array([plan.direct for plan in plans]).reshape(-1, 3),
        mass=np.array([plan.mass for plan in plans]),
        label=np.array([-1 if one is None else int(one.argmax()) for one in stated]),
        stated=np.array([one for one in stated if one is not None]).reshape(-1, 3),
    )


@lru_cache(maxsize=2)
def read_census(path: Path = FILE) -> Census:
    """The census of the packaged checkpoint, or of another file that the script wrote.

    Raises:
        ProbeError: the file was written for other cases than the generator gives now.
    """
    with np.load(path, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        columns = {name: arrays[name] for name in arrays.files if name != "about"}
    per_stratum = int(about["per_stratum"])
    if about["cases"] != fingerprint(held_out_cases(per_stratum)):
        raise ProbeError(
            f"{path} counts other cases than the generator gives now; run experiments/organism_census.py again"
        )
    texts: dict[str, str | None] = about["personas"]
    arms = {
        persona: _arm(persona, text, {name: column[i] for name, column in columns.items()})
        for i, (persona, text) in enumerate(texts.items())
    }
    return Census(about["weights"], per_stratum, tuple(texts), arms)


def _arm(persona: str, text: str | None, columns: Mapping[str, np.ndarray]) -> Arm:
    label = columns["label"].astype(np.int64)
    prompt_end, forced = from_codes(columns["prompt_end"]), from_codes(columns["forced"])
    answer = from_codes(columns["answer"])[label >= 0]
    mass = np.exp(prompt_end).sum(axis=1)
    realised = Readings(_given_a_letter(prompt_end), mass, label, _given_a_letter(answer))
    status = tuple(STATUSES[code] for code in columns["status"])
    return Arm(persona, text, realised, status, prompt_end, answer, forced)


def _given_a_letter(logp: Float[np.ndarray, "case label"]) -> Float[np.ndarray, "case label"]:
    weights = np.exp(logp - logp.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def fingerprint(cases: Sequence[Case]) -> str:
    """Hex sha256 of the cases' texts, in order."""
    return hashlib.sha256("\n".join(case.input for case in cases).encode()).hexdigest()


def to_codes(logp: Float[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
    """Log-probabilities in two bytes: code q stands for -40 (q / 65535)^2 nats, so that steps are finest near 0.

    A probability moves by 4.1e-5 at most, a log-probability by 6.2e-4; what lies below -40 becomes -40.
    """
    return np.asarray(np.round(65535 * np.sqrt(np.clip(-logp, 0, _FLOOR) / _FLOOR)), dtype=np.uint16)


def from_codes(codes: UInt16[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The log-probabilities that codes stand for."""
    return np.asarray(-_FLOOR * (codes / 65535.0) ** 2)
