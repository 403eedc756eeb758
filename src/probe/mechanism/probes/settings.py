"""How probes are fitted and tested, and the labels one site is asked for. Knows targets and splits; fits nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int

from probe.behaviour.columns import text_of
from probe.mechanism.linear.ridge import ALPHAS
from probe.mechanism.probes.nulls import Moves, blocks_moved, within_case
from probe.mechanism.probes.targets import Target
from probe.mechanism.splits import families_of, fold_of
from probe.values import ProbeError

KEYS = ("persona", "condition", "wording", "instruction", "rotation", "placement", "prefix", "seed", "intervention")
"""Columns that say which row of a case a row is."""


@dataclass(frozen=True)
class ProbeSettings:
    """How probes are fitted and tested.

    ``folds`` of case families, dealt out by hash with ``split_seed``; ``permutations`` of each target's labels;
    ``controls`` random labellings of cases behind the selectivity; ``families_move``: whole case families, in place of
    cases, change their labels under the null (for families of near copies, whose labels are alike); ``logistic``:
    beside the ridge a logistic probe, which is slow and has no permutations.
    """

    folds: int = 5
    split_seed: int = 0
    permutations: int = 200
    controls: int = 5
    families_move: bool = False
    logistic: bool = False
    alphas: tuple[float, ...] = ALPHAS


@dataclass(frozen=True, eq=False)
class Asked:
    """One target on the rows that have it: label vectors, the first as observed, then controls, then permutations.

    ``changed`` is the mean share of rows whose label a permutation changes, ``moved`` the share that could move.
    """

    target: Target
    vectors: Int[np.ndarray, "vector row"]
    controls: int
    moved: float
    changed: float

    @property
    def note(self) -> str:
        """What a reader of its p must know."""
        if len(self.vectors) == 1 + self.controls:
            return "no permutations"
        kind = "rows of a case" if self.target.null == "within case" else "cases"
        told = [f"only {self.moved:.0%} of the rows had {kind} to change labels with"] if self.moved < 0.5 else []
        varied = float((self.vectors[0] != np.bincount(self.vectors[0]).argmax()).mean())
        if self.changed < 0.25 * 2 * varied * (1 - varied):
            told.append("within strata the label hardly varies, so that permutations leave most of it")
        return "; ".join(told)


@dataclass(frozen=True, eq=False)
class Question:
    """Targets that are defined on the same rows of a table, with fold and family of those rows."""

    rows: Int[np.ndarray, " row"]
    fold: Int[np.ndarray, " row"]
    family: np.ndarray
    case: np.ndarray
    asked: tuple[Asked, ...]


def folds_of(table: pd.DataFrame, settings: ProbeSettings) -> Int[np.ndarray, " row"]:
    """The fold of each row, by its case family.

    Raises:
        ProbeError: fewer than three folds were asked for, or there are fewer families than folds.
    """
    if settings.folds < 3:
        raise ProbeError(f"nested cross-validation needs at least three folds, found {settings.folds}")
    return fold_of(families_of(table), settings.folds, settings.split_seed, text_of(table, "stratum"))


def questions(
    table: pd.DataFrame,
    targets: Mapping[str, Target],
    fold: Int[np.ndarray, " row"],
    places: Int[np.ndarray, " place"],
    settings: ProbeSettings,
    seed: int,
) -> tuple[Question, ...]:
    """The targets on the rows at these places, those with the same rows together; the seed gives the same moves again.

    A target that fewer than three folds have rows of is left out. The same seed and rows give the same permutations at
    every layer and position, so that the largest statistic over them is that of one permutation.
    """
    by_rows: dict[bytes, list[Asked]] = {}
    rows_of: dict[bytes, np.ndarray] = {}
    family = families_of(table)
    for target in targets.values():
        rows = places[target.codes[places] >= 0]
        if len(np.unique(fold[rows])) < 3:
            continue
        key = rows.tobytes()
        rows_of[key] = rows
        by_rows.setdefault(key, []).append(_asked(table.iloc[rows], target.take(rows), family[rows], settings, seed))
    return tuple(
        Question(rows, fold[rows], family[rows], text_of(table, "case")[rows], tuple(by_rows[key]))
        for key, rows in rows_of.items()
    )


def _asked(part: pd.DataFrame, target: Target, family: np.ndarray, settings: ProbeSettings, seed: int) -> Asked:
    rng = np.random.default_rng(seed)
    case, codes = text_of(part, "case"), target.codes
    moves = _moves(part, target, family, settings, rng)
    names, member = np.unique(case.astype(str), return_inverse=True)
    drawn = rng.choice(codes, size=(settings.controls, len(names)))[:, member]  # one random label for a whole case
    permuted = codes.astype(np.int16)[moves.index]  # the largest array here
    changed = float((permuted != codes).mean()) if len(permuted) else 1.0
    return Asked(
        target,
        np.concatenate([codes.astype(np.int16)[None], drawn.astype(np.int16), permuted]),
        settings.controls,
        moves.moved,
        changed,
    )


def _moves(
    part: pd.DataFrame, target: Target, family: np.ndarray, settings: ProbeSettings, rng: np.random.Generator
) -> Moves:
    case = text_of(part, "case")
    if target.null == "within case":
        return within_case(case, settings.permutations, rng)
    key = _joined([text_of(part, name) for name in KEYS])
    block = case
    if settings.families_move:
        # Which case of its family a row is of: the first of each family changes labels with the first of another.
        cases = pd.DataFrame({"family": family, "case": case}).drop_duplicates().sort_values(["family", "case"])
        rank = dict(zip(cases["case"], cases.groupby("family").cumcount(), strict=True))
        key = _joined([np.array([f"{rank[name]:06d}" for name in case], dtype=object), key])
        block = family
    return blocks_moved(block, key, text_of(part, "stratum"), settings.permutations, rng)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.array(["\x1f".join(map(str, one)) for one in zip(*parts, strict=True)], dtype=object)
