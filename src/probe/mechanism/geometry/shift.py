"""How far, and in which direction, a persona moves the residual stream. Knows arrays; knows no store or model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from probe.behaviour.pairing import pair_keys
from probe.values import ALL, Estimate, ProbeError, Site

FLIPS = 200
"""Random sign flips behind a noise floor."""

Read: TypeAlias = Callable[[str, int, str], tuple[pd.DataFrame, Float[np.ndarray, "row d_model"]]]
"""(persona, layer, position) -> a table with the columns case, stratum and family, and the residuals of its rows.

Columns that name the condition are used where present. Rows where the position is absent are left out.
``view.table()`` and ``np.asarray(view.resid(...))`` of a store fit."""

_Arm: TypeAlias = tuple[pd.DataFrame, Float[np.ndarray, "_ d_model"]]
_Signs: TypeAlias = Float[np.ndarray, "flip family"]


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


def squared_norm_of_mean(shift: Float[np.ndarray, "case d_model"], family: np.ndarray | None = None) -> float:
    """Unbiased estimate of |E d|^2: (|sum d|^2 - sum |S_f|^2) / (n^2 - sum n_f^2), which may be negative.

    The products of cases of *different families* only (S_f: sum over the n_f cases of one; by default every case is its
    own): |mean d|^2 itself is too large by tr(Sigma) / n, and cases of one family share noise.
    """
    return Families.of(shift, family).square


def sign_flip_floor(
    shift: Float[np.ndarray, "case d_model"],
    rng: np.random.Generator,
    flips: int = FLIPS,
    family: np.ndarray | None = None,
) -> float:
    """95 % quantile of :func:`squared_norm_of_mean` when the sign of each family's shift is random, at least 0."""
    families = Families.of(shift, family)
    return floor_of(families.flipped(random_signs(rng, len(families.size), flips)))


@dataclass(frozen=True, eq=False)
class Families:
    """Sums of the shifts of each case family, and its number of cases."""

    total: Float[np.ndarray, "family d_model"]
    size: Float[np.ndarray, " family"]

    @classmethod
    def of(cls, shift: Float[np.ndarray, "case d_model"], family: np.ndarray | None) -> Families:
        """Of these shifts; without ``family`` every case is its own."""
        known, member = np.unique(np.arange(len(shift)) if family is None else family.astype(str), return_inverse=True)
        return cls(_summed(_float(shift), member, len(known)), np.bincount(member, minlength=len(known)).astype(float))

    @property
    def square(self) -> float:
        """:func:`squared_norm_of_mean` of the families' shifts."""
        return float(self.flipped(np.ones((1, len(self.size))))[0])

    def flipped(self, signs: _Signs) -> Float[np.ndarray, " flip"]:
        """:func:`squared_norm_of_mean` of the families' shifts under each row of signs."""
        pairs = self.size.sum() ** 2 - (self.size**2).sum()
        return np.asarray((((signs @ self.total) ** 2).sum(1) - (self.total**2).sum()) / pairs)

    @property
    def without_each(self) -> Float[np.ndarray, " family"]:
        """:func:`squared_norm_of_mean` without each family, in closed form: no loop over them."""
        whole, squares = self.total.sum(0), (self.total**2).sum(1)
        left = whole @ whole - 2 * self.total @ whole + squares - (squares.sum() - squares)
        n = self.size.sum()
        return np.asarray(left / ((n - self.size) ** 2 - ((self.size**2).sum() - self.size**2)))


def shift_size(pairs: PairedResiduals, rng: np.random.Generator, flips: int = FLIPS) -> ShiftSize:
    """Size of the common shift of these pairs, with a jackknife interval over case families and a sign-flip floor.

    Undefined where the estimate of the squared norm is not positive, and below three families. Source: ESTIMATORS,
    Geometry (products over disjoint cases).

    Raises:
        ProbeError: there is no pair, or the base's residuals are all nil.
    """
    return _sized(pairs, random_signs(rng, len(np.unique(pairs.family.astype(str))), flips))[0]


