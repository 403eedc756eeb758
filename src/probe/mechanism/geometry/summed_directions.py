"""Directions from sums over blocks of case families, and how they fare on other blocks. Knows sums; knows no rows.

The training families of a split in quarters are whole blocks (both follow from one hash), so that a direction here is
fitted on the very cases that it is fitted on where every row was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from probe.mechanism.activations import LineSums, SiteRows
from probe.mechanism.geometry.arms import ROUNDING, shift_rows
from probe.mechanism.geometry.directions import PARTS, Judged, held_out_cosine
from probe.mechanism.geometry.rows import METHOD_OF_BLOCKS
from probe.mechanism.geometry.summed import sized, whitening_of
from probe.mechanism.splits import require_apart
from probe.values import Direction, ProbeError, Site
from probe.values.blocks import BLOCKS
from probe.values.sums import Sums

ROWS_NEEDED = "it is fitted on rows, and the store keeps sums over them (capture.keep: moments)"


@dataclass(frozen=True, eq=False)
class SummedContrast:
    """The sums of a persona and of its base at one site, and one paired shift for each block (and stratum) of cases.

    ``towards`` marks the persona's lines, ``block`` is that of each.
    """

    site: Site
    persona: str
    base: str
    lines: LineSums
    towards: Bool[np.ndarray, " line"]
    block: np.ndarray
    shift: Float[np.ndarray, "case d_model"]
    size: Float[np.ndarray, " case"]
    shift_block: np.ndarray
    note: str

    def only(self, blocks: frozenset[str]) -> SummedContrast:
        """What belongs to these blocks."""
        kept, cases = (np.flatnonzero(np.isin(one, list(blocks))) for one in (self.block, self.shift_block))
        return replace(
            self,
            lines=self.lines.take(kept),
            towards=self.towards[kept],
            block=self.block[kept],
            shift=self.shift[cases],
            size=self.size[cases],
            shift_block=self.shift_block[cases],
        )

    @property
    def sides(self) -> Sums:
        """The sums of all rows of the base (group 0) and of the persona (1).

        Raises:
            ProbeError: one of them has no row.
        """
        if self.towards.all() or not self.towards.any():
            side = self.base if self.towards.any() else self.persona
            raise ProbeError(
                f"a direction needs residuals of both {self.persona!r} and {self.base!r} at {self.site}; {side!r} has "
                "none there"
            )
        return self.lines.sums.merged(self.towards.astype(int))

    @property
    def common_shift(self) -> Float[np.ndarray, " d_model"]:
        """The mean over cases of the paired shift."""
        return np.asarray(np.average(self.shift, axis=0, weights=self.size))


SumMaker: TypeAlias = Callable[[SummedContrast], Direction]


def contrast_of_lines(
    table: pd.DataFrame, rows: SiteRows, persona: str, base: str, base_mask: np.ndarray
) -> SummedContrast:
    """The contrast of a persona with a base at one site; ``table`` has a line per sum, ``base_mask`` is over it."""
    assert rows.lines is not None
    here = table.iloc[rows.places].reset_index(drop=True)
    here.attrs = {}
    theirs, ours = base_mask[rows.places], here["persona"].to_numpy(dtype=object) == persona
    paired = shift_rows(here, {persona: ours}, base, theirs)
    paired = sized(paired, rows.lines) if paired.arms else paired
    either = np.flatnonzero(ours | theirs)
    return SummedContrast(
        Site(rows.layer, rows.position),
        persona,
        base,
        rows.lines.take(either),
        ours[either],
        here["family"].to_numpy(dtype=object)[either],
        paired.shifts(rows.x)[0] if paired.arms else np.empty((0, rows.x.shape[1])),
        paired.sizes,
        paired.family,
        paired.told,
    )


def training_blocks() -> frozenset[str]:
    """The blocks whose families may fit a direction."""
    train = PARTS["train"]
    return frozenset(str(block) for block in range(BLOCKS) if (block + 1) / BLOCKS <= train)


def difference_in_means(contrast: SummedContrast) -> Direction:
    """As :func:`probe.mechanism.geometry.directions.difference_in_means`, and equal to it."""
    return _direction(contrast, _apart(contrast), "difference_in_means")


def paired_mean(contrast: SummedContrast) -> Direction:
    """As :func:`probe.mechanism.geometry.directions.paired_mean`; equal to it where both arms have the same cases."""
    if not len(contrast.shift):
        raise ProbeError(
            f"a paired direction needs a case under both {contrast.persona!r} and {contrast.base!r} at "
            f"{contrast.site}; found none"
        )
    return _direction(contrast, contrast.common_shift, "paired_mean")


def whitened_difference(contrast: SummedContrast) -> Direction:
    """As :func:`probe.mechanism.geometry.directions.whitened_difference`, and equal to it.

    Raises:
        ProbeError: the covariance of the whole width was not kept, or the rows of an arm do not vary.
    """
    sides = contrast.sides
    if sides.axes is not None:
        raise ProbeError(
            f"it needs the covariance of all {sides.mean.shape[1]} dimensions, and the store keeps that of "
            f"{sides.products.shape[-1]}; capture.covariance sets it"
        )
    within = Sums(**{name: array.sum(0, keepdims=True) for name, array in vars(sides).items()})
    if not np.trace(within.products[0]):
        raise ProbeError(f"a whitened direction needs rows that vary within an arm; none do at {contrast.site}")
    return _direction(contrast, whitening_of(within, power=-1.0)(_apart(contrast)), "whitened_difference")


def probe_weight(contrast: SummedContrast) -> Direction:
    """A logistic regression has no sums.

    Raises:
        ProbeError: always.
    """
    raise ProbeError(ROWS_NEEDED)


SUM_MAKERS: Mapping[str, SumMaker] = MappingProxyType(
    {one.__name__: one for one in (difference_in_means, paired_mean, whitened_difference, probe_weight)}
)
"""Every maker by its name."""


def _apart(contrast: SummedContrast) -> Float[np.ndarray, " d_model"]:
    base, persona = contrast.sides.mean
    apart = np.asarray(persona - base)
    return apart if np.linalg.norm(apart) > ROUNDING * np.linalg.norm(base) else np.zeros_like(apart)


def _direction(contrast: SummedContrast, weight: np.ndarray, maker: str) -> Direction:
    length = float(np.linalg.norm(weight))
    if length == 0:
        raise ProbeError(
            f"{maker} is undefined where no residual differs: those of {contrast.persona!r} and {contrast.base!r} are "
            f"the same at {contrast.site}"
        )
    unit = weight / length
    apart = contrast.common_shift if maker == "paired_mean" else _apart(contrast)
    paired = np.isin(contrast.block, contrast.shift_block) if maker == "paired_mean" else np.ones(len(contrast.block))
    used = np.flatnonzero(paired)
    cases = frozenset().union(*(contrast.lines.cases[at] for at in used))
    families = frozenset().union(*(contrast.lines.families[at] for at in used))
    vector = (unit * (unit @ apart)).astype(np.float32)
    return Direction(contrast.site, vector, contrast.persona, contrast.base, len(cases), families, cases, maker)


def judge_by_sums(direction: Direction, contrast: SummedContrast) -> Judged:
    """A direction on blocks that did not fit it; the area under the curve needs rows, and is not there.

    Raises:
        ProbeError: a case family fitted it.
    """
    families = np.array(sorted(frozenset().union(*contrast.lines.families)), dtype=object)
    require_apart(direction.fitted_on, families, f"{direction.maker or 'a direction'} of {direction.persona!r}")
    vector = direction.vector.astype(np.float64)
    length = float(np.linalg.norm(vector))
    projection = float(contrast.common_shift @ vector) / length**2 if len(contrast.shift) else np.nan
    cosine = held_out_cosine(vector / length, contrast.shift, contrast.shift_block, contrast.size)
    cosine = replace(cosine, method=METHOD_OF_BLOCKS if cosine.method else "")
    return Judged(cosine, np.nan, projection)
