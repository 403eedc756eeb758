"""Calibration of the arms of a table. Knows outcomes, confidences and null bands; knows no metric's name or figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from probe.behaviour import scores
from probe.behaviour.calibration import (
    DRAWS,
    Bins,
    bin_of,
    classwise_ece,
    classwise_null_draws,
    debiased_and_left_out,
    debiased_ece_squared,
    ece,
    equal_mass,
    jackknifed,
    null_draws,
    shared_draws,
    smooth_ece,
)
from probe.behaviour.intervals import NOTHING, proportion
from probe.behaviour.outcomes import Outcomes, read_outcomes
from probe.values import Estimate

BESIDE = "read it beside its null band"


def usable(
    outcomes: Outcomes, *, stated: bool = False
) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, " row"], np.ndarray]:
    """Confidence, correctness and case of the rows that have both.

    Of the latent label; with ``stated`` the latent probability of the stated label and its correctness instead.
    """
    confidence = scores.stated_confidence(outcomes) if stated else scores.confidence(outcomes)
    correct = scores.stated_correct(outcomes) if stated else scores.accuracy_latent(outcomes)
    kept = ~np.isnan(confidence)
    return confidence[kept], correct[kept], outcomes.case[kept]


def calibration_error(outcomes: Outcomes, n_bins: int, *, stated: bool = False) -> Estimate:
    """ECE in equal-width bins; no interval, because bootstrap intervals of an ECE do not cover (see the null band)."""
    confidence, correct, _ = usable(outcomes, stated=stated)
    if len(confidence) == 0:
        return Estimate(None, note=NOTHING)
    method = f"{n_bins} equal-width bins (a, b]; {BESIDE}"
    return Estimate(ece(confidence, correct, n_bins), n=len(confidence), counts={"bins": float(n_bins)}, method=method)


def equal_mass_error(outcomes: Outcomes, n_bins: int) -> Estimate:
    """ECE of the latent label in equal-mass bins."""
    confidence, correct, _ = usable(outcomes)
    if len(confidence) == 0:
        return Estimate(None, note=NOTHING)
    edges = equal_mass(confidence, n_bins)
    counts, method = {"bins": float(len(edges) + 1)}, f"{len(edges) + 1} equal-mass bins; {BESIDE}"
    return Estimate(ece(confidence, correct, edges), n=len(confidence), counts=counts, method=method)


def classwise_error(outcomes: Outcomes, n_bins: int) -> Estimate:
    """Classwise ECE: mean over the options of the ECE of that option's probability."""
    kept = outcomes.latent >= 0
    kept &= ~np.isnan(outcomes.latent_logp).any(1)
    if not kept.any():
        return Estimate(None, note=NOTHING)
    value = classwise_ece(np.exp(outcomes.latent_logp[kept]), outcomes.reference[kept], n_bins)
    method = f"{n_bins} equal-width bins (a, b] per option; {BESIDE}"
    return Estimate(value, n=int(kept.sum()), counts={"bins": float(n_bins)}, method=method)


def debiased_error(outcomes: Outcomes, n_bins: int) -> Estimate:
    """Debiased ECE^2 of the latent label in equal-width bins."""
    confidence, correct, case = usable(outcomes)
    return debiased_ece_squared(confidence, correct, case, n_bins) if len(case) else Estimate(None, note=NOTHING)


def smooth_error(outcomes: Outcomes) -> Estimate:
    """SmoothECE of the latent label; needs relplot."""
    confidence, correct, _ = usable(outcomes)
    if len(confidence) == 0:
        return Estimate(None, note=NOTHING)
    return Estimate(smooth_ece(confidence, correct), n=len(confidence), method="relplot, reflected Gaussian kernel")


def nulls_of_arm(outcomes: Outcomes, n_bins: int, rng: np.random.Generator) -> dict[str, Float[np.ndarray, " draw"]]:
    """What ECEs a perfectly calibrated model with this arm's confidences would have, by the name of the metric."""
    found: dict[str, Float[np.ndarray, " draw"]] = {}
    confidence, _, case = usable(outcomes)
    if len(confidence):
        uniform = shared_draws(case, rng)
        found["ece"] = null_draws(confidence, uniform, n_bins)
        found["ece_equal_mass"] = null_draws(confidence, uniform, equal_mass(confidence, n_bins))
        logp = outcomes.latent_logp[~np.isnan(scores.confidence(outcomes))]
        found["ece_classwise"] = classwise_null_draws(np.exp(logp), uniform, n_bins)
    confidence, _, case = usable(outcomes, stated=True)
    if len(confidence):
        found["stated_ece"] = null_draws(confidence, shared_draws(case, rng), n_bins)
    return found


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
    weights = resample_counts(n_cases, n_boot, rng)
    boot = _weighted_ece(*arms[0], n_bins, weights) - _weighted_ece(*arms[1], n_bins, weights)
    low, high = np.quantile(boot, [0.025, 0.975])
    method = f"bootstrap percentiles, {n_boot} resamples of cases; descriptive"
    return Estimate(value, float(low), float(high), int(kept.sum()), counts, method)


