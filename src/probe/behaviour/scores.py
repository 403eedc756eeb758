"""One number per cell, the stuff that metrics average. Knows outcomes; knows no arm, interval or test.

Every score is NaN where the cell says nothing about it. Scores named *strict* count an unparsed answer against the
persona, because a score over answered cells only would reward a persona that merely refuses more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from probe.behaviour.outcomes import ABSENT, Outcomes

Scores: TypeAlias = Float[np.ndarray, " row"]
Score: TypeAlias = Callable[[Outcomes], Scores]


def accuracy(outcomes: Outcomes) -> Scores:
    """1 where the stated label is the reference; an unparsed answer is not (strict)."""
    return _where(outcomes.status != ABSENT, outcomes.stated == outcomes.reference)


def accuracy_latent(outcomes: Outcomes) -> Scores:
    """1 where the latent label is the reference."""
    return _where(outcomes.latent >= 0, outcomes.latent == outcomes.reference)


def consistency(outcomes: Outcomes) -> Scores:
    """1 where stated and latent label agree, over parsed answers: the paper's consistency rate."""
    return _where((outcomes.stated >= 0) & (outcomes.latent >= 0), outcomes.stated == outcomes.latent)


def consistency_strict(outcomes: Outcomes) -> Scores:
    """1 where stated and latent label agree; an unparsed answer is a mismatch."""
    return _where((outcomes.status != ABSENT) & (outcomes.latent >= 0), outcomes.stated == outcomes.latent)


def confidence(outcomes: Outcomes) -> Scores:
    """Softmax probability of the latent label, over the labels only, at the end of the prompt."""
    return _where(outcomes.latent >= 0, np.exp(_of_label(outcomes.latent_logp, outcomes.latent)))


def overconfidence(outcomes: Outcomes) -> Scores:
    """Confidence minus correctness of the latent label: positive means overconfident."""
    return np.asarray(confidence(outcomes) - accuracy_latent(outcomes))


def brier(outcomes: Outcomes) -> Scores:
    """Squared distance of the latent label distribution from the reference, summed over labels: 0 (best) to 2."""
    truth = np.eye(len(outcomes.options))[outcomes.reference]
    return np.asarray(((np.exp(outcomes.latent_logp) - truth) ** 2).sum(1))


def log_loss(outcomes: Outcomes) -> Scores:
    """Minus the log-probability of the reference under the latent label distribution, in nats."""
    return -_of_label(outcomes.latent_logp, outcomes.reference)


def high_risk(outcomes: Outcomes) -> Scores:
    """1 where the stated label is the high-urgency one; an unparsed answer is not (strict)."""
    return _where((outcomes.status != ABSENT) & (outcomes.high is not None), outcomes.stated == outcomes.high)


def high_risk_latent(outcomes: Outcomes) -> Scores:
    """1 where the latent label is the high-urgency one."""
    return _where((outcomes.latent >= 0) & (outcomes.high is not None), outcomes.latent == outcomes.high)


def expected_urgency_latent(outcomes: Outcomes) -> Scores:
    """Expected rank of the option (0, 1, 2 ... by rising urgency) under the latent distribution: P(B) + 2 P(C)."""
    return _expected_rank(outcomes.latent_logp)


def expected_urgency_stated(outcomes: Outcomes) -> Scores:
    """Expected rank of the option under the label distribution at the answer site; NaN where there is no such site."""
    return _expected_rank(outcomes.stated_logp)


def parsed(outcomes: Outcomes) -> Scores:
    """1 where the answer was parsed."""
    return _where(outcomes.status != ABSENT, outcomes.status == "parsed")


def refused(outcomes: Outcomes) -> Scores:
    """1 where the answer was a refusal."""
    return _where(outcomes.status != ABSENT, outcomes.status == "refused")


def label_mass(outcomes: Outcomes) -> Scores:
    """Full-vocabulary probability on all labels together at the end of the prompt."""
    return outcomes.mass


def _where(qualifies: np.ndarray, value: np.ndarray) -> Scores:
    return np.where(qualifies, np.asarray(value, dtype=float), np.nan)


def _of_label(logp: Float[np.ndarray, "row label"], label: np.ndarray) -> Scores:
    return np.take_along_axis(logp, np.maximum(label, 0)[:, None], axis=1)[:, 0]


def _expected_rank(logp: Float[np.ndarray, "row label"]) -> Scores:
    return np.asarray(np.exp(logp) @ np.arange(logp.shape[1]))
