"""Does confidence match correctness? Knows confidences and correctness of one arm; knows no persona or table.

Bins are equal-width and closed on the right, (a, b], the first one [0, b], as in the papers: a confidence of exactly
.1 falls into the first of ten bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from probe.behaviour import scores
from probe.behaviour.intervals import NOTHING, proportion
from probe.behaviour.outcomes import Outcomes, read_outcomes
from probe.values import Estimate

DRAWS = 1000
"""Simulated data sets behind a null band."""


@dataclass(frozen=True)
class NullBand:
    """What the ECE of a *perfectly calibrated* model with these very confidences would be: mean and 95 % range."""

    mean: float
    low: float
    high: float


def bin_of(confidence: Float[np.ndarray, " row"], n_bins: int) -> Int[np.ndarray, " row"]:
    """Index of the equal-width bin (a, b] of each confidence; 0 belongs to the first bin."""
    return np.searchsorted(np.arange(1, n_bins) / n_bins, confidence, side="left")


def ece(confidence: Float[np.ndarray, " row"], correct: Float[np.ndarray, " row"], n_bins: int = 10) -> float:
    """Expected calibration error, sum over bins of |sum of (correct - confidence)| / N (Naeini et al. 2015)."""
    return float(_ece_of_gaps((correct - confidence)[None, :], bin_of(confidence, n_bins), n_bins)[0])


def null_band(
    confidence: Float[np.ndarray, " row"], case: np.ndarray, n_bins: int, rng: np.random.Generator
) -> NullBand:
    """ECE under perfect calibration: correctness drawn from this arm's own confidences.

    Rows of one case share one uniform draw, the most dependent they can be, so the band is not too narrow where a
    case stands under several conditions.
    """
    return band_of(null_draws(confidence, case, n_bins, rng))


def null_draws(
    confidence: Float[np.ndarray, " row"], case: np.ndarray, n_bins: int, rng: np.random.Generator
) -> Float[np.ndarray, " draw"]:
    """The ECEs behind :func:`null_band`."""
    _, member = np.unique(case, return_inverse=True)
    draws = _draw_correct(confidence, member, rng)
    return _ece_of_gaps(draws - confidence, bin_of(confidence, n_bins), n_bins)


def band_of(draws: Float[np.ndarray, " draw"]) -> NullBand:
    """Mean and 95 % range of these ECEs."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return NullBand(float(draws.mean()), float(low), float(high))


def joint_limits(draws: Sequence[Float[np.ndarray, " draw"]]) -> list[float]:
    """For each arm the ECE that *no* arm exceeds in 95 % of studies where all are perfectly calibrated.

    The 95 % quantile of the largest standardised null ECE over the arms, in the units of each: looking at many arms,
    some pass their own band by chance. Arms are drawn independently, which errs on the side of a high limit.
    """
    means, spreads = np.array([d.mean() for d in draws]), np.array([max(d.std(), 1e-12) for d in draws])
    largest = ((np.stack(draws) - means[:, None]) / spreads[:, None]).max(0)
    return [float(limit) for limit in means + np.quantile(largest, 0.95) * spreads]


def calibration_error(outcomes: Outcomes, n_bins: int) -> Estimate:
    """ECE of the latent label; no interval, because bootstrap intervals of an ECE do not cover (see the null band)."""
    confidence, correct, _ = usable(outcomes)
    if len(confidence) == 0:
        return Estimate(None, note=NOTHING)
    method = f"{n_bins} equal-width bins (a, b]; read it beside its null band"
    return Estimate(ece(confidence, correct, n_bins), n=len(confidence), counts={"bins": float(n_bins)}, method=method)


