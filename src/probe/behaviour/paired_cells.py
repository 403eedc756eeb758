"""Which rows of a persona and of its base make pairs, and how far a score differs in each. Knows tables and keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from probe.behaviour.outcomes import Outcomes
from probe.behaviour.pairing import SHARED, pair_keys, pair_rows
from probe.values import ALL


@dataclass(frozen=True, eq=False)
class Pairs:
    """Rows of an arm with the key that they share with rows of the base; ``single``: every key has one base row."""

    ours: Int[np.ndarray, " pair"]
    key: Int[np.ndarray, " pair"]
    theirs: Int[np.ndarray, " base_row"]
    their_key: Int[np.ndarray, " base_row"]
    single: bool
    unpaired: int

    def differences(
        self, score: Float[np.ndarray, " row"], their_score: Float[np.ndarray, " row"] | None = None
    ) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
        """The score of each of our rows and the mean score of the base rows of its key, NaN where none has one."""
        theirs = (score if their_score is None else their_score)[self.theirs]
        known = ~np.isnan(theirs)
        size = int(self.their_key.max(initial=-1)) + 1
        total = np.bincount(self.their_key[known], weights=theirs[known], minlength=size)
        count = np.bincount(self.their_key[known], minlength=size)
        base = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return score[self.ours], base[self.key]


def paired_cells(table: pd.DataFrame, outcomes: Outcomes) -> pd.DataFrame:
    """What pairing reads of every row: names as checked text, the parts of the condition as the table has them."""
    names = ["persona", "case", "stratum", *(["condition"] if "condition" in table else [])]
    cells = pd.DataFrame({name: getattr(outcomes, name) for name in names})
    return cells.assign(**{part: table[part].to_numpy() for part in (*SHARED, "wording") if part in table})


def pairs_by_stratum(
    outcomes: Outcomes, cells: pd.DataFrame, persona: str, base: tuple[str, ...]
) -> Iterator[tuple[str, Pairs]]:
    """The pairs of a persona and the personas of a base, pooled and in each stratum; ``cells`` are those of pairing."""
    arms = [np.flatnonzero(cells["persona"] == persona), np.flatnonzero(cells["persona"].isin(base))]
    keys = pair_keys(*(cells.iloc[arm] for arm in arms))
    for stratum in outcomes.strata:
        kept, lost = [], 0
        for arm, key in zip(arms, keys, strict=True):
            inside = np.full(len(arm), True) if stratum == ALL else (outcomes.stratum[arm] == stratum)
            kept.append((arm[inside & (key >= 0)], key[inside & (key >= 0)]))
            lost += int((inside & (key < 0)).sum())
        single = len(np.unique(kept[1][1])) == len(kept[1][1])
        yield stratum, Pairs(*kept[0], *kept[1], single, lost)


def pair_rows_of(pairs: Pairs) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
    """Each of our rows beside each base row of its key."""
    if pairs.single:
        row_of = np.zeros(int(pairs.their_key.max(initial=-1)) + 1, dtype=int)
        row_of[pairs.their_key] = pairs.theirs
        return pairs.ours, row_of[pairs.key]
    left, right = (pd.DataFrame({"case": key}) for key in (pairs.key, pairs.their_key))
    ours, theirs = pair_rows(left, right)
    return pairs.ours[ours], pairs.theirs[theirs]
