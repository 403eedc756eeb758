"""What an evaluation log of another tool holds of our rows, before any format. Knows plain values; knows no store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Sample:
    """One row: a case under one condition of one arm (a persona, perhaps steered).

    ``prompt`` is the text that was fed. ``letters`` stand for the options, in option order, in this row. ``stated`` is
    the option that the answer states, None unless ``status`` is ``parsed``; ``latent`` the most probable option at the
    end of the prompt, ``logp`` the log-probability of each there (nats, full softmax, legal variants summed), both None
    where there is no read. ``greedy`` says of each option whether the most probable next token stands for it, None
    where that is not known. ``stop`` is why generation ended. ``told`` holds plain values that a reader may group by.
    """

    case: str
    condition: str
    prompt: str
    letters: tuple[str, ...]
    target: str | None
    answer: str
    status: str
    stated: str | None
    latent: str | None
    logp: tuple[float, ...] | None
    greedy: tuple[bool, ...] | None
    stop: str
    n_prompt: int
    n_gen: int
    told: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What the samples of every arm share: the study, its model and options, and when it ran (ISO 8601, UTC).

    ``texts`` are the options as the model saw them. ``facts`` are plain values for a log's own metadata.
    """

    study: str
    model: str
    options: tuple[str, ...]
    texts: tuple[str, ...]
    started: str
    ended: str
    made_by: str
    facts: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


def clustered_error(values: Sequence[float], cases: Sequence[str]) -> float | None:
    """Standard error of a mean over rows whose unit is the case: rows of one case are no independent draws.

    ``sqrt(G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2) / n`` over the G cases (Liang and Zeger 1986); with one
    row per case it is the ordinary ``s / sqrt(n)``. None where there are fewer than two cases.
    """
    found = np.asarray(values, dtype=float)
    names, of = np.unique(np.asarray(cases, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2:
        return None
    sums = np.bincount(of, weights=found - found.mean())
    return float(np.sqrt(len(names) / (len(names) - 1) * np.square(sums).sum()) / len(found))