def _sized(pairs: PairedResiduals, signs: _Signs) -> tuple[ShiftSize, np.ndarray]:
    """:func:`shift_size` with these flips, and the squared relative sizes under them (none below three families)."""
    shift, base = _float(pairs.shift), _float(pairs.base)
    n = len(shift)
    if n == 0:
        raise ProbeError("a shift needs at least one case under both personas; found none")
    base_square = float((base**2).sum(1).mean())
    if base_square == 0:
        raise ProbeError(f"a relative shift needs base residuals that are not all nil; those of {n} cases are")
    lengths = np.sqrt((shift**2).sum(1))
    naive, per_case = (float(x / np.sqrt(base_square)) for x in (np.linalg.norm(shift.mean(0)), lengths.mean()))
    families = Families.of(shift, pairs.family)
    if len(families.size) < 3:
        told = f"undefined: {n} cases in {len(families.size)} families, a size needs three families"
        size = Estimate(None, n=n, note=told)
        return ShiftSize(size, np.nan, naive, per_case, np.nan, float(np.sqrt(base_square))), np.array([])
    square = families.square
    mean_square = float((lengths**2).mean())
    common = square / mean_square if square > 0 else np.nan
    base_squares = Families.of((base**2).sum(1, keepdims=True), pairs.family).total[:, 0]
    size, null = sized_families(families, base_squares, signs)
    return ShiftSize(size, float(np.sqrt(floor_of(null))), naive, per_case, common, float(np.sqrt(base_square))), null


