"""What features add to a baseline's prediction, out of fold, with a null over case blocks. Knows arrays and blocks;
knows no persona or residual.

The null moves the part of the features that the baseline does not explain (cross-fitted) from one case block to
another of the same stratum and fold: a baseline's own signal stays where it is. Within a fold, because rows of a fold
were all fitted without the same folds, and centred by them, so that only they can stand for each other. A readout,
which saw the target, is fitted anew for every permutation: out-of-fold predictions of two folds share the product of
both folds' targets, and their gain varies more than that of a feature that never saw any. Source: ESTIMATORS, "Shift
and disagreement".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

from probe.mechanism.linear.crossfit import CrossRidge, log_loss, newton

NUMBERS = 1_000_000
"""Cells times permutations that are fitted at a time: memory grows with it."""

NEAR = 40_000
"""Cells times permutations whose gain is taken at a time."""

FARTHEST = 5.0
"""A feature that lies further from its mean, in standard deviations, stays there: followed on a straight line, one odd
cell could cost hundreds of nats and decide the mean of all."""

FLAT = 1e-9
"""Nats below which a null does not vary."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """A target with its baseline, ready to judge features by.

    ``y`` is 0 or 1; ``eta`` the baseline's log-odds from :func:`probe.mechanism.linear.crossfit.logistic`; ``design``
    the baseline's columns. ``block`` numbers the case family of each row and ``slot`` its place in it (case, persona,
    condition): rows of the same slot can stand for each other. ``stratum`` has one entry per block.
    """

    y: Float[np.ndarray, " row"]
    eta: Float[np.ndarray, "fold row"]
    design: Float[np.ndarray, "row column"]
    fold: Int[np.ndarray, " row"]
    block: Int[np.ndarray, " row"]
    slot: Int[np.ndarray, " row"]
    stratum: np.ndarray

    def unexplained(self, features: Float[np.ndarray, "fold row feature"]) -> Float[np.ndarray, "fold row feature"]:
        """Features minus what the baseline's columns predict of them, cross-fitted, in units of their spread.

        ``features[f]`` may have been made without the rows of fold f, as the second stage needs.
        """
        left: np.ndarray = features - self._of_design(features)
        for f, rest in enumerate(left):
            inner = self.fold != f
            spread = rest[inner].std(0)
            rest[:] = (rest - rest[inner].mean(0)) / np.where(spread > 1e-12, spread, np.inf)
        return np.asarray(np.clip(left, -FARTHEST, FARTHEST))

    def readout(self, x: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "fold row feature"]:
        """A linear readout, from ``x``, of what the baseline leaves of the target (y minus its probability), cross-
        fitted."""
        return CrossRidge(x, self.fold)(self._missed[:, :, None])

    @cached_property
    def _of_design(self) -> CrossRidge:
        return CrossRidge(self.design, self.fold)

    @cached_property
    def _missed(self) -> Float[np.ndarray, "fold row"]:
        missed: np.ndarray = self.y - expit(self.eta)
        return missed

    def gain(self, left: Float[np.ndarray, "batch fold row feature"]) -> Float[np.ndarray, "batch row"]:
        """Log loss of the baseline minus log loss with these features, out of fold, in nats per row."""
        found = np.empty((len(left), len(self.y)))
        for f in range(len(self.eta)):
            judge, fit = self.fold == f, self.fold != f
            base = np.stack([np.ones(len(self.y)), self.eta[f]], axis=1)
            alone = newton(base[fit][None], self.y[fit], np.full(2, 1e-3))[0]
            plain = log_loss(base[judge] @ alone, self.y[judge])
            x = np.concatenate([np.broadcast_to(base, (len(left), *base.shape)), left[:, f]], axis=2)
            weak = np.append(np.full(2, 1e-3), np.ones(left.shape[3]))
            beta = newton(x[:, fit], self.y[fit], weak, np.append(alone, np.zeros(left.shape[3])))
            eta = np.matmul(x[:, judge], beta[:, :, None])[:, :, 0]
            found[:, judge] = plain - log_loss(eta, self.y[judge])
        return found

    def moved(
        self, left: Float[np.ndarray, "fold row feature"], order: Int[np.ndarray, " block"]
    ) -> Float[np.ndarray, "fold row feature"]:
        """The same features from the block that ``order`` puts in each block's place; 0, their mean, where that block
        lacks the slot."""
        source = np.full((len(order), int(self.slot.max()) + 1), -1)
        source[self.block, self.slot] = np.arange(len(self.block))
        row = source[order[self.block], self.slot]
        return np.where((row >= 0)[None, :, None], left[:, np.maximum(row, 0)], 0.0)

    def orders(self, rng: np.random.Generator, n: int) -> Int[np.ndarray, "n block"]:
        """Permutations of the blocks within their strata and folds."""
        found = np.tile(np.arange(len(self.stratum)), (n, 1))
        fold = np.zeros(len(self.stratum), dtype=int)
        fold[self.block] = self.fold
        for group in sorted(set(zip(self.stratum.astype(str).tolist(), fold.tolist(), strict=True))):
            inside = np.flatnonzero((self.stratum.astype(str) == group[0]) & (fold == group[1]))
            for order in found:
                order[inside] = rng.permutation(inside)
        return found

    def null(
        self, left: Float[np.ndarray, "fold row feature"], orders: Int[np.ndarray, "n block"]
    ) -> Float[np.ndarray, " n"]:
        """Mean gain of the features from another case, per permutation."""
        return np.concatenate(
            [self._gained([self.moved(left, order) for order in part]) for part in self._parts(orders)]
        )

    def null_of_readout(
        self, x: Float[np.ndarray, "row column"], orders: Int[np.ndarray, "n block"]
    ) -> Float[np.ndarray, " n"]:
        """Mean gain of :meth:`readout` when it is fitted, and judged, on the residuals of another case."""
        readout, missed, found = CrossRidge(x, self.fold), self._missed[:, :, None], []
        for part in self._parts(orders):
            # The target is carried to the case whose x is used, and the readout back: x itself never moves.
            carried = [self.moved(missed, np.argsort(order)) for order in part]
            left = self.unexplained(readout(np.concatenate(carried, axis=2)))
            back = [self.moved(left[:, :, k : k + 1], order) for k, order in enumerate(part)]
            found.append(self._gained(back))
        return np.concatenate(found)

    def _gained(self, left: Sequence[Float[np.ndarray, "fold row feature"]]) -> Float[np.ndarray, " batch"]:
        """Mean gain of each of these, few at a time: what is worked on stays near the processor."""
        size = max(NEAR // len(self.y), 1)
        parts = (left[start : start + size] for start in range(0, len(left), size))
        return np.concatenate([self.gain(np.stack(part)).mean(1) for part in parts])

    def _parts(self, orders: Int[np.ndarray, "n block"]) -> Iterator[Int[np.ndarray, "_ block"]]:
        size = max(NUMBERS // len(self.y), 1)
        yield from (orders[start : start + size] for start in range(0, len(orders), size))


def max_t(observed: Float[np.ndarray, " test"], null: Float[np.ndarray, "test draw"]) -> tuple[np.ndarray, np.ndarray]:
    """p of each test, (1 + #>=) / (1 + K), and p against the largest of all tests, each in units of its null's spread.

    Source: Westfall & Young 1993; ESTIMATORS, "Nulls for probes".
    """
    k = null.shape[1]
    p = (1 + (null >= observed[:, None]).sum(1)) / (1 + k)
    centre, spread = null.mean(1), null.std(1)
    spread = np.where(spread > FLAT, spread, 1.0)
    largest = ((null - centre[:, None]) / spread[:, None]).max(0)
    adjusted = (1 + (largest[None, :] >= ((observed - centre) / spread)[:, None]).sum(1)) / (1 + k)
    return p, adjusted
