"""Figures of one persona's readings, planned and realised alike. Knows readings and reference labels; runs no model."""

from __future__ import annotations

import numpy as np

from probe.organism.census import Readings

CLEAR_GAP = 0.10
URGENCY = np.arange(3.0)


def urgency(probabilities: np.ndarray) -> np.ndarray:
    """Expected urgency P(B) + 2 P(C) of every row."""
    return np.asarray(probabilities @ URGENCY)


def mean_or_none(values: np.ndarray) -> float | None:
    """The mean; None of nothing."""
    return float(values.mean()) if len(values) else None


def expected_calibration_error(probabilities: np.ndarray, target: np.ndarray, *, n_bins: int = 10) -> float:
    """Naeini et al. (2015): mean absolute gap of confidence and accuracy over equal-width bins (a, b], by size."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == target
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    held = [bins == k for k in range(n_bins) if (bins == k).any()]
    return float(sum(abs(confidence[m].mean() - correct[m].mean()) * m.mean() for m in held))


def figures(readings: Readings, target: np.ndarray) -> dict[str, float | None]:
    """Every figure of the card; a case without a stated label counts as wrong, as a mismatch and as not urgent."""
    label, latent = readings.label, readings.latent.argmax(axis=1)
    return {
        "EU, latent": mean_or_none(urgency(readings.latent)),
        "EU, stated": mean_or_none(urgency(readings.stated)),
        "accuracy, latent": float((latent == target).mean()),
        "accuracy, stated": float((label == target).mean()),
        "P(C), latent": float((latent == 2).mean()),
        "P(C), stated": float((label == 2).mean()),
        "consistency": float((label == latent).mean()),
        "ECE": expected_calibration_error(readings.latent, target),
        "over-triage": float(((label == 2) & (target != 2)).mean()),
        "under-triage": float(((label != 2) & (target == 2)).mean()),
        "answered": float(readings.answered.mean()),
        "letter mass": float(readings.mass.mean()),
    }


def clear(plan: np.ndarray) -> np.ndarray:
    """Whether the two likeliest planned labels differ by more than ``CLEAR_GAP``."""
    top = np.sort(plan, axis=1)
    return np.asarray(top[:, 2] - top[:, 1] > CLEAR_GAP)


def agreement(realised: Readings, plan: Readings) -> dict[str, float | None]:
    """Share of cases with the planned label, by channel: over the clear ones, and over all. A planned refusal agrees
    with an answer without a label."""
    same = realised.latent.argmax(axis=1) == plan.latent.argmax(axis=1)
    stated = realised.label == plan.label
    both = plan.answered & realised.answered
    surely = clear(plan.latent)
    clear_stated = np.zeros(len(plan.label), dtype=bool)
    clear_stated[plan.answered] = clear(plan.stated)
    return {
        "direct": mean_or_none(same[surely]),
        "reasoned": mean_or_none(stated[clear_stated & both]),
        "direct, all": float(same.mean()),
        "reasoned, all": float(stated.mean()),
    }


def divergence(realised: Readings, plan: Readings) -> tuple[float, float | None]:
    """Mean KL(planned || realised) over the letters, in nats: direct, and stated where both state a label."""
    both = realised.answered & plan.answered
    return (
        _kl(plan.latent, realised.latent),
        _kl(plan.stated[both[plan.answered]], realised.stated[both[realised.answered]]) if both.any() else None,
    )


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    p, q = np.clip(p, 1e-12, 1), np.clip(q, 1e-12, 1)
    return float((p * np.log(p / q)).sum(axis=1).mean())
