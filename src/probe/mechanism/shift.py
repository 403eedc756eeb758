"""How far, and in which direction, a persona moves the residual stream. Knows arrays; knows no store or model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from probe.values import Direction, Estimate, ProbeError, Site

ALL = "all"
FLIPS = 200
"""Random sign flips behind a noise floor."""

Read: TypeAlias = Callable[[str, int, str], tuple[pd.DataFrame, Float[np.ndarray, "row d_model"]]]
"""(persona, layer, position) -> a table with the columns case, stratum and family, and the residuals of its rows.

Rows where the position is absent are left out. ``view.table()`` and ``np.asarray(view.resid(...))`` of a store fit."""

_ByCase: TypeAlias = tuple[pd.DataFrame, Float[np.ndarray, "_ d_model"]]


@dataclass(frozen=True, eq=False)
class PairedResiduals:
    """Residuals of one persona and of the base at one site, row i of both from the same case, one row per case."""

    case: np.ndarray
    family: np.ndarray
    stratum: np.ndarray
    persona: Float[np.ndarray, "case d_model"]
    base: Float[np.ndarray, "case d_model"]

    @property
    def shift(self) -> Float[np.ndarray, "case d_model"]:
        """Persona minus base, per case."""
        return np.asarray(self.persona - self.base)

    def stratum_only(self, stratum: str) -> PairedResiduals:
        """The pairs of one stratum, or all."""
        rows = np.full(len(self.case), True) if stratum == ALL else self.stratum == stratum
        return PairedResiduals(
            *(array[rows] for array in (self.case, self.family, self.stratum, self.persona, self.base))
        )


@dataclass(frozen=True, eq=False)
class ShiftSize:
    """Size of a persona's shift at one site, relative to the base's residual norm.

    ``size``: norm of the *common* shift (the mean over cases), free of the inflation that noise brings. ``floor``:
    95 % quantile of what ``size`` would be without a common shift. ``naive``: norm of the plain mean, which noise
    inflates. ``per_case``: mean norm of the single shifts. All four are divided by ``base_norm``, the root mean square
    norm of the base's residuals, in units of the residual stream. ``common``: share of the shifts' mean square that is
    common to all cases, at most 1.
    """

    size: Estimate
    floor: float
    naive: float
    per_case: float
    common: float
    base_norm: float


def squared_norm_of_mean(shift: Float[np.ndarray, "case d_model"]) -> float:
    """Unbiased estimate of |E d|^2: (|sum d|^2 - sum |d_i|^2) / (n (n - 1)), which may be negative.

    The products of *different* cases only: |mean d|^2 itself is too large by tr(Sigma) / n.
    """
    n = len(shift)
    total = shift.sum(0)
    return float((total @ total - (shift**2).sum()) / (n * (n - 1)))


def sign_flip_floor(shift: Float[np.ndarray, "case d_model"], rng: np.random.Generator, flips: int = FLIPS) -> float:
    """95 % quantile of :func:`squared_norm_of_mean` when the sign of each case's shift is random, at least 0."""
    n = len(shift)
    signs = rng.choice(np.array([-1.0, 1.0], dtype=shift.dtype), size=(flips, n))
    totals = ((signs @ shift) ** 2).sum(1)
    return max(0.0, float(np.quantile((totals - (shift**2).sum()) / (n * (n - 1)), 0.95)))


def shift_size(pairs: PairedResiduals, rng: np.random.Generator, flips: int = FLIPS) -> ShiftSize:
    """Size of the common shift of these pairs, with a jackknife interval over cases and a sign-flip noise floor.

    Undefined where the estimate of the squared norm is not positive, and below three cases. Source: ESTIMATORS,
    Geometry (products over disjoint cases).

    Raises:
        ProbeError: there is no pair, or the base's residuals are all nil.
    """
    shift, base = _float(pairs.shift), _float(pairs.base)
    n = len(shift)
    if n == 0:
        raise ProbeError("a shift needs at least one case under both personas; found none")
    base_square = float((base**2).sum(1).mean())
    if base_square == 0:
        raise ProbeError(f"a relative shift needs base residuals that are not all nil; those of {n} cases are")
    lengths = np.sqrt((shift**2).sum(1))
    naive, per_case = (float(x / np.sqrt(base_square)) for x in (np.linalg.norm(shift.mean(0)), lengths.mean()))
    if n < 3:
        size = Estimate(None, n=n, note=f"undefined: {n} cases, a size needs three")
        return ShiftSize(size, np.nan, naive, per_case, np.nan, float(np.sqrt(base_square)))
    square = squared_norm_of_mean(shift)
    mean_square = float((lengths**2).mean())
    floor = float(np.sqrt(sign_flip_floor(shift, rng, flips) / base_square))
    common = square / mean_square if square > 0 else np.nan
    size = _relative_size(shift, base, square, base_square)
    return ShiftSize(size, floor, naive, per_case, common, float(np.sqrt(base_square)))


def persona_direction(pairs: PairedResiduals, site: Site, persona: str, base: str) -> Direction:
    """The mean paired shift, from the base towards the persona, in units of the residual stream.

    Raises:
        ProbeError: there is no pair.
    """
    if len(pairs.case) == 0:
        raise ProbeError(f"a direction needs a case under both {persona} and {base} at {site}; found none")
    vector = _float(pairs.shift).mean(0)
    return Direction(site, vector, persona, base, len(pairs.case), frozenset(pairs.family.tolist()))


