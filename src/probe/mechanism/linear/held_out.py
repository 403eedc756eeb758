"""A linear readout of continuous outcomes, trained on other cases and other personas. Knows arrays; knows no label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from probe.mechanism.linear.moments import Moments, fewer_columns

STRENGTHS = 10.0 ** np.arange(-5, 4)
"""Ridge penalties that are tried, as a multiple of the mean eigenvalue of the training rows' covariance."""

GROUPS = 5
"""Parts into which the personas are divided; with no more personas than these each is a part of its own."""


@dataclass(frozen=True, eq=False)
class _Block:
    """Moments of some rows, with the sums of their outcomes and of the products with these; blocks add up."""

    x: Moments
    y: Float[np.ndarray, " outcome"]
    xy: Float[np.ndarray, "column outcome"]

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> _Block:
        return cls(Moments.of(x), y.sum(0), x.T @ y)

    def __add__(self, other: _Block) -> _Block:
        return _Block(self.x + other.x, self.y + other.y, self.xy + other.xy)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Predictions of fits without a row's case, once for every part of the personas that is left out.

    ``part`` is that of each row's own persona. Two arms are compared under *one* fit, that without the persona: between
    fits that leave out different personas the intercepts differ, which alone would show a shift.
    """

    part: Int[np.ndarray, " row"]
    by_part: Float[np.ndarray, "part row outcome"]

    @property
    def own(self) -> Float[np.ndarray, "row outcome"]:
        """Each row's prediction by the fit that saw neither its case nor its persona."""
        return np.asarray(self.by_part[self.part, np.arange(len(self.part))])


def held_out_readout(
    x: Float[np.ndarray, "row d_model"],
    y: Float[np.ndarray, "row outcome"],
    fold: Int[np.ndarray, " row"],
    persona: np.ndarray,
) -> HeldOut:
    """Ridge predictions of every row by fits that saw neither its fold of cases nor one part of the personas.

    With one persona only the cases are held out. The penalty is chosen, inside the training rows, by a fit that leaves
    out one more fold and one more part of the personas; inputs are centred on the training rows, and their variances
    kept as they are. Rows with a NaN outcome never fit, and are predicted all the same; what no fit can predict is NaN.
    """
    x = fewer_columns(np.asarray(x, np.float64))
    part = parts_of(persona)
    n_folds, n_parts = int(fold.max()) + 1, int(part.max()) + 1
    usable = ~np.isnan(y).any(1)
    blocks = {
        (f, g): _Block.of(x[rows], y[rows])
        for f in range(n_folds)
        for g in range(n_parts)
        if (rows := np.flatnonzero((fold == f) & (part == g) & usable)).size
    }
    predicted = np.full((n_parts, *y.shape), np.nan)
    for f in range(n_folds):
        judged = np.flatnonzero(fold == f)
        for g in range(n_parts):
            inner = ((f + 1) % n_folds, (g + 1) % n_parts)
            few, many = _without(blocks, [(f, g), inner], n_parts), _without(blocks, [(f, g)], n_parts)
            validating = (fold == inner[0]) & (part == inner[1]) & usable
            if few is None or many is None or not validating.any():
                continue
            strength = _chosen(few, x[validating], y[validating])
            predicted[g, judged] = _Ridge(many).predict(x[judged], strength)
    return HeldOut(part, predicted)


def _without(blocks: dict[tuple[int, int], _Block], out: list[tuple[int, int]], n_parts: int) -> _Block | None:
    """The moments of all rows whose fold is none of these and, with several parts, whose part is none of these."""
    folds, parts = {f for f, _ in out}, {g for _, g in out} if n_parts > 1 else set()
    if n_parts <= len(parts):  # two personas: nothing would be left to choose the penalty on
        parts = {out[0][1]}
    kept = [moments for (f, g), moments in blocks.items() if f not in folds and g not in parts]
    total = None
    for moments in kept:
        total = moments if total is None else total + moments
    return total if total is not None and total.x.n > 2 else None


class _Ridge:
    """Ridge regression of every strength at once, from one eigendecomposition of the centred second moments."""

    def __init__(self, rows: _Block) -> None:
        n = rows.x.n
        self.mean_x, self.mean_y = rows.x.mean, rows.y / n
        self.values, self.axes = np.linalg.eigh(rows.x.centred / n)
        self.values = np.maximum(self.values, 0.0)
        self.target = self.axes.T @ (rows.xy / n - np.outer(self.mean_x, self.mean_y))

    def predict(self, x: np.ndarray, strength: float) -> np.ndarray:
        """Predictions for these rows; a training set without variance predicts its mean."""
        scale = self.values.mean()
        if scale == 0:
            return np.broadcast_to(self.mean_y, (len(x), len(self.mean_y))).copy()
        weight = self.axes @ (self.target / (self.values + strength * scale)[:, None])
        return np.asarray((x - self.mean_x) @ weight + self.mean_y)


def _chosen(rows: _Block, x: np.ndarray, y: np.ndarray) -> float:
    """The strength with the least squared error on these validation rows; the strongest of equals."""
    ridge = _Ridge(rows)
    errors = [((ridge.predict(x, strength) - y) ** 2).mean() for strength in STRENGTHS]
    return float(STRENGTHS[len(errors) - 1 - int(np.argmin(errors[::-1]))])


def parts_of(persona: np.ndarray) -> Int[np.ndarray, " row"]:
    """The part of each row's persona: personas are dealt out in the order of their names."""
    return np.unique(persona.astype(str), return_inverse=True)[1] % GROUPS
