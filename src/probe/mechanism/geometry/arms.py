"""Which rows make each arm's paired shift from a base, case by case. Knows tables and pairs; knows no residual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import sparse

from probe.behaviour.pairing import SHARED, pair_keys
from probe.mechanism.splits import families_of
from probe.values import ALL

ROUNDING = 1e-6
"""Relative size below which a difference of residuals is that of float32 arithmetic."""


@dataclass(frozen=True, eq=False)
class ShiftRows:
    """Weights over the rows of a table that give, for every arm, its shift from the base in every case.

    A case's shift is the mean over the conditions that both arms have of (mean of the arm's rows minus mean of the
    base's rows). Only cases in which *every* arm has a pair are kept, so that no difference between two arms is one
    between their cases. ``weights`` has one block of rows per arm, each with one row per case; ``base_weights`` gives
    the base's own mean per case. ``paired`` counts each arm's cases before that; ``without`` names the arms that have
    none at all and are left out. ``size`` is how many cases each of them stands for, where they are lines of sums (else
    one each), and ``told`` what is to say of these.
    """

    arms: tuple[str, ...]
    base: str
    case: np.ndarray
    family: np.ndarray
    stratum: np.ndarray
    weights: sparse.csr_array
    base_weights: sparse.csr_array
    paired: Mapping[str, int]
    without: tuple[str, ...] = ()
    size: Float[np.ndarray, " case"] | None = None
    told: str = ""

    @property
    def sizes(self) -> Float[np.ndarray, " case"]:
        """How many cases each of them stands for."""
        return np.ones(len(self.case)) if self.size is None else self.size

    @property
    def note(self) -> str:
        """Which arm costs the others cases, in words; empty where all have the same."""
        if self.size is not None:
            return self.told
        most = max(self.paired.values(), default=0)
        fewest = min(self.paired, key=self.paired.__getitem__, default="")
        if not fewest or len(self.case) == most:
            return ""
        return f"{len(self.case)} of {most} cases have the site in every arm (fewest in {fewest})"

    def shifts(self, x: Float[np.ndarray, "row d_model"]) -> Float[np.ndarray, "arm case d_model"]:
        """Every arm's shift in every case, in units of the residual stream; what only rounding moved is nil."""
        # float64: sums of nearly parallel vectors cancel, and float32 would lose the small differences.
        found = np.asarray(self.weights @ x.astype(np.float64)).reshape(len(self.arms), len(self.case), x.shape[1])
        lengths, base = (np.sqrt((one**2).sum(-1)) for one in (found, self.base_of(x)))
        found[lengths <= ROUNDING * base] = 0.0
        return found

    def base_of(self, x: Float[np.ndarray, "row d_model"]) -> Float[np.ndarray, "case d_model"]:
        """The base's mean residual in every case."""
        return np.asarray(self.base_weights @ x.astype(np.float64))

    def only(self, stratum: str) -> ShiftRows:
        """The cases of one stratum, or all."""
        if stratum == ALL:
            return self
        kept = np.flatnonzero(self.stratum == stratum)
        rows = (np.arange(len(self.arms))[:, None] * len(self.case) + kept).ravel()
        return replace(
            self,
            case=self.case[kept],
            family=self.family[kept],
            stratum=self.stratum[kept],
            weights=self.weights[rows],
            base_weights=self.base_weights[kept],
            size=None if self.size is None else self.size[kept],
        )


def shift_rows(
    table: pd.DataFrame, arms: Mapping[str, np.ndarray], base: str, bases: np.ndarray | Mapping[str, np.ndarray]
) -> ShiftRows:
    """The weights for arms given as masks over the table's rows, against the rows of the base.

    ``bases`` is the mask of the base, or one for each arm (as where each is compared with the mean of the others).
    Pairs agree in case and in every part of the condition but the wording (:mod:`probe.behaviour.pairing`).
    """
    found: dict[str, tuple[pd.Index[str], sparse.csr_array, sparse.csr_array]] = {}
    told = [name for name in ("condition", "wording", *SHARED) if name in table]
    # Numbers for names: pairing compares them for every arm.
    coded = pd.DataFrame({name: pd.factorize(table[name])[0] for name in told})
    coded["case"], known = pd.factorize(table["case"])
    for arm, mask in arms.items():
        theirs = bases[arm] if isinstance(bases, Mapping) else bases
        cases, ours, base_rows = _weights(coded, np.flatnonzero(mask), np.flatnonzero(theirs))
        if len(cases):
            found[arm] = (pd.Index(known[cases], dtype=object), ours, base_rows)
    shared: pd.Index[str] = next((named for named, _, _ in found.values()), pd.Index([], dtype=object))
    for known_cases, _, _ in found.values():
        shared = shared[shared.isin(known_cases)]
    blocks, base_block = [], sparse.csr_array((len(shared), len(table)))
    for i, (named, ours, base_rows) in enumerate(found.values()):
        places = named.get_indexer(shared)
        blocks.append(ours[places] - base_rows[places])
        base_block = base_rows[places] if i == 0 else base_block
    described = table.assign(family=families_of(table)).drop_duplicates("case").set_index("case").reindex(shared)
    stratum = described["stratum"].fillna("") if "stratum" in described else pd.Series("", index=shared)
    weights = sparse.vstack(blocks, format="csr") if blocks else sparse.csr_array((0, len(table)))
    return ShiftRows(
        tuple(found),
        base,
        shared.to_numpy(dtype=object),
        described["family"].to_numpy(dtype=object),
        stratum.to_numpy(dtype=object),
        sparse.csr_array(weights),
        base_block,
        {arm: len(cases) for arm, (cases, _, _) in found.items()},
        tuple(arm for arm in arms if arm not in found),
    )


def _weights(
    table: pd.DataFrame, ours: Int[np.ndarray, " ours"], theirs: Int[np.ndarray, " theirs"]
) -> tuple[Int[np.ndarray, " case"], sparse.csr_array, sparse.csr_array]:
    """The numbers of an arm's cases that have a pair, and the weights of its rows and of the base's for each."""
    left, right = pair_keys(table.iloc[ours], table.iloc[theirs])
    keys, first = np.unique(left[left >= 0], return_index=True)
    case_of_key, cases = pd.factorize(table["case"].iloc[ours[left >= 0][first]])
    sides = []
    for rows, key in ((ours, left), (theirs, right)):
        kept = np.flatnonzero(key >= 0)
        number = np.searchsorted(keys, key[kept])
        in_key, in_case = np.bincount(number, minlength=len(keys)), np.bincount(case_of_key, minlength=len(cases))
        case = case_of_key[number]
        weight = 1 / (in_key[number] * in_case[case])
        sides.append(sparse.csr_array((weight, (case, rows[kept])), shape=(len(cases), len(table))))
    return np.asarray(cases, dtype=int), sides[0], sides[1]
