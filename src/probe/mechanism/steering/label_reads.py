"""Label distributions of the arms of a comparison, and what is measured on them. Knows arrays; knows no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from probe.values import ProbeError

FLOOR = -80.0
"""Log-probabilities below this one count as it: what a float32 softmax cannot tell from 0 has no ratio."""

MOVED_OTHER = 0.05
"""Where the mean probability outside the labels differs by more between two arms, what of the labels alone is said of
them is printed with its worst case."""


@dataclass(frozen=True, eq=False)
class JudgedCases:
    """The cases that the arms of a comparison are judged on, and how their labels are scored.

    ``target`` is the index of the reference label. Labels stand in rising urgency where ``ranked``; ``high`` is the
    high-risk one, None where nobody named it.
    """

    case: np.ndarray
    family: np.ndarray
    stratum: np.ndarray
    target: Int[np.ndarray, " case"]
    ranked: bool = True
    high: int | None = None

    def __len__(self) -> int:
        return len(self.case)


def with_other(logp: Float[np.ndarray, "*rows label"]) -> Float[np.ndarray, "*rows label_and_other"]:
    """Probabilities of the labels and, last, of everything else.

    Raises:
        ProbeError: the labels of a row have more than all of the probability.
    """
    p = np.exp(np.maximum(logp.astype(np.float64), FLOOR))
    rest = 1 - p.sum(-1, keepdims=True)
    if (rest < -1e-4).any():
        raise ProbeError(
            f"log-probabilities of labels come from the full softmax, and these sum to {1 - float(rest.min()):.4f}; "
            "give them as they were read, not shifted"
        )
    return np.concatenate([p, np.maximum(rest, np.exp(FLOOR))], axis=-1)


def divergence(
    arm: Float[np.ndarray, "*rows label"], other: Float[np.ndarray, "*rows label"]
) -> Float[np.ndarray, "*rows"]:
    """KL(arm || other) over the labels and everything else, in nats, row by row: how far an arm moved.

    Everything else is one class, so that this is at most the divergence over the whole vocabulary.
    """
    p, q = with_other(arm), with_other(other)
    return np.asarray(np.maximum((p * (np.log(p) - np.log(q))).sum(-1), 0.0))


def log_ratios(logp: Float[np.ndarray, "*rows label"]) -> Float[np.ndarray, "*rows label"]:
    """Each label's log-probability less their mean (centred log-ratios): every pair's log-ratio is a difference of two.

    With them an inner product weighs all pairs of labels alike. Source: Aitchison 1986.
    """
    known = np.maximum(logp.astype(np.float64), FLOOR)
    return np.asarray(known - known.mean(-1, keepdims=True))


def outcomes(logp: Float[np.ndarray, "case label"], cases: JudgedCases) -> Mapping[str, Float[np.ndarray, " case"]]:
    """What the labels come to in each case, over the labels alone (their probabilities sum to 1).

    ``expected_urgency``: rank of the option, 0 to K-1, expected; ``p_high_risk``, ``p_target``: probability of the
    high-risk and of the reference label; ``accuracy``: 1 where the most probable label is the reference.
    """
    p = with_other(logp)[:, :-1]
    p /= p.sum(-1, keepdims=True)
    found: dict[str, Float[np.ndarray, " case"]] = {}
    if cases.ranked:
        found["expected_urgency"] = np.asarray(p @ np.arange(p.shape[1]))
    if cases.high is not None:
        found["p_high_risk"] = np.asarray(p[:, cases.high])
    found["p_target"] = p[np.arange(len(p)), cases.target]
    found["accuracy"] = (logp.argmax(-1) == cases.target).astype(float)
    return found


def worst_case(arm: Float[np.ndarray, "case label"], other: Float[np.ndarray, "case label"]) -> tuple[float, float]:
    """Between what the mean difference of expected urgency lies, whatever label the other tokens would have come to.

    The probability outside the labels counts as the least urgent label in one arm and as the most urgent in the other.
    """
    rank = np.arange(arm.shape[1])

    def ends(logp: Float[np.ndarray, "case label"]) -> tuple[float, float]:
        p = with_other(logp)
        low = p[:, :-1] @ rank
        return float(low.mean()), float((low + p[:, -1] * rank[-1]).mean())

    (low, high), (low_other, high_other) = ends(arm), ends(other)
    return low - high_other, high - low_other
