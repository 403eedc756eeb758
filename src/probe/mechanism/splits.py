"""Which case families fit and which judge. Knows names and a seed; knows no score, label or residual."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Int

from probe.values import ProbeError
from probe.values.blocks import hashed, place_of


def families_of(table: pd.DataFrame) -> np.ndarray:
    """The family of each row's case; a case without one is a family of its own."""
    cases = table["case"].astype(str)
    if "family" not in table:
        return cases.to_numpy(dtype=object)
    family = table["family"]
    return cases.where(family.isna() | (family == ""), family.astype(str)).to_numpy(dtype=object)


def fold_of(
    family: np.ndarray, folds: int, seed: int = 0, stratum: np.ndarray | None = None
) -> Int[np.ndarray, " row"]:
    """The fold 0 .. folds-1 of each row: all rows of a family share one, and folds differ by one family at most.

    Families are dealt out in the order of their hash with the seed, stratum after stratum (that of a family's first
    row), so that neither the order of the rows nor what was measured decides.

    Raises:
        ProbeError: there are fewer families than folds.
    """
    names, first, member = np.unique(family.astype(str), return_index=True, return_inverse=True)
    if len(names) < folds:
        raise ProbeError(
            f"{folds} folds need at least as many case families, found {len(names)}; capture more cases, or ask for "
            "fewer folds"
        )
    strata = (
        np.zeros(len(names), dtype=int)
        if stratum is None
        else np.unique(stratum[first].astype(str), return_inverse=True)[1]
    )
    order = np.lexsort((np.array([hashed(name, seed) for name in names]), strata))
    fold = np.empty(len(names), dtype=int)
    fold[order] = np.arange(len(names)) % folds
    return fold[member]


def part_of(family: np.ndarray, shares: Mapping[str, float], seed: int = 0) -> np.ndarray:
    """The part (``train``, ``validation``, ``test``, ...) of each row, by the hash of its family alone.

    A family keeps its part when cases are added or left out; shares are met on average only.

    Raises:
        ProbeError: the shares are not positive numbers that sum to 1.
    """
    sizes = np.array(list(shares.values()), dtype=float)
    if (sizes <= 0).any() or abs(sizes.sum() - 1) > 1e-9:
        raise ProbeError(f"shares of a split are positive and sum to 1, found {dict(shares)}")
    ends, names = np.cumsum(sizes)[:-1], np.array(list(shares), dtype=object)
    known, member = np.unique(family.astype(str), return_inverse=True)
    uniform = np.array([place_of(name, seed) for name in known])
    return np.asarray(names[np.searchsorted(ends, uniform, side="right")][member])


def require_apart(fitted_on: Collection[str], judged_on: np.ndarray, what: str) -> None:
    """Refuse to judge something on case families that fitted it.

    Raises:
        ProbeError: a family stands on both sides.
    """
    both = sorted(set(fitted_on) & set(judged_on.tolist()))
    if both:
        raise ProbeError(
            f"{what} may only be judged on case families that did not fit it; {len(both)} families fitted it and are "
            f"judged (first: {both[0]!r}); judge it on the others"
        )
