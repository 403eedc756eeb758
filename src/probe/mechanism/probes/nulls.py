"""Null distributions that keep what rows of a case have in common, and the largest of many. Knows labels' places only.

Rows of one case are alike, whatever is asked of them. Shuffling rows breaks that likeness and rejects a third of true
nulls at .05; these move labels only as the question allows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class Moves:
    """Permutations of rows: ``labels[index[k]]`` are the labels under permutation k.

    ``moved`` is the share of rows that have another row to take a label from.
    """

    index: Int[np.ndarray, "permutation row"]
    moved: float


def within_case(case: np.ndarray, permutations: int, rng: np.random.Generator) -> Moves:
    """Labels change places among the rows of one case: for what differs within a case, as who is speaking."""
    code = np.unique(case.astype(str), return_inverse=True)[1]
    home = np.argsort(code, kind="stable")
    index = np.empty((permutations, len(case)), dtype=np.intp)
    for k in range(permutations):
        index[k, home] = np.lexsort((rng.random(len(case)), code))
    return Moves(index, float((np.bincount(code)[code] > 1).mean()) if len(code) else 0.0)


def blocks_moved(
    block: np.ndarray, key: np.ndarray, stratum: np.ndarray, permutations: int, rng: np.random.Generator
) -> Moves:
    """Whole label vectors of blocks (cases, or families) change places within a stratum.

    ``key`` names a row within its block (persona, condition): a label moves to the row of the same key. Blocks change
    places only with blocks of the same keys, so that every permutation has the labels of the same rows: exact, and a
    block with keys of its own stays. A block's stratum is that of its rows, in the order of their keys.
    """
    rows = pd.DataFrame({"block": block.astype(str), "key": key.astype(str), "stratum": stratum.astype(str)})
    ordered = rows.sort_values(["block", "key"], kind="stable")
    pattern = ordered.groupby("block")[["key", "stratum"]].agg("\x1f".join)
    places = {name: part.to_numpy() for name, part in ordered.groupby("block").groups.items()}
    index = np.tile(np.arange(len(rows)), (permutations, 1))
    moved = 0
    for _, alike in pattern.groupby(["key", "stratum"], sort=True):
        home = np.stack([places[name] for name in alike.index])
        if len(home) < 2:
            continue
        moved += home.size
        order = np.argsort(rng.random((permutations, len(home))), axis=1)
        index[:, home.ravel()] = home[order].reshape(permutations, -1)
    return Moves(index, moved / len(rows) if len(rows) else 0.0)


@dataclass(frozen=True, eq=False)
class Significance:
    """What permutations say of many statistics at once; NaN where a statistic is undefined.

    ``high`` is the value that the largest of all statistics stays below in 95 % of the permutations, in the units of
    each statistic (max-T): the upper edge of the band that "the best of many" must leave.
    """

    p: Float[np.ndarray, " statistic"]
    p_adjusted: Float[np.ndarray, " statistic"]
    null_mean: Float[np.ndarray, " statistic"]
    high: Float[np.ndarray, " statistic"]


def largest_of_many(
    observed: Float[np.ndarray, " statistic"], null: Float[np.ndarray, "statistic permutation"]
) -> Significance:
    """p = (1 + #>=) / (1 + K) of each statistic, and adjusted for being the largest of all (Westfall and Young, max-T).

    Each statistic is first centred and scaled by the mean and standard deviation of its 1 + K values, the observed one
    included, which keeps the test exact and lets statistics of different spread stand side by side. One-sided: large
    values speak against the null. Undefined permutations of a statistic do not count.
    """
    k = null.shape[1]
    if k == 0 or len(observed) == 0:
        nothing = np.full(len(observed), np.nan)
        return Significance(nothing, nothing, nothing, nothing)
    defined = ~np.isnan(observed) & ~np.isnan(null).all(1)
    every = np.concatenate([observed[:, None], null], axis=1)[defined]
    mean, spread = np.nanmean(every, 1), np.nanstd(every, 1)
    unit = np.where(spread > 0, spread, 1.0)
    t = (every - mean[:, None]) / unit[:, None]
    # Equal statistics may differ in the last bit, and >= must hold for them.
    at_least = t[:, 1:] >= t[:, :1] - 1e-9
    counted = (~np.isnan(t[:, 1:])).sum(1)
    p = (1 + at_least.sum(1)) / (1 + counted)
    largest = np.nanmax(np.where(np.isnan(t[:, 1:]), -np.inf, t[:, 1:]), axis=0, initial=-np.inf)
    adjusted = (1 + (largest >= t[:, :1] - 1e-9).sum(1)) / (1 + k)
    edge = np.quantile(largest, 0.95) if len(t) else np.nan

    def spread_out(values: np.ndarray) -> np.ndarray:
        found = np.full(len(observed), np.nan)
        found[defined] = values
        return found

    null_mean = np.nanmean(every[:, 1:], 1) if len(every) else mean
    return Significance(*map(spread_out, (p, adjusted, null_mean, mean + edge * spread)))
