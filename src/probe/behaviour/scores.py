"""One number per cell, the stuff that metrics average. Knows outcomes; knows no arm, interval or test.

Every score is NaN where the cell says nothing about it. Scores named *strict* count an unparsed answer against the
persona, because a score over answered cells only would reward a persona that merely refuses more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from probe.behaviour.columns import ABSENT
from probe.behaviour.outcomes import Outcomes

Scores: TypeAlias = Float[np.ndarray, " row"]
Score: TypeAlias = Callable[[Outcomes], Scores]

LOW_MASS = 0.5
"""Below this probability on all labels together a latent label means little."""


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


def consistency_letter_first(outcomes: Outcomes) -> Scores:
    """:func:`consistency` over answers that begin with their letter, where greedy decoding leaves little to differ."""
    return _where(outcomes.letter_first == 1, consistency(outcomes))


def consistency_later_letter(outcomes: Outcomes) -> Scores:
    """:func:`consistency` over parsed answers that write something before their letter."""
    return _where(outcomes.letter_first == 0, consistency(outcomes))


def confidence(outcomes: Outcomes) -> Scores:
    """Softmax probability of the latent label, over the labels only, at the end of the prompt."""
    return _where(outcomes.latent >= 0, np.exp(_of_label(outcomes.latent_logp, outcomes.latent)))


def stated_confidence(outcomes: Outcomes) -> Scores:
    """Latent probability of the stated label (softmax over the labels, end of the prompt), over parsed answers."""
    qualifies = (outcomes.stated >= 0) & (outcomes.latent >= 0)
    return _where(qualifies, np.exp(_of_label(outcomes.latent_logp, outcomes.stated)))


def stated_correct(outcomes: Outcomes) -> Scores:
    """1 where the stated label is the reference, over parsed answers."""
    return _where(outcomes.stated >= 0, outcomes.stated == outcomes.reference)


def stated_overconfidence(outcomes: Outcomes) -> Scores:
    """Latent probability of the stated label minus its correctness, over parsed answers."""
    return np.asarray(stated_confidence(outcomes) - stated_correct(outcomes))


def stated_brier(outcomes: Outcomes) -> Scores:
    """Squared distance of the latent probability of the stated label from its correctness: 0 (best) to 1."""
    return np.asarray(stated_overconfidence(outcomes) ** 2)


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


def urgency_at(site: int) -> Score:
    """Expected rank of the option at one of the table's further answer sites, by its number."""
    return lambda outcomes: _expected_rank(outcomes.site_logp[:, site])


def probability_latent(option: int) -> Score:
    """Probability of an option under the label distribution at the end of the prompt."""
    return lambda outcomes: np.asarray(np.exp(outcomes.latent_logp[:, option]))


def probability_stated(option: int) -> Score:
    """Probability of an option under the label distribution at the answer site; NaN where there is no such site."""
    return lambda outcomes: np.asarray(np.exp(outcomes.stated_logp[:, option]))


def has_status(status: str) -> Score:
    """1 where the answer was read as this status."""
    return lambda outcomes: _where(outcomes.status != ABSENT, outcomes.status == status)


def parsed(outcomes: Outcomes) -> Scores:
    """1 where the answer was parsed."""
    return _where(outcomes.status != ABSENT, outcomes.status == "parsed")


def refused(outcomes: Outcomes) -> Scores:
    """1 where the answer was a refusal."""
    return _where(outcomes.status != ABSENT, outcomes.status == "refused")


def label_mass(outcomes: Outcomes) -> Scores:
    """Full-vocabulary probability on all labels together at the end of the prompt."""
    return outcomes.mass


def low_mass(outcomes: Outcomes) -> Scores:
    """1 where the labels together hold less than half of the probability: the latent label means little there."""
    return _where(~np.isnan(outcomes.mass), outcomes.mass < LOW_MASS)


def entropy(outcomes: Outcomes) -> Scores:
    """Entropy of the whole next-token distribution at the end of the prompt, in nats."""
    return outcomes.entropy


def margin(outcomes: Outcomes) -> Scores:
    """Log-probability of the latent label minus that of the runner-up, in nats."""
    top = np.sort(outcomes.latent_logp, axis=1)
    # A runner-up without any probability makes the margin infinite, and infinity minus infinity no margin at all.
    return np.where(outcomes.latent >= 0, top[:, -1] - top[:, -2], np.nan)


def _where(qualifies: np.ndarray, value: np.ndarray) -> Scores:
    return np.where(qualifies, np.asarray(value, dtype=float), np.nan)


def _of_label(logp: Float[np.ndarray, "row label"], label: np.ndarray) -> Scores:
    return np.take_along_axis(logp, np.maximum(label, 0)[:, None], axis=1)[:, 0]


def _expected_rank(logp: Float[np.ndarray, "row label"]) -> Scores:
    return np.asarray(np.exp(logp) @ np.arange(logp.shape[1]))
