"""Directions from a base towards a persona, each way of making one a function, and how they fare on other cases.

Knows arrays and case families; knows no store or model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from probe.mechanism.activations import SiteRows
from probe.mechanism.geometry.arms import shift_rows
from probe.mechanism.geometry.products import FEWEST, cross_products, jackknifed, norms
from probe.mechanism.geometry.views import shrinkage_of, whitening
from probe.mechanism.splits import families_of, part_of, require_apart
from probe.values import Direction, Estimate, ProbeError, Site

PARTS: Mapping[str, float] = MappingProxyType({"train": 0.5, "validation": 0.25, "test": 0.25})
"""Shares of the case families: directions are fitted on ``train`` and judged here on both others."""

PENALTY = 0.1
"""Weight of the L2 penalty of ``probe_weight``, per row."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """The residuals of a persona and of its base at one site, as rows, and as one paired shift per case.

    ``towards`` marks the persona's rows; ``family`` and ``case`` are those of the rows. A row need not have a partner;
    ``shift`` has one row for each case that does (``shift_family``, ``shift_case``).
    """

    site: Site
    persona: str
    base: str
    x: Float[np.ndarray, "row d_model"]
    towards: Bool[np.ndarray, " row"]
    family: np.ndarray
    case: np.ndarray
    shift: Float[np.ndarray, "case d_model"]
    shift_family: np.ndarray
    shift_case: np.ndarray

    def only(self, families: frozenset[str]) -> Contrast:
        """What belongs to these case families."""
        rows, cases = (np.isin(one, list(families)) for one in (self.family, self.shift_family))
        return replace(
            self,
            x=self.x[rows],
            towards=self.towards[rows],
            family=self.family[rows],
            case=self.case[rows],
            shift=self.shift[cases],
            shift_family=self.shift_family[cases],
            shift_case=self.shift_case[cases],
        )

    @property
    def means_apart(self) -> Float[np.ndarray, " d_model"]:
        """Mean of the persona's rows minus mean of the base's.

        Raises:
            ProbeError: one of them has no row.
        """
        if self.towards.all() or not self.towards.any():
            side = self.base if self.towards.any() else self.persona
            raise ProbeError(
                f"a direction needs residuals of both {self.persona!r} and {self.base!r} at {self.site}; {side!r} has "
                "none there"
            )
        return np.asarray(self.x[self.towards].mean(0) - self.x[~self.towards].mean(0))


Maker: TypeAlias = Callable[[Contrast], Direction]
"""A way of making a direction from a contrast."""


def contrast_of(table: pd.DataFrame, rows: SiteRows, persona: str, base: str, base_mask: np.ndarray) -> Contrast:
    """The contrast of a persona with the rows of a base (one persona, or all neutral controls) at one site.

    ``table`` has a row per cell, ``rows`` the residuals of those that have the site; ``base_mask`` is over the table.
    """
    here = table.iloc[rows.places].reset_index(drop=True)
    here.attrs = {}
    theirs = base_mask[rows.places]
    ours = here["persona"].to_numpy(dtype=object) == persona
    paired = shift_rows(here, {persona: ours}, base, theirs)
    either = ours | theirs
    nothing = np.empty((0, rows.x.shape[1]))
    return Contrast(
        Site(rows.layer, rows.position),
        persona,
        base,
        rows.x[either].astype(np.float64),
        ours[either],
        families_of(here)[either],
        here["case"].to_numpy(dtype=object)[either],
        paired.shifts(rows.x)[0] if paired.arms else nothing,
        paired.family,
        paired.case,
    )


def difference_in_means(contrast: Contrast) -> Direction:
    """Mean of all rows of the persona minus mean of all rows of the base, whether or not they have a partner.

    Raises:
        ProbeError: one of them has no row, or the means are equal.
    """
    return _direction(contrast, contrast.means_apart, "difference_in_means")


def paired_mean(contrast: Contrast) -> Direction:
    """Mean over cases of the paired shift: no difference between the cases of the two arms enters.

    Raises:
        ProbeError: no case has both, or the shift is nil.
    """
    if not len(contrast.shift):
        raise ProbeError(
            f"a paired direction needs a case under both {contrast.persona!r} and {contrast.base!r} at "
            f"{contrast.site}; found none"
        )
    return _made(contrast, contrast.shift.mean(0), "paired_mean", contrast.shift_family, contrast.shift_case)


def whitened_difference(contrast: Contrast) -> Direction:
    """Linear discriminant: the inverse of the pooled covariance within arms, times the difference of the means.

    The covariance is shrunk by the share of Ledoit and Wolf (2004). The linear function is the discriminant's, and the
    length is the distance of the means along it.

    Raises:
        ProbeError: as :func:`difference_in_means`, or the rows of an arm do not vary.
    """
    apart = contrast.means_apart
    within = _within(contrast)
    if not within.any():
        raise ProbeError(f"a whitened direction needs rows that vary within an arm; none do at {contrast.site}")
    return _direction(contrast, whitening(within, shrinkage_of(within), power=-1.0)(apart), "whitened_difference")


def probe_weight(contrast: Contrast) -> Direction:
    """Weight of a logistic regression on standardised features (arms weighted alike) that tells persona from base.

    The L2 penalty is ``PENALTY`` per row: without one the weight follows the few rows between two arms that can be
    separated. Features are standardised by their deviation within arms, and the weight is given back in the residual
    stream's own units.

    Raises:
        ProbeError: as :func:`difference_in_means`.
    """
    if not contrast.means_apart.any():
        raise _no_difference(contrast, "probe_weight")
    # The deviation within arms: that of all rows contains the difference itself, and would shrink just what is sought.
    within = _within(contrast).std(0)
    if not within.any():
        raise ProbeError(f"a probe weight needs rows that vary within an arm; none do at {contrast.site}")
    scale = np.where(within > 0, within, np.inf)  # what never varies has no scale: weight 0
    standard = (contrast.x - contrast.x.mean(0)) / scale
    # An L2 penalty does not change under rotation: the span of the rows is enough, and far smaller.
    left, singular, axes = np.linalg.svd(standard, full_matrices=False)
    strength = 1 / (PENALTY * len(standard))
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    fitted = model.fit(left * singular, contrast.towards)
    return _direction(contrast, fitted.coef_[0] @ axes / scale, "probe_weight")


MAKERS: Mapping[str, Maker] = MappingProxyType(
    {one.__name__: one for one in (difference_in_means, paired_mean, whitened_difference, probe_weight)}
)
"""Every maker by its name."""


def _within(contrast: Contrast) -> Float[np.ndarray, "row d_model"]:
    """All rows, each less the mean of its arm."""
    arms = [contrast.x[contrast.towards], contrast.x[~contrast.towards]]
    return np.concatenate([arm - arm.mean(0) for arm in arms])


def _direction(contrast: Contrast, weight: np.ndarray, maker: str) -> Direction:
    return _made(contrast, weight, maker, contrast.family, contrast.case)


def _made(contrast: Contrast, weight: np.ndarray, maker: str, family: np.ndarray, case: np.ndarray) -> Direction:
    """A direction of this weight, as long as the means lie apart along it, in the precision of residuals."""
    length = float(np.linalg.norm(weight))
    if length == 0:
        raise _no_difference(contrast, maker)
    unit = weight / length
    apart = contrast.shift.mean(0) if maker == "paired_mean" else contrast.means_apart
    vector = (unit * (unit @ apart)).astype(np.float32)
    cases = frozenset(map(str, case.tolist()))
    return Direction(
        contrast.site,
        vector,
        contrast.persona,
        contrast.base,
        len(cases),
        frozenset(map(str, family.tolist())),
        cases,
        maker,
    )


def _no_difference(contrast: Contrast, maker: str) -> ProbeError:
    return ProbeError(
        f"{maker} is undefined where no residual differs: those of {contrast.persona!r} and {contrast.base!r} are the "
        f"same at {contrast.site}"
    )


def training_families(families: np.ndarray, seed: int) -> frozenset[str]:
    """The case families that may fit a direction, by their hash with the study's split seed."""
    return frozenset(map(str, families[part_of(families, PARTS, seed) == "train"].tolist()))


