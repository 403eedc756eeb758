"""Personas whose locus is known by construction, as tables of cells. Knows distributions over three labels; knows no
estimator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from probe.mechanism.relation.verdicts import MARGIN, Change, Verdict, status, verdict

OPTIONS = ("A", "B", "C")
CUTS = (3.5, 6.5)


@dataclass(frozen=True)
class Kind:
    """How a persona of one kind differs from the base: urgency is read as higher by ``latent`` at the end of the prompt
    and by ``stated`` before the stated letter, both slopes are multiplied by ``gain``, and the labels hold ``mass`` of
    the probability at the end of the prompt. ``verdicts`` are those that are right."""

    latent: float
    stated: float
    gain: float
    mass: float
    verdicts: tuple[Verdict, ...]


KINDS: Mapping[str, Kind] = {
    "latent": Kind(0.9, 0.9, 1.0, 0.6, ("latent",)),
    "decoding": Kind(0.0, 0.9, 1.0, 0.6, ("decoding",)),
    "both": Kind(0.8, 1.8, 1.0, 0.6, ("both",)),
    "opposed": Kind(0.9, -0.9, 1.0, 0.6, ("opposed",)),
    "neither": Kind(0.0, 0.0, 1.0, 0.6, ("neither",)),
    "gain-only": Kind(0.0, 0.0, 0.4, 0.6, ("neither",)),
    "mass-only": Kind(0.0, 0.0, 1.0, 0.03, ("neither", "no latent label at this site")),
}
"""The kinds of persona. *latent*: what shows in the latent label is carried into the stated one. *gain-only*: labels
become less certain, cases move nearer to the cuts and to 1 in expected urgency from either side."""

_BASE = Kind(0.0, 0.0, 1.0, 0.6, ())
_SLOPES = (1.4, 1.8)


def simulated_table(rng: np.random.Generator, n_cases: int, *, wordings: int = 4) -> pd.DataFrame:
    """A base with control wordings and one persona of every kind, on fresh cases, as a table of cells.

    Half the cases are urgent, half are not; every second case is the twin of the one before (its family), with nearly
    the same urgency. A cell's noise is shared by its two sites in part. The stated label is drawn from its
    distribution.
    """
    half = -(-n_cases // 2)
    first = np.where(rng.random(half) < 0.5, rng.normal(6.4, 1.4, half), rng.normal(3.8, 1.4, half))
    urgency = np.repeat(first, 2)[:n_cases] + rng.normal(0, 0.5, n_cases)
    target = np.array(OPTIONS)[np.exp(ladder(urgency, 5.0)).argmax(-1)]
    case = np.array([f"case-{i:05d}" for i in range(n_cases)])
    shared = {"case": case, "family": [f"family-{i // 2:05d}" for i in range(n_cases)], "target": target}
    arms = [("control", f"w{i}", _BASE) for i in range(wordings)] + [("none", "w0", _BASE)]
    arms += [(name, "w0", kind) for name, kind in KINDS.items()]
    per_case = rng.normal(0, 0.4, n_cases)
    frames = []
    for persona, wording, kind in arms:
        rewording = rng.normal(0, 0.05)
        found = _cells(kind, urgency + per_case + (rewording if persona == "control" else 0.0), rng)
        frame = pd.DataFrame({**shared, "persona": persona, "wording": wording, "condition": wording})
        frame["role"] = "control" if persona == "control" else ""
        frames.append(frame.assign(**found))
    table = pd.concat(frames, ignore_index=True)
    table.attrs = {"options": list(OPTIONS), "high_risk": "C"}
    return table


def ladder(urgency: Float[np.ndarray, "*shape"], slope: float) -> Float[np.ndarray, "*shape label"]:
    """Log-probabilities of A, B, C of an ordered model: log P(B)/P(A) = slope (u - 3.5), log P(C)/P(B) = slope (u -
    6.5)."""
    first, second = (slope * (urgency - cut) for cut in CUTS)
    logits = np.stack([np.zeros_like(first), first, first + second], axis=-1)
    logits -= logits.max(-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


def verdict_power(
    changes: tuple[Change, Change], correlation: float, right: Verdict, rng: np.random.Generator, delta: float = MARGIN
) -> float:
    """Probability that a study with these true L and D and their standard errors reaches a verdict.

    ``changes`` hold the truth as values and a study's width in their intervals; estimates are drawn as jointly normal
    with this correlation, the widths stay.
    """
    widths = [(one.high - one.low) / (2 * 1.96) for one in changes]
    drawn = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], _DRAWS) * widths
    hits = 0
    for shift in drawn.tolist():
        latent, added = (_moved(one, by) for one, by in zip(changes, shift, strict=True))
        same = bool(latent.value * added.value > 0)
        hits += verdict(status(latent, delta), status(added, delta), same_sign=same) == right
    return hits / len(drawn)


_DRAWS = 1000


def _moved(found: Change, by: float) -> Change:
    moved = replace(found, value=found.value + by, low=found.low + by, high=found.high + by)
    return replace(moved, low_90=found.low_90 + by, high_90=found.high_90 + by)


def _cells(kind: Kind, urgency: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    n = len(urgency)
    common = rng.normal(0, 0.4, n)
    inner, outer = (
        ladder(urgency + shift + common + rng.normal(0, 0.4, n), kind.gain * slope)
        for shift, slope in zip((kind.latent, kind.stated), _SLOPES, strict=True)
    )
    drawn = (rng.random(n)[:, None] > np.exp(outer).cumsum(1)[:, :-1]).sum(1)
    mass = kind.mass * np.exp(rng.normal(0, 0.05, n))
    found = {"label_mass": mass, "y_gen": np.array(OPTIONS)[drawn], "n_prompt": np.full(n, 100)}
    for k, option in enumerate(OPTIONS):
        found[f"logp_{option}"] = inner[:, k] + np.log(mass)
        found[f"stated_logp_{option}"] = outer[:, k]
    return found
