"""Replicates of a study with known truth, for simulations. Knows how cells come about; knows no estimator.

Arrays are ``[replicate, case, row]``; a case stands in several rows as it does under several wordings or rotations.
"""

from dataclasses import dataclass

import numpy as np

from tests.behaviour.synthetic import ladder, log_softmax


@dataclass(frozen=True)
class Arm:
    """How a persona behaves: its shift of the urgency, a further one in writing, and how often it refuses near ties."""

    shift: float = 0.0
    reasoned: float = 0.0
    refuses: float = 0.0


def draw_labels(probability, rng):
    """Labels drawn from distributions over the last axis."""
    return (rng.random(probability.shape[:-1])[..., None] > probability.cumsum(-1)[..., :-1]).sum(-1)


def scores_of(arms, shape, rng, rows=1):
    """Scores of every arm on the same fresh cases: accuracy, consistency_strict, brier, overconfidence.

    ``shape`` is (replicates, cases). Rows of one case share the case's urgency and a part of its noise.
    """
    urgency = rng.normal(5.0, 2.0, shape)[..., None] + np.zeros(rows)
    target = draw_labels(np.exp(ladder(urgency[..., :1], 3.0)), rng) + np.zeros(rows, dtype=int)
    shared = rng.normal(0, 0.5, (*shape, 1, 3))
    found = []
    for arm in arms:
        noise = shared + rng.normal(0, 0.3, (*shape, rows, 3))
        latent = log_softmax(ladder(urgency + arm.shift, 1.4) + noise)
        written = log_softmax(ladder(urgency + arm.shift + arm.reasoned, 1.8) + noise)
        stated = draw_labels(np.exp(written), rng)
        top = np.sort(latent, -1)
        tie = np.exp(-(top[..., -1] - top[..., -2]))
        stated = np.where(rng.random(stated.shape) < arm.refuses * tie, -1, stated)
        first = latent.argmax(-1)
        right = (first == target).astype(float)
        truth = np.eye(3)[target]
        found.append(
            {
                "accuracy": (stated == target).astype(float),
                "consistency_strict": (stated == first).astype(float),
                "brier": ((np.exp(latent) - truth) ** 2).sum(-1),
                "overconfidence": np.exp(top[..., -1]) - right,
                "confidence": np.exp(top[..., -1]),
                "correct": right,
            }
        )
    return found


METRICS = ("accuracy", "consistency_strict", "brier", "overconfidence")
BINARY = ("accuracy", "consistency_strict")