@dataclass(frozen=True, eq=False)
class Judged:
    """How a direction fares on other case families.

    ``cosine``: with the common shift of those cases (undefined where their shift is below its noise). ``auroc``: of the
    projections of persona and base rows. ``projection``: mean shift along the direction over its own length; 1 where
    the direction is as long there as where it was fitted.
    """

    cosine: Estimate
    auroc: float
    projection: float


def judge(direction: Direction, contrast: Contrast) -> Judged:
    """A direction on cases that did not fit it.

    Raises:
        ProbeError: a case family fitted it, or site or width are not those of the direction.
    """
    what = f"{direction.maker or 'a direction'} of {direction.persona!r}"
    require_apart(direction.fitted_on, contrast.family, what)
    if direction.site != contrast.site or len(direction.vector) != contrast.x.shape[1]:
        raise ProbeError(
            f"{what} is at {direction.site} with width {len(direction.vector)}, and was to be judged at "
            f"{contrast.site} with width {contrast.x.shape[1]}; a direction has a meaning at its own site only"
        )
    vector = direction.vector.astype(np.float64)
    length = float(np.linalg.norm(vector))
    scores = contrast.x @ vector
    told = contrast.towards.any() and not contrast.towards.all()
    auroc = float(roc_auc_score(contrast.towards, scores)) if told else np.nan
    projection = float((contrast.shift @ vector).mean()) / length**2 if len(contrast.shift) else np.nan
    return Judged(held_out_cosine(vector / length, contrast.shift, contrast.shift_family), auroc, projection)


