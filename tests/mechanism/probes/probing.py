"""Cells whose rows are alike within a case, with activations that know as much as a test plants."""

from __future__ import annotations

import numpy as np
import pandas as pd

from probe.mechanism import fold_of
from probe.mechanism.linear.ridge import nested
from probe.mechanism.linear.scores import fold_auroc, macro
from probe.mechanism.probes.nulls import Moves


def cells(cases: int, personas: int) -> pd.DataFrame:
    case = np.repeat([f"case-{i:03d}" for i in range(cases)], personas)
    stratum = np.repeat(np.where(np.arange(cases) % 2, "emergency", "primary_care"), personas)
    persona = np.tile([f"p{j}" for j in range(personas)], cases)
    return pd.DataFrame({"case": case, "family": case, "stratum": stratum, "persona": persona, "condition": ""})


def alike(table: pd.DataFrame, width: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian rows of which ``share`` of the variance is the case's own."""
    member = np.unique(table["case"], return_inverse=True)[1]
    own = rng.normal(size=(member.max() + 1, width))[member]
    return np.sqrt(share) * own + np.sqrt(1 - share) * rng.normal(size=(len(table), width))


def case_labels(table: pd.DataFrame, rng: np.random.Generator, rate: float = 0.5, own: float = 0.9) -> np.ndarray:
    """0/1 labels that the rows of a case mostly share."""
    member = np.unique(table["case"], return_inverse=True)[1]
    latent = np.sqrt(own) * rng.normal(size=member.max() + 1)[member] + np.sqrt(1 - own) * rng.normal(size=len(table))
    return (latent > np.quantile(latent, 1 - rate)).astype(np.int64)


def p_of(x: np.ndarray, label: np.ndarray, fold: np.ndarray, moves: Moves) -> float:
    """The permutation p of a nested probe."""
    vectors = np.concatenate([label[None], label[moves.index]]).T
    score = nested(x, vectors.astype(float), fold).score
    area = macro(fold_auroc(score, vectors > 0, fold), np.arange(vectors.shape[1]))
    return float((1 + (area[1:] >= area[0]).sum()) / len(area))


def folds(table: pd.DataFrame, n: int = 5) -> np.ndarray:
    return fold_of(table["family"].to_numpy(dtype=object), n, 0, table["stratum"].to_numpy(dtype=object))
