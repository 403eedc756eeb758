"""What is compared between two personas, and how one paired difference is estimated and tested. Knows scores of pairs;
knows no table and no other comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probe.behaviour import scores
from probe.behaviour.columns import ABSENT
from probe.behaviour.intervals import NOTHING, ROUNDING, agresti_min, mean
from probe.behaviour.outcomes import Need, Outcomes, Told
from probe.behaviour.power import detectable_difference, detectable_mean
from probe.behaviour.scores import Score
from probe.behaviour.significance import mcnemar, mcnemar_clustered, paired_t
from probe.values import Estimate


@dataclass(frozen=True)
class Contrast:
    """A score whose paired difference is estimated; ``binary`` scores are 0 or 1. ``note`` says what to beware of.

    ``columns`` are those it cannot do without. ``strict`` marks scores that count an unparsed answer as 0, for which
    the ends of what it could have been are told as well; ``planned`` is False where the plan says nothing of it.
    """

    name: str
    score: Score
    binary: bool
    columns: tuple[Told, ...]
    note: str = ""
    need: Need = "nothing"
    strict: bool = False
    planned: bool = True


CONTRASTS: tuple[Contrast, ...] = (
    Contrast("accuracy", scores.accuracy, True, ("y_gen",), strict=True),
    Contrast("accuracy_latent", scores.accuracy_latent, True, ("y_latent",)),
    Contrast("consistency_strict", scores.consistency_strict, True, ("y_gen", "y_latent"), strict=True),
    Contrast(
        "consistency_both",
        scores.consistency,
        True,
        ("y_gen", "y_latent"),
        "only cases with a parsed answer in both arms; descriptive",
    ),
    Contrast("overconfidence", scores.overconfidence, False, ("logp_<label>",)),
    Contrast("brier", scores.brier, False, ("logp_<label>",)),
    Contrast("log_loss", scores.log_loss, False, ("logp_<label>",)),
    Contrast("risk_propensity", scores.high_risk, True, ("y_gen",), need="high-risk option", strict=True),
    Contrast("risk_propensity_latent", scores.high_risk_latent, True, ("y_latent",), need="high-risk option"),
    Contrast(
        "expected_urgency_latent",
        scores.expected_urgency_latent,
        False,
        ("logp_<label>",),
        need="rank of the options",
    ),
    Contrast(
        "expected_urgency_stated",
        scores.expected_urgency_stated,
        False,
        ("stated_logp_<label>",),
        "only cases with an answer site in both arms; descriptive",
        need="rank of the options",
    ),
    Contrast("parse_rate", scores.parsed, True, ("y_gen",), planned=False),
    Contrast("refusal_rate", scores.refused, True, ("y_gen",), planned=False),
    Contrast("label_mass", scores.label_mass, False, ("label_mass",), planned=False),
)
"""Differences that are estimated; that of the ECE stands beside them."""

FAMILY: tuple[str, ...] = (
    *("accuracy", "accuracy_latent", "consistency_strict", "overconfidence", "brier"),
    *("risk_propensity", "expected_urgency_latent"),
)
"""The metrics that are tested. ECE and scores over cells that a persona can select are described, never tested."""


@dataclass(frozen=True)
class Difference:
    """A paired difference with its interval and p, the test's name, and what this n could have shown.

    ``detectable`` is the smallest difference that such a study finds with a power of .8 at a raw alpha of .05, given
    the discordance (proportions) or spread (means) that was observed; None where that is not known.
    """

    estimate: Estimate
    test: str = ""
    detectable: float | None = None


def paired_difference(
    ours: Float[np.ndarray, " pair"],
    theirs: Float[np.ndarray, " pair"],
    case: np.ndarray,
    binary: bool,
) -> Difference:
    """Mean of ours - theirs over pairs where neither is NaN, with its interval and test.

    Proportions with one pair per case: Agresti-Min and McNemar; with several pairs per case: t clustered by case and
    McNemar clustered by case. Means, and proportions against a base that is itself a mean (``binary`` is False then): t
    over per-case differences.
    """
    kept = ~np.isnan(ours) & ~np.isnan(theirs)
    difference, case = (ours - theirs)[kept], case[kept]
    if len(difference) == 0:
        return Difference(Estimate(None, note=NOTHING))
    _, member = np.unique(case, return_inverse=True)
    per_case = np.bincount(member, weights=difference)
    largest = float(np.abs(ours[kept]).max())
    if not binary and np.isfinite(largest) and (np.abs(per_case) <= ROUNDING * largest).all():
        # A base that is a mean leaves differences of 1e-17, which may be all alike: t would call them significant.
        difference, per_case = np.zeros_like(difference), np.zeros_like(per_case)
    plain = mean(difference, case)
    if plain.value is None:
        return Difference(plain)
    n, counts = len(difference), dict(plain.counts)
    if binary:
        counts |= {"b": float((difference > 0).sum()), "c": float((difference < 0).sum())}
    if binary and len(per_case) == n:
        b, c = int(counts["b"]), int(counts["c"])
        low, high = agresti_min(b, c, n)
        p, test = mcnemar(b, c)
        estimate = Estimate(plain.value, low, high, n, counts, "Agresti-Min", p=p)
        shown = detectable_difference(n, discordant=(b + c) / n) if b + c else None
        return Difference(estimate, test, shown)
    tested = mcnemar_clustered(per_case) if binary else paired_t(per_case / np.bincount(member))
    estimate = Estimate(plain.value, plain.low, plain.high, n, counts, plain.method, plain.note, tested[0])
    return Difference(estimate, tested[1], detectable_mean(plain))


def bounds(outcomes: Outcomes, contrast: Contrast) -> tuple[np.ndarray, np.ndarray]:
    """The score with every unparsed answer counted as 0, and with every one counted as 1."""
    strict = contrast.score(outcomes)
    unknown = (outcomes.status != ABSENT) & (outcomes.status != "parsed") & ~np.isnan(strict)
    return strict, np.where(unknown, 1.0, strict)