def held_out_cosine(
    unit: Float[np.ndarray, " d_model"],
    shift: Float[np.ndarray, "case d_model"],
    family: np.ndarray,
    size: Float[np.ndarray, " case"] | None = None,
) -> Estimate:
    """<unit, E d> / |E d| over cases, with products of different families below the root.

    Where a "case" is the mean over several, ``size`` is how many.
    """
    size = np.ones(len(shift)) if size is None else size
    n = int(size.sum())
    if len(set(family.tolist())) < FEWEST:
        return Estimate(None, n=n, note=f"undefined: a held-out cosine needs {FEWEST} other case families")
    found = cross_products(shift[None], shift, family, size=size)
    along = _means_without(shift @ unit, family, size)
    square = jackknifed(found, norms)[0][0]
    if square <= 0:
        return Estimate(None, n=n, note="undefined: the held-out shift is below its noise")
    value = float(np.average(shift @ unit, weights=size) / np.sqrt(square))
    squares = found.without[:, 0, 0]
    if (squares <= 0).any():
        return Estimate(value, n=n, note="no interval: undefined without one of the case families")
    # The ratio's own jackknife, over case families.
    left_out = along / np.sqrt(squares)
    ratio = replace(found, products=np.array([[value]]), without=left_out[:, None, None])
    _, low, high = (float(one[0]) for one in jackknifed(ratio, norms))
    return Estimate(value, low, high, n, method="products of different case families, jackknife over families")


def _means_without(
    values: Float[np.ndarray, " case"], family: np.ndarray, size: Float[np.ndarray, " case"]
) -> Float[np.ndarray, " family"]:
    """The mean over cases without each family."""
    member = np.unique(family.astype(str), return_inverse=True)[1]
    sums, counts = (np.bincount(member, weights=one) for one in (values * size, size))
    return np.asarray((sums.sum() - sums) / (size.sum() - counts))
