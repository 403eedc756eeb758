"""Where a persona's effect is visible: changes with their intervals, and the verdict by equivalence over two of them.
Knows per-case differences; knows no persona, table or label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.special import stdtrit

from probe.behaviour.intervals import NOTHING, agresti_min
from probe.values import Estimate

Status: TypeAlias = Literal["moved", "still", "cannot tell"]
Verdict: TypeAlias = Literal[
    "latent", "decoding", "both", "opposed", "neither", "cannot tell", "no latent label at this site"
]

VERDICTS: tuple[Verdict, ...] = (
    *("latent", "decoding", "both", "opposed", "neither", "cannot tell"),
    "no latent label at this site",
)

MARGIN = 0.10
"""The default delta, in expected urgency: what is smaller is called still, what is larger can be called moved."""

LEAST_MASS = 0.05
"""Below this mean probability on all labels together there is no latent label to speak of."""

Z90_IN_Z95 = float(stats.norm.ppf(0.95) / stats.norm.ppf(0.975))


@dataclass(frozen=True)
class Change:
    """A mean paired difference, persona minus base, with its 95 % and its 90 % interval; NaN where undefined.

    ``n`` counts cases, ``families`` the clusters that the standard error is made of.
    """

    value: float
    low: float
    high: float
    low_90: float
    high_90: float
    n: int
    families: int
    method: str = ""
    note: str = ""


def change(difference: Float[np.ndarray, " case"], family: np.ndarray, top: float, *, binary: bool = False) -> Change:
    """The mean of per-case differences that lie within +-top, with intervals; cases that are NaN are left out.

    A t interval whose standard error is clustered by family (G / (G - 1), G - 1 degrees of freedom). Differences of
    two shares (``binary``) with one family per case: Agresti & Min's adjusted Wald. Where no case differs from any
    other a t interval would have no width: what so many families can rule out stands for it, top (1 - alpha^(1/G))
    either way.
    """
    kept = ~np.isnan(difference)
    d, clusters = difference[kept], family[kept]
    if len(d) == 0:
        return Change(np.nan, np.nan, np.nan, np.nan, np.nan, 0, 0, note=NOTHING)
    value, (error, n_families) = float(d.mean()), clustered_error(d, clusters)
    if n_families < 2:
        none = (np.nan, np.nan, np.nan, np.nan)
        return Change(value, *none, len(d), n_families, note="one case family: no interval")
    if binary and n_families == len(d) and np.isin(d, (-1.0, 0.0, 1.0)).all():
        low, high = agresti_min(int((d > 0).sum()), int((d < 0).sum()), len(d))
        centre, half = (low + high) / 2, (high - low) / 2 * Z90_IN_Z95
        return Change(value, low, high, centre - half, centre + half, len(d), n_families, "Agresti-Min")
    if error <= 1e-12 * max(top, abs(value)):
        wide, narrow = (top * (1 - alpha ** (1 / n_families)) for alpha in (0.05, 0.10))
        ends = (value - wide, value + wide, value - narrow, value + narrow)
        return Change(value, *ends, len(d), n_families, "no case differs: what so many families rule out")
    wide, narrow = (float(stdtrit(n_families - 1, q)) * error for q in (0.975, 0.95))
    ends = (value - wide, value + wide, value - narrow, value + narrow)
    return Change(value, *ends, len(d), n_families, "t, SE clustered by family")


def clustered_error(difference: Float[np.ndarray, " case"], family: np.ndarray) -> tuple[float, int]:
    """Standard error of the mean of the differences, clustered by family, and the number of families."""
    covariance, n_families = clustered_covariance(difference[:, None], family)
    return float(np.sqrt(covariance[0, 0])), n_families


def clustered_covariance(
    values: Float[np.ndarray, "case column"], family: np.ndarray
) -> tuple[Float[np.ndarray, "column column"], int]:
    """Covariance matrix of the column means, clustered by family, and the number of families."""
    _, member = np.unique(family, return_inverse=True)
    n_families = int(member.max()) + 1
    centred = values - values.mean(0)
    sums = np.zeros((n_families, values.shape[1]))
    np.add.at(sums, member, centred)
    factor = n_families / max(n_families - 1, 1) / len(values) ** 2
    return factor * (sums.T @ sums), n_families


def fieller(
    numerator: Float[np.ndarray, " case"], denominator: Float[np.ndarray, " case"], family: np.ndarray
) -> Estimate:
    """The ratio of two means over the same cases with its Fieller set (95 %), clustered by family.

    Undefined where the denominator's t interval does not exclude 0: the set is then not an interval. Source: Fieller
    1954, J. R. Statist. Soc. B 16, 175-185.
    """
    kept = ~np.isnan(numerator) & ~np.isnan(denominator)
    pairs = np.stack([numerator[kept], denominator[kept]], axis=1)
    n = len(pairs)
    if n < 2:
        return Estimate(None, n=n, note=NOTHING)
    (a, b), (cov, n_families) = pairs.mean(0), clustered_covariance(pairs, family[kept])
    if n_families < 2:
        return Estimate(None, n=n, note="undefined: one case family")
    t2 = float(stdtrit(n_families - 1, 0.975)) ** 2
    # (a - r b)^2 <= t2 (cov_aa - 2 r cov_ab + r^2 cov_bb), a quadratic in r.
    square, middle, rest = b**2 - t2 * cov[1, 1], a * b - t2 * cov[0, 1], a**2 - t2 * cov[0, 0]
    if square <= 0:
        return Estimate(None, n=n, note="undefined: the interval of the denominator holds 0")
    root = float(np.sqrt(max(middle**2 - square * rest, 0.0)))
    return Estimate(float(a / b), float((middle - root) / square), float((middle + root) / square), n, method="Fieller")


def status(found: Change, delta: float) -> Status:
    """*moved*: the 95 % interval excludes 0 and the estimate exceeds delta; *still*: the 90 % interval lies inside
    +-delta; else it cannot be told."""
    if np.isnan(found.low):
        return "cannot tell"
    if (found.low > 0 or found.high < 0) and abs(found.value) > delta:
        return "moved"
    return "still" if -delta < found.low_90 and found.high_90 < delta else "cannot tell"


def joint_status(changes: Sequence[Change], delta: float) -> Status:
    """The status that all of these changes share, in the same direction where they moved: what holds of the answered
    cases and at both ends of what the unanswered ones could have been."""
    found = {status(one, delta) for one in changes}
    if found == {"moved"} and len({one.value > 0 for one in changes}) > 1:
        return "cannot tell"
    return found.pop() if len(found) == 1 else "cannot tell"


def verdict(latent: Status, added: Status, *, same_sign: bool) -> Verdict:
    """The verdict over the latent change L and what is added between the latent and the stated label, D = T - L."""
    if latent == "cannot tell" or added == "cannot tell":
        return "cannot tell"
    if latent == "moved":
        return "latent" if added == "still" else "both" if same_sign else "opposed"
    return "decoding" if added == "moved" else "neither"


def true_verdict(latent: float, added: float, delta: float = MARGIN) -> Verdict | None:
    """What the verdict should be where both changes are known, None where one is too near to delta to be held to it:
    within [.5, 1.5] delta."""
    if any(0.5 * delta <= abs(one) <= 1.5 * delta for one in (latent, added)):
        return None
    states: list[Status] = ["moved" if abs(one) > delta else "still" for one in (latent, added)]
    return verdict(states[0], states[1], same_sign=latent * added > 0)
