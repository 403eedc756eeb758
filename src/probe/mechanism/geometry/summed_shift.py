"""How far a persona moves the residual stream, from sums over blocks of case families. Knows sums; knows no rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from probe.mechanism.activations import Activations, SiteRows
from probe.mechanism.geometry.arms import ShiftRows, shift_rows
from probe.mechanism.geometry.products import FEWEST, family_sums
from probe.mechanism.geometry.shift import (
    Families,
    OverLayers,
    ShiftSize,
    floor_of,
    random_signs,
    sized_families,
    strata_of,
    tabled,
)
from probe.mechanism.geometry.summed import base_squares, sized
from probe.values import Estimate, ProbeError

METHOD = "U-statistic, jackknife over blocks of case families"


def shift_of_lines(
    read: Activations, personas: Sequence[str], *, base: str, position: str, rng: np.random.Generator | None = None
) -> pd.DataFrame:
    """As :func:`probe.mechanism.geometry.shift.shift_by_layer`, with blocks of case families in the place of families.

    ``per_case`` and ``common`` ask each case for its own shift, which no sum knows: they are undefined.
    """
    seed = int((rng or np.random.default_rng(0)).integers(2**63))
    others = [persona for persona in personas if persona != base]
    arms: dict[tuple[str, str], OverLayers] = {}
    for layer in read.layers:
        site = read.at(layer, position)
        assert site.lines is not None
        table = read.table.iloc[site.places].reset_index(drop=True)
        table.attrs = {}
        persona = table["persona"].to_numpy(dtype=object)
        for name in others:
            rows = shift_rows(table, {name: persona == name}, base, persona == base)
            if not rows.arms:
                continue
            whole = sized(rows, site.lines)
            for stratum in strata_of(whole.stratum):
                size, null = _sized(whole.only(stratum), site, seed)
                arms.setdefault((name, stratum), OverLayers([], [])).add(layer, size, null)
    return tabled(arms, others, base, position)


def _sized(rows: ShiftRows, site: SiteRows, seed: int) -> tuple[ShiftSize, np.ndarray]:
    """The size of one arm's shift, and the squared relative sizes under random signs (none below three blocks)."""
    shift, n = rows.shifts(site.x)[0], int(rows.sizes.sum())
    member = np.unique(rows.family.astype(str), return_inverse=True)[1]
    families = Families(family_sums(shift * rows.sizes[:, None], member), np.bincount(member, weights=rows.sizes))
    squares = np.bincount(member, weights=base_squares(rows, site).sum(1) * rows.sizes)
    root = float(np.sqrt(squares.sum() / n))
    if root == 0:
        raise ProbeError(f"a relative shift needs base residuals that are not all nil; those of {n} cases are")
    naive = float(np.linalg.norm(families.total.sum(0)) / n / root)
    if len(families.size) < FEWEST:
        told = f"undefined: {n} cases in {len(families.size)} blocks of families, a size needs {FEWEST} blocks"
        return ShiftSize(Estimate(None, n=n, note=told), np.nan, naive, np.nan, np.nan, root), np.array([])
    size, null = sized_families(families, squares, random_signs(np.random.default_rng(seed), len(families.size)))
    note = "; ".join(filter(None, (size.note, rows.note)))
    size = replace(size, method=METHOD if size.method else "", note=note)
    return ShiftSize(size, float(np.sqrt(floor_of(null))), naive, np.nan, np.nan, root), null
