"""Which rows of two arms belong together. Knows cases and conditions; knows no score, residual or persona."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Int

SHARED = ("instruction", "rotation", "placement", "prefix", "seed", "intervention", "given")
"""Parts of a condition that mean the same under every persona. The *wording* does not: each persona has its own."""


def pair_columns(ours: pd.DataFrame, theirs: pd.DataFrame) -> list[str]:
    """The columns in which a row of ``ours`` and a row of the base, ``theirs``, must agree to be a pair.

    The case, and every part of the condition that both arms share (not the wording), so that no pair crosses rotations,
    instructions or placements. Where these columns are not told, or do not say all that ``condition`` says,
    ``condition`` stands for them; a base that has one condition throughout then pairs by case alone.
    """
    told = [name for name in SHARED if name in ours and name in theirs]
    worded = "wording" in ours and "wording" in theirs
    if (told or worded) and _say_all(ours, told) and _say_all(theirs, told):
        return ["case", *told]
    if "condition" in ours and "condition" in theirs and theirs["condition"].nunique(dropna=False) > 1:
        return ["case", "condition"]
    return ["case"]


def pair_keys(ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[Int[np.ndarray, " ours"], Int[np.ndarray, " theirs"]]:
    """The number of each row's key, equal for rows that belong together; -1 where the other arm has no such row.

    A key may hold several rows of either arm (wordings): all of them count.
    """
    columns = pair_columns(ours, theirs)
    both = pd.concat([ours[columns], theirs[columns]], ignore_index=True)
    key = both.groupby(columns, sort=False, dropna=False).ngroup().to_numpy()
    left, right = key[: len(ours)], key[len(ours) :]
    return np.where(np.isin(left, right), left, -1), np.where(np.isin(right, left), right, -1)


def pair_rows(ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
    """Row numbers in ``ours`` and in ``theirs`` of every pair: each row of a key with each base row of that key."""
    left, right = (pd.DataFrame({"key": key, "row": np.arange(len(key))}) for key in pair_keys(ours, theirs))
    pairs = left[left["key"] >= 0].merge(right, on="key", suffixes=("", "_base"))
    pairs = pairs.sort_values(["row", "row_base"])
    return pairs["row"].to_numpy(dtype=int), pairs["row_base"].to_numpy(dtype=int)


def _say_all(arm: pd.DataFrame, told: list[str]) -> bool:
    """Do rows that agree in these parts and in the wording always have one condition?"""
    if "condition" not in arm:
        return True
    parts = [*told, *(["wording"] if "wording" in arm else [])]
    distinct = arm[[*parts, "condition"]].drop_duplicates()
    return not bool(distinct.duplicated(parts).any())