def pair_residuals(read: Read, site: Site, persona: str, base: str) -> PairedResiduals:
    """Residuals of persona and base at one site, paired by case and by the conditions that both arms share.

    Each pair of a case and a condition gives one difference (wordings are averaged within it); a case is the mean of
    its pairs. What lacks the site under either persona is left out of both, so that no condition weighs more in one
    arm than in the other.
    """
    return _paired(*(read(arm, site.layer, site.position) for arm in (persona, base)))


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
    note: the fields of :class:`ShiftSize`. ``floor`` belongs to one layer; ``floor_max`` is the 95 % quantile of the
    *largest* size over these layers under the same sign flips: what the largest of many layers must exceed.
    ``rng`` drives the sign flips; by default a generator seeded with 0.
    Layers that share no case for a persona (an absent position) have no row.
    """
    rng = rng or np.random.default_rng(0)
    others = [persona for persona in personas if persona != base]
    arms: dict[tuple[str, str], OverLayers] = {}
    seed = int(rng.integers(2**63))
    for layer in layers:  # outermost, so that the base is read once per layer and one layer is in memory at a time
        theirs = read(base, layer, position)
        for persona in others:
            pairs = _paired(read(persona, layer, position), theirs)
            for stratum in strata_of(pairs.stratum):
                inside = pairs.stratum_only(stratum)
                # Drawn anew from one seed: the same flips of the same families at every layer, and none of them kept.
                families = len(np.unique(inside.family.astype(str)))
                size, null = _sized(inside, random_signs(np.random.default_rng(seed), families))
                arms.setdefault((persona, stratum), OverLayers([], [])).add(layer, size, null)
    return tabled(arms, others, base, position)


def tabled(
    arms: Mapping[tuple[str, str], OverLayers], personas: Sequence[str], base: str, position: str
) -> pd.DataFrame:
    """The rows of every persona and stratum, by (persona, stratum), in the order of the personas."""
    rows = [
        {"persona": persona, "base": base, "stratum": stratum, "position": position, "floor_max": arm.floor} | row
        for persona in personas
        for (name, stratum), arm in arms.items()
        if name == persona
        for row in arm.rows
    ]
    names = ["persona", "base", "stratum", "position", "layer", "value", "low", "high", "n", "floor", "floor_max"]
    columns = [*names, "naive", "per_case", "common", "base_norm", "method", "note"]
    return pd.DataFrame(rows, columns=columns)


@dataclass(frozen=True, eq=False)
class OverLayers:
    """Of one persona and stratum: a row per layer, and the squared relative sizes under the flips at that layer."""

    rows: list[dict[str, object]]
    nulls: list[np.ndarray]

    def add(self, layer: int, size: ShiftSize, null: np.ndarray) -> None:
        """What one layer gave."""
        self.rows.append({"layer": layer} | _columns(size))
        self.nulls.append(null)

    @property
    def floor(self) -> float:
        """What the largest size over the layers exceeds in 5 % of the flips, without a common shift."""
        drawn = [null for null in self.nulls if len(null)]
        return float(np.sqrt(floor_of(np.max(drawn, axis=0)))) if drawn else np.nan


def random_signs(rng: np.random.Generator, n: int, flips: int = FLIPS) -> _Signs:
    """A sign for each of ``n`` families, in rows."""
    return rng.choice(np.array([-1.0, 1.0]), size=(flips, n))


def floor_of(squares: Float[np.ndarray, " flip"]) -> float:
    """95 % quantile of squares, at least 0."""
    return max(0.0, float(np.quantile(squares, 0.95)))


def sized_families(
    families: Families, base_squares: Float[np.ndarray, " family"], signs: _Signs
) -> tuple[Estimate, Float[np.ndarray, " flip"]]:
    """sqrt(|E d|^2 / E |h_0|^2) with the jackknife of the ratio over families, its ends taken to the root.

    Second the ratio under each row of signs. ``base_squares`` are each family's sums of the base's squared lengths.
    """
    n, count = int(families.size.sum()), len(families.size)
    square, base_square = families.square, float(base_squares.sum() / n)
    null = families.flipped(signs) / base_square
    if square <= 0:
        differs = families.total.any()
        why = "the estimate of the squared norm is not positive" if differs else "no residual differs in any case"
        return Estimate(None, n=n, note=f"undefined: below the noise ({why})"), null
    ratios = families.without_each / ((base_squares.sum() - base_squares) / (n - families.size))
    ratio = square / base_square
    se = float(np.sqrt((count - 1) / count * ((ratios - ratios.mean()) ** 2).sum()))
    half = float(stats.t.ppf(0.975, count - 1)) * se
    low, high = (float(np.sqrt(max(0.0, end))) for end in (ratio - half, ratio + half))
    found = Estimate(float(np.sqrt(ratio)), low, high, n, method="U-statistic, jackknife over case families")
    return found, null


def _paired(ours: _Arm, theirs: _Arm) -> PairedResiduals:
    """Both arms averaged within each (case, shared condition), then within each case, over the same conditions."""
    for table, x in (ours, theirs):
        if len(table) != len(x):
            raise ProbeError(f"residuals must be aligned with their table, found {len(x)} rows for {len(table)} cells")
    left, right = pair_keys(ours[0], theirs[0])
    kept = left >= 0
    cells = ours[0][kept]
    keys, first = np.unique(left[kept], return_index=True)
    case_of_key, cases = pd.factorize(cells["case"].iloc[first])
    described = cells.drop_duplicates("case").set_index("case").reindex(cases)
    described = described.reindex(columns=["family", "stratum"]).astype(object)
    stratum = described["stratum"].fillna("")
    # A case without a family is a family of its own.
    family = described["family"].where(described["family"].notna() & (described["family"] != ""), described.index)
    arms = (
        _averaged(_averaged(x[key >= 0], np.searchsorted(keys, key[key >= 0]), len(keys)), case_of_key, len(cases))
        for x, key in ((ours[1], left), (theirs[1], right))
    )
    return PairedResiduals(
        np.asarray(cases, dtype=object), family.to_numpy(dtype=object), stratum.to_numpy(dtype=object), *arms
    )


def _averaged(x: np.ndarray, group: np.ndarray, n_groups: int) -> Float[np.ndarray, "group d_model"]:
    if n_groups == len(x):  # one row each: only the order changes
        return _float(x)[np.argsort(group)]
    return _summed(_float(x), group, n_groups) / np.bincount(group, minlength=n_groups)[:, None]


def _summed(x: np.ndarray, group: np.ndarray, n_groups: int) -> Float[np.ndarray, "group d_model"]:
    sums = np.zeros((n_groups, x.shape[1]))
    np.add.at(sums, group, x)
    return sums


def strata_of(stratum: np.ndarray) -> tuple[str, ...]:
    """All of them together, and each where there are several."""
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