def pair_residuals(read: Read, site: Site, persona: str, base: str) -> PairedResiduals:
    """Residuals of persona and base at one site, paired by case; several conditions of a case are averaged first.

    Cases that lack the site under either persona are left out.
    """
    ours, theirs = (_by_case(*read(arm, site.layer, site.position)) for arm in (persona, base))
    return _paired(ours, theirs)


def shift_by_layer(
    read: Read,
    personas: Sequence[str],
    layers: Sequence[int],
    *,
    base: str = "none",
    position: str = "prompt_end",
    rng: np.random.Generator | None = None,
) -> pd.DataFrame:
    """Size of every persona's residual shift from the base at every layer (residual point), pooled and per stratum.

    Columns: persona, base, stratum, position, layer, value, low, high (relative to the RMS residual norm of the base
    at that layer; NaN where undefined, see ``note``), n (cases), floor, naive, per_case, common, base_norm, method,
    note: the fields of :class:`ShiftSize`. ``rng`` drives the sign flips; by default a generator seeded with 0.
    Layers that share no case for a persona (an absent position) have no row.
    """
    rng = rng or np.random.default_rng(0)
    others = [persona for persona in personas if persona != base]
    rows: dict[str, list[dict[str, object]]] = {persona: [] for persona in others}
    for layer in layers:  # outermost, so that the base is read once per layer and one layer is in memory at a time
        theirs = _by_case(*read(base, layer, position))
        for persona in others:
            pairs = _paired(_by_case(*read(persona, layer, position)), theirs)
            for stratum in _strata(pairs.stratum):
                size = shift_size(pairs.stratum_only(stratum), rng)
                row = {"persona": persona, "base": base, "stratum": stratum, "position": position, "layer": layer}
                rows[persona].append(row | _columns(size))
    names = ["persona", "base", "stratum", "position", "layer", "value", "low", "high", "n", "floor", "naive"]
    columns = [*names, "per_case", "common", "base_norm", "method", "note"]
    return pd.DataFrame([row for of_persona in rows.values() for row in of_persona], columns=columns)


def _relative_size(shift: np.ndarray, base: np.ndarray, square: float, base_square: float) -> Estimate:
    """sqrt(|E d|^2 / E |h_0|^2) with the jackknife of the ratio over cases, its ends taken to the root."""
    n = len(shift)
    if square <= 0:
        why = "the estimate of the squared norm is not positive" if shift.any() else "no residual differs in any case"
        return Estimate(None, n=n, note=f"undefined: below the noise ({why})")
    total, squares, base_squares = shift.sum(0), (shift**2).sum(1), (base**2).sum(1)
    # |S - d_i|^2 and the sums without case i, in closed form: no loop over cases.
    without = total @ total - 2 * shift @ total + squares
    u_without = (without - (squares.sum() - squares)) / ((n - 1) * (n - 2))
    ratios = u_without / ((base_squares.sum() - base_squares) / (n - 1))
    ratio = square / base_square
    se = float(np.sqrt((n - 1) / n * ((ratios - ratios.mean()) ** 2).sum()))
    half = float(stats.t.ppf(0.975, n - 1)) * se
    low, high = (float(np.sqrt(max(0.0, end))) for end in (ratio - half, ratio + half))
    return Estimate(float(np.sqrt(ratio)), low, high, n, method="U-statistic, jackknife over cases")


def _by_case(table: pd.DataFrame, rows: np.ndarray) -> _ByCase:
    """Family and stratum by case, and the residuals averaged within each case."""
    if len(table) != len(rows):
        raise ProbeError(f"residuals must be aligned with their table, found {len(rows)} rows for {len(table)} cells")
    member, cases = pd.factorize(table["case"])
    first = table.drop_duplicates("case").set_index("case").reindex(columns=["family", "stratum"]).astype(object)
    first["stratum"] = first["stratum"].fillna("")
    # A case without a family is a family of its own.
    first["family"] = first["family"].where(first["family"].notna() & (first["family"] != ""), first.index)
    sums = np.zeros((len(cases), rows.shape[1]))
    np.add.at(sums, member, _float(rows))
    return first, sums / np.bincount(member, minlength=len(cases))[:, None]


def _paired(ours: _ByCase, theirs: _ByCase) -> PairedResiduals:
    both = ours[0].index.intersection(theirs[0].index, sort=False)
    left, right = ours[0].index.get_indexer(both), theirs[0].index.get_indexer(both)
    family, stratum = (ours[0][name].to_numpy(dtype=object)[left] for name in ("family", "stratum"))
    return PairedResiduals(both.to_numpy(dtype=object), family, stratum, ours[1][left], theirs[1][right])


def _strata(stratum: np.ndarray) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(stratum.tolist()))
    return () if not found else (ALL, *found) if len(found) > 1 else (ALL,)


def _columns(size: ShiftSize) -> dict[str, object]:
    estimate = size.size
    row: dict[str, object] = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
    row |= {"floor": size.floor, "naive": size.naive, "per_case": size.per_case, "common": size.common}
    row |= {"base_norm": size.base_norm, "method": estimate.method, "note": estimate.note}
    return {name: np.nan if value is None else value for name, value in row.items()}


def _float(x: np.ndarray) -> np.ndarray:
    # Sums over thousands of products of nearly parallel vectors cancel: float32 would lose the small differences.
    return np.asarray(x, dtype=np.float64)