def debiased_difference(ours: Outcomes, base: Outcomes, n_bins: int) -> Estimate:
    """Debiased ECE^2 of ``ours`` minus that of ``base`` over paired rows, in the same equal-width bins; jackknife."""
    kept = ~np.isnan(scores.confidence(ours)) & ~np.isnan(scores.confidence(base))
    if not kept.any():
        return Estimate(None, note=NOTHING)
    (value, left), (base_value, base_left) = (
        debiased_and_left_out(*usable(arm.take(kept)), n_bins) for arm in (ours, base)
    )
    counts = {"bins": float(n_bins), "cases": float(len(left))}
    if np.isnan(value - base_value):
        return Estimate(None, n=int(kept.sum()), counts=counts, note="undefined: no bin holds two cases")
    return jackknifed(value - base_value, left - base_left, int(kept.sum()), counts)


def resample_counts(n_cases: int, n_boot: int, rng: np.random.Generator) -> Float[np.ndarray, "draw case"]:
    """How often each case is drawn in each resample of as many cases."""
    drawn = rng.integers(0, n_cases, (n_boot, n_cases)) + n_cases * np.arange(n_boot)[:, None]
    return np.bincount(drawn.ravel(), minlength=n_boot * n_cases).reshape(n_boot, n_cases).astype(float)


def reliability(
    table: pd.DataFrame,
    *,
    options: Sequence[str] | None = None,
    n_bins: int = 10,
    equal_width: bool = True,
    rng: np.random.Generator | None = None,
) -> pd.DataFrame:
    """Bins of the reliability diagram, per persona and stratum, of both labels; empty bins have no row.

    Columns: persona, stratum, labels, bin, lower, upper, count, confidence (mean in the bin), accuracy, low and high
    (Wilson, at the effective n where a case has several rows), null_low and null_high (95 % range of the bin's accuracy
    under perfect calibration). ``labels`` is ``latent`` (the latent label and its probability) or ``stated`` (the
    stated label and *its* latent probability, over parsed answers). Bins are equal-width, else equal-mass. ``rng``
    draws the null range; by default a generator seeded with 0.
    """
    outcomes, rng = read_outcomes(table, options=options), rng or np.random.default_rng(0)

    def bins(confidence: Float[np.ndarray, " row"]) -> Bins:
        return n_bins if equal_width else equal_mass(confidence, n_bins)

    rows = [
        {"persona": persona, "stratum": stratum, "labels": labels, **row}
        for labels in ("latent", "stated")
        for persona in outcomes.personas
        for stratum in outcomes.strata
        for row in _bins(usable(outcomes.arm(persona, stratum), stated=labels == "stated"), bins, rng)
    ]
    names = ["persona", "stratum", "labels", "bin", "lower", "upper", "count", "confidence", "accuracy"]
    return pd.DataFrame(rows, columns=[*names, "low", "high", "null_low", "null_high"])


def _bins(
    arm: tuple[np.ndarray, np.ndarray, np.ndarray],
    chosen: Callable[[Float[np.ndarray, " row"]], Bins],
    rng: np.random.Generator,
) -> list[dict[str, float]]:
    confidence, correct, case = arm
    if len(confidence) == 0:
        return []
    bins = chosen(confidence)
    edges = np.concatenate([[0.0], np.arange(1, bins) / bins if isinstance(bins, int) else bins, [1.0]])
    index, draws = bin_of(confidence, bins), shared_draws(case, rng) < confidence
    rows = []
    for b in np.unique(index):
        inside = index == b
        share = proportion(correct[inside], case[inside])
        null_low, null_high = np.quantile(draws[:, inside].mean(1), [0.025, 0.975])
        row = {"bin": int(b), "lower": edges[b], "upper": edges[b + 1], "count": int(inside.sum())}
        row |= {"confidence": confidence[inside].mean(), "accuracy": share.value, "low": share.low, "high": share.high}
        rows.append(row | {"null_low": null_low, "null_high": null_high})
    return rows


def _weighted_ece(
    confidence: np.ndarray, correct: np.ndarray, case: np.ndarray, n_bins: int, weights: Float[np.ndarray, "draw case"]
) -> Float[np.ndarray, " draw"]:
    """ECE of each resample; ``weights`` counts how often each case (in sorted order) was drawn."""
    _, member = np.unique(case, return_inverse=True)
    gaps = np.zeros((weights.shape[1], n_bins))
    np.add.at(gaps, (member, bin_of(confidence, n_bins)), correct - confidence)
    return np.asarray(np.abs(weights @ gaps).sum(1) / (weights @ np.bincount(member)))
