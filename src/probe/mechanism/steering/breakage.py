"""Whether a steered model still answers: parse rate, label mass, entropy, repetition. Knows numbers; knows no model.

A model that broke can show any change of its labels; none of it is what a persona does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

NGRAM = 4
"""Tokens of a sequence that counts as repeated where it stands again in the same text."""


@dataclass(frozen=True)
class Health:
    """How well an arm still answers; NaN where it was not measured.

    ``label_mass``: mean probability on all labels together. ``entropy``: mean entropy of the next token, in nats.
    ``parse_rate``: share of answers with a label. ``repetition``: mean share of repeated sequences of 4 tokens.
    """

    label_mass: float = np.nan
    entropy: float = np.nan
    parse_rate: float = np.nan
    repetition: float = np.nan


@dataclass(frozen=True)
class Limits:
    """How far an arm may fall from the worse of the runs that it is compared with (no persona, prompted).

    Shares of the reference for what is a scale of its own (label mass, entropy), differences for rates.
    """

    label_mass: float = 0.5
    entropy_share: float = 0.25
    entropy_rise: float = 1.0
    parse_rate: float = 0.10
    repetition: float = 0.10


def broken(arm: Health, references: Sequence[Health], limits: Limits | None = None) -> tuple[str, ...]:
    """Why a model counts as broken, in words; empty where it still answers.

    Broken is an arm whose label mass falls below half of the smallest of the references, whose entropy falls below a
    quarter of their smallest or rises more than a nat above their largest, whose parse rate falls more than ten points
    below, or whose repetition rises more than ten points above. What was not measured breaks nothing.
    """
    least = limits or Limits()

    def of(name: str) -> tuple[float, float, float]:
        known = [value for one in references if not np.isnan(value := getattr(one, name))]
        return float(getattr(arm, name)), min(known, default=np.nan), max(known, default=np.nan)

    mass, mass_low, _ = of("label_mass")
    entropy, entropy_low, entropy_high = of("entropy")
    parsed, parsed_low, _ = of("parse_rate")
    repeated, _, repeated_high = of("repetition")
    reasons = (
        (mass < least.label_mass * mass_low, f"label mass {mass:.2f} (was {mass_low:.2f})"),
        (entropy < least.entropy_share * entropy_low, f"entropy {entropy:.2f} nats (was {entropy_low:.2f})"),
        (entropy > entropy_high + least.entropy_rise, f"entropy {entropy:.2f} nats (was {entropy_high:.2f})"),
        (parsed < parsed_low - least.parse_rate, f"parse rate {parsed:.2f} (was {parsed_low:.2f})"),
        (repeated > repeated_high + least.repetition, f"repetition {repeated:.2f} (was {repeated_high:.2f})"),
    )
    return tuple(words for fell, words in reasons if fell)


def collapse_point(strengths: Sequence[float], fell: Sequence[bool]) -> float | None:
    """The smallest strength from which on the model is broken at every strength that was tried; None where it stands
    at the largest."""
    found = None
    for strength, down in sorted(zip(strengths, fell, strict=True), reverse=True):
        if not down:
            break
        found = strength
    return found


def repetition_rate(tokens: Sequence[int], n: int = NGRAM) -> float:
    """Share of the sequences of n tokens that stood before in the same text; 0 for a text too short to have two."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def mean_health(
    mass: Float[np.ndarray, " case"],
    entropy: Float[np.ndarray, " case"],
    parsed: Float[np.ndarray, " case"] | None = None,
    repeated: Float[np.ndarray, " case"] | None = None,
) -> Health:
    """The means over cases; cases that are NaN are left out."""
    return Health(*(_mean(one) for one in (mass, entropy, parsed, repeated)))


def _mean(values: Float[np.ndarray, " case"] | None) -> float:
    return float("nan") if values is None or np.isnan(values).all() else float(np.nanmean(values))
