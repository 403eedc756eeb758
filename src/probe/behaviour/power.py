"""How small a difference a number of cases can show. Knows paired tests; knows no outcome."""

from __future__ import annotations

from math import sqrt

from scipy.optimize import brentq
from scipy.stats import norm, t

from probe.values import Estimate


def detectable_difference(n: int, *, discordant: float, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest paired difference of two proportions that McNemar's test finds with this power.

    ``discordant`` is the share of cases on which the two personas differ. No difference can exceed it: where even that
    one would be missed, the study is too small to show any, and the answer is None. Source: Connor 1987, Biometrics 43,
    207-211: n = (z_alpha sqrt(psi) + z_beta sqrt(psi - d^2))^2 / d^2.
    """
    z_alpha, z_beta = norm.ppf(1 - alpha / 2), norm.ppf(power)

    def needed(difference: float) -> float:
        spread = z_alpha * sqrt(discordant) + z_beta * sqrt(max(discordant - difference**2, 0.0))
        return float(spread**2 / difference**2)

    if needed(discordant) > n:
        return None
    return float(brentq(lambda difference: needed(difference) - n, 1e-9, discordant))


def detectable_mean(found: Estimate, *, power: float = 0.8) -> float | None:
    """The smallest mean difference that a study with the interval of this one finds with this power, at alpha .05.

    (z_alpha + z_beta) x SE, with the SE behind the 95 % t interval over ``counts["cases"]``; None without an interval,
    or where nothing varied.
    """
    if found.low is None or found.high is None or found.high == found.low:
        return None
    half = (found.high - found.low) / 2
    error = half / t.ppf(0.975, found.counts["cases"] - 1)
    return float((norm.ppf(0.975) + norm.ppf(power)) * error)