def ece_difference(
    ours: Outcomes, base: Outcomes, n_bins: int, rng: np.random.Generator, n_boot: int = DRAWS
) -> Estimate:
    """ECE of ``ours`` minus ECE of ``base`` over paired rows, with a percentile band that resamples cases.

    The band is descriptive: bootstrap intervals of an ECE difference cover far less than 95 %, whatever n, so no test
    belongs to it.
    """
    kept = ~np.isnan(scores.confidence(ours)) & ~np.isnan(scores.confidence(base))
    if not kept.any():
        return Estimate(None, note=NOTHING)
    arms = [usable(arm.take(kept)) for arm in (ours, base)]
    value = ece(arms[0][0], arms[0][1], n_bins) - ece(arms[1][0], arms[1][1], n_bins)
    n_cases = len(np.unique(arms[0][2]))
    counts = {"bins": float(n_bins), "cases": float(n_cases)}
    if n_cases < 2:
        return Estimate(value, n=int(kept.sum()), counts=counts, note="one case: no band")
    weights = rng.multinomial(n_cases, np.full(n_cases, 1 / n_cases), size=n_boot).astype(float)
    boot = _weighted_ece(*arms[0], n_bins, weights) - _weighted_ece(*arms[1], n_bins, weights)
    low, high = np.quantile(boot, [0.025, 0.975])
    method = f"bootstrap percentiles, {n_boot} resamples of cases; descriptive"
    return Estimate(value, float(low), float(high), int(kept.sum()), counts, method)


def reliability(
    table: pd.DataFrame,
    *,
    options: Sequence[str] | None = None,
    n_bins: int = 10,
    rng: np.random.Generator | None = None,
) -> pd.DataFrame:
    """Bins of the reliability diagram, per persona and stratum; empty bins have no row.

    Columns: persona, stratum, bin, lower, upper, count, confidence (mean in the bin), accuracy (of the latent label),
    low and high (Wilson, at the effective n where a case has several rows), null_low and null_high (95 % range of the
    bin's accuracy under perfect calibration). ``rng`` draws the null range; by default a generator seeded with 0.
    """
    outcomes, rng = read_outcomes(table, options=options), rng or np.random.default_rng(0)
    rows = [
        {"persona": persona, "stratum": stratum, **row}
        for persona in outcomes.personas
        for stratum in outcomes.strata
        for row in _bins(outcomes.arm(persona, stratum), n_bins, rng)
    ]
    names = ["persona", "stratum", "bin", "lower", "upper", "count", "confidence", "accuracy"]
    return pd.DataFrame(rows, columns=[*names, "low", "high", "null_low", "null_high"])


def usable(
    outcomes: Outcomes,
) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, " row"], np.ndarray]:
    """Confidence, correctness and case of the rows that have a latent label distribution."""
    confidence = scores.confidence(outcomes)
    kept = ~np.isnan(confidence)
    return confidence[kept], scores.accuracy_latent(outcomes)[kept], outcomes.case[kept]


def _bins(arm: Outcomes, n_bins: int, rng: np.random.Generator) -> list[dict[str, float]]:
    confidence, correct, case = usable(arm)
    if len(confidence) == 0:
        return []
    _, member = np.unique(case, return_inverse=True)
    index, draws = bin_of(confidence, n_bins), _draw_correct(confidence, member, rng)
    rows = []
    for b in np.unique(index):
        inside = index == b
        share = proportion(correct[inside], case[inside])
        null_low, null_high = np.quantile(draws[:, inside].mean(1), [0.025, 0.975])
        row = {"bin": int(b), "lower": b / n_bins, "upper": (b + 1) / n_bins, "count": int(inside.sum())}
        row |= {"confidence": confidence[inside].mean(), "accuracy": share.value, "low": share.low, "high": share.high}
        rows.append(row | {"null_low": null_low, "null_high": null_high})
    return rows


def _draw_correct(
    confidence: Float[np.ndarray, " row"], member: Int[np.ndarray, " row"], rng: np.random.Generator
) -> Bool[np.ndarray, "draw row"]:
    return np.asarray(rng.random((DRAWS, int(member.max()) + 1))[:, member] < confidence)


def _ece_of_gaps(gap: np.ndarray, index: Int[np.ndarray, " row"], n_bins: int) -> Float[np.ndarray, " draw"]:
    return np.asarray(np.abs(gap @ np.eye(n_bins)[index]).sum(1) / gap.shape[1])


def _weighted_ece(
    confidence: np.ndarray, correct: np.ndarray, case: np.ndarray, n_bins: int, weights: Float[np.ndarray, "draw case"]
) -> Float[np.ndarray, " draw"]:
    """ECE of each resample; ``weights`` counts how often each case (in sorted order) was drawn."""
    _, member = np.unique(case, return_inverse=True)
    gaps = np.zeros((weights.shape[1], n_bins))
    np.add.at(gaps, (member, bin_of(confidence, n_bins)), correct - confidence)
    return np.asarray(np.abs(weights @ gaps).sum(1) / (weights @ np.bincount(member)))
