"""Everything that the outputs say of a cell, as columns of a design. Knows log-probabilities; knows no residual.

A baseline of the margin and the persona alone leaves in the labels' log-probabilities what a probe then seems to find
in the residual stream. Source: ESTIMATORS, "Shift and disagreement".
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.interpolate import BSpline

from probe.behaviour import Outcomes
from probe.behaviour.columns import numbers_of
from probe.behaviour.scores import margin

KNOTS = (-8.0, -3.0, -1.0, 0.0, 1.0, 3.0, 8.0)
"""Knots of the cubic splines, in nats; log-ratios further out stay at the ends. They are fixed: nothing is fitted."""

LENGTHS = ("n_prompt", "n_gen")


def saturated_outputs(
    outcomes: Outcomes, table: pd.DataFrame, *, answer: bool = False, personas: bool = True
) -> Float[np.ndarray, "row column"]:
    """Splines of every label log-ratio and of the margin at the end of the prompt, of the log-odds of the label mass,
    and the lengths of prompt and answer (log, where told); what is of the labels for each persona on its own as well.

    ``answer`` adds the log-ratios at the answer site: what a residual read there must be judged against. Rows of NaN
    lack a latent label (or an answer site, where that is asked for).
    """
    curves = [*_ratios(outcomes.latent_logp), margin(outcomes), *(_ratios(outcomes.stated_logp) if answer else [])]
    labels = np.concatenate([splines(curve) for curve in curves], axis=1)
    others = [_lengths(table)]
    if (~np.isnan(outcomes.mass)).all():
        mass = np.clip(outcomes.mass, 1e-6, 1 - 1e-6)
        others.append(splines(np.log(mass / (1 - mass))))
    shared = np.concatenate([labels, *others], axis=1)
    if not personas:
        return shared
    is_persona = (outcomes.persona[:, None] == np.array(outcomes.personas, dtype=object)[None, :]).astype(float)
    each = (is_persona[:, :, None] * labels[:, None, :]).reshape(len(shared), -1)
    return np.concatenate([shared, is_persona, each], axis=1)


def margin_and_persona(outcomes: Outcomes) -> Float[np.ndarray, "row column"]:
    """The margin and the persona: the baseline that is too weak, for comparison."""
    is_persona = (outcomes.persona[:, None] == np.array(outcomes.personas, dtype=object)[None, :]).astype(float)
    return np.column_stack([np.minimum(margin(outcomes), KNOTS[-1]), is_persona])


def splines(values: Float[np.ndarray, " row"]) -> Float[np.ndarray, "row basis"]:
    """Cubic B-spline basis over :data:`KNOTS`, without its first function (an intercept is there); NaN stays NaN."""
    low, high = KNOTS[0], KNOTS[-1]
    knots = np.array([*[low] * 3, *KNOTS, *[high] * 3])
    clipped = np.clip(np.where(np.isnan(values), 0.0, values), low, high)
    basis = BSpline.design_matrix(clipped, knots, 3).toarray()[:, 1:]
    basis[np.isnan(values)] = np.nan
    return np.asarray(basis)


def _ratios(logp: Float[np.ndarray, "row label"]) -> list[np.ndarray]:
    """Every log-ratio of two labels (nats); of two impossible ones it is 0."""
    floored = np.where(np.isnan(logp), np.nan, np.maximum(logp, -100.0))
    n_labels = logp.shape[1]
    return [floored[:, j] - floored[:, i] for i in range(n_labels) for j in range(i + 1, n_labels)]


def _lengths(table: pd.DataFrame) -> Float[np.ndarray, "row column"]:
    told = [numbers_of(table, [name])[:, 0] for name in LENGTHS if name in table]
    kept = [np.log1p(length) for length in told if not np.isnan(length).any() and length.std() > 0]
    return np.stack([(one - one.mean()) / one.std() for one in kept], axis=1) if kept else np.zeros((len(table), 0))
