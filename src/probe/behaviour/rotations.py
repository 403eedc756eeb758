"""Does the letter matter, apart from the option behind it? Knows outcomes under several label rotations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int

from probe.behaviour.columns import numbers_of, text_of
from probe.behaviour.components import levels_of
from probe.behaviour.intervals import mean, proportion
from probe.behaviour.outcomes import Outcomes, read_outcomes
from probe.behaviour.pairing import SHARED
from probe.values import ALL, ProbeError

DRAWS = 999
"""Permutations behind a p-value, which cannot go below 1 / 1000."""


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Cells of one arm that differ in the rotation only, one column per rotation; -1 where there is no label."""

    option: Int[np.ndarray, "block rotation"]
    reference: Int[np.ndarray, " block"]
    case: np.ndarray
    rotation: Int[np.ndarray, " rotation"]
    incomplete: int


def position_bias(
    table: pd.DataFrame, *, options: Sequence[str] | None = None, rng: np.random.Generator | None = None
) -> pd.DataFrame:
    """Share of each *letter* among the labels given, over cells that were asked under every rotation.

    Under rotation r option i has letter i + r, so each option stands once behind each letter and without position bias
    every letter has the share 1 / options (``null``). ``p`` permutes the options that a case got over its rotations,
    the same way in all its cells, with the sum of squared deviations of the letter counts as statistic; one p per
    labels, persona and stratum. Columns: labels (stated, latent), persona, stratum, letter, share, low, high, n, null,
    p, note. ``rng`` draws the permutations; by default a generator seeded with 0.

    Where the order of the options behind the letters is not known the table is empty and ``attrs["absent"]`` says so.

    Raises:
        ProbeError: the table has no column ``rotation``, or its letters follow another rule.
    """
    outcomes, rng = read_outcomes(table, options=options), rng or np.random.default_rng(0)
    size, rows = len(outcomes.options), []
    for key, blocks in _arms(table, outcomes):
        letters = _letters(table, outcomes)
        given = np.where(blocks.option >= 0, (blocks.option + blocks.rotation) % size, -1)
        p = _permuted(blocks, size, rng) if len(given) else np.nan
        note = f"{blocks.incomplete} cells without all {size} rotations are left out" if blocks.incomplete else ""
        case = np.repeat(blocks.case, given.shape[1])
        for k, letter in enumerate(letters):
            chosen = np.where(given >= 0, (given == k).astype(float), np.nan).ravel()
            share = proportion(chosen, case)
            row = {"letter": letter, "share": share.value, "low": share.low, "high": share.high, "n": share.n}
            rows.append(key | row | {"null": 1 / size, "p": p, "note": note or share.note})
    names = ["labels", "persona", "stratum", "letter", "share", "low", "high", "n", "null", "p", "note"]
    return _with_absent(pd.DataFrame(rows, columns=names), outcomes)


def accuracy_by_rotation(table: pd.DataFrame, *, options: Sequence[str] | None = None) -> pd.DataFrame:
    """Accuracy of both labels under each rotation, and ``mean``: averaged over the rotations of a case.

    Only cells that were asked under every rotation count; an answer without a label is wrong. Columns: labels, persona,
    stratum, rotation, value, low, high, n.

    Where the order of the options behind the letters is not known the table is empty and ``attrs["absent"]`` says so.

    Raises:
        ProbeError: the table has no column ``rotation``, or its letters follow another rule.
    """
    outcomes, rows = read_outcomes(table, options=options), []
    for key, blocks in _arms(table, outcomes):
        right = (blocks.option == blocks.reference[:, None]).astype(float)
        shares = {str(r): proportion(right[:, k], blocks.case) for k, r in enumerate(blocks.rotation)}
        shares["mean"] = mean(right.mean(1), blocks.case)
        for name, share in shares.items():
            row = {"rotation": name, "value": share.value, "low": share.low, "high": share.high, "n": share.n}
            rows.append(key | row)
    names = ["labels", "persona", "stratum", "rotation", "value", "low", "high", "n"]
    return _with_absent(pd.DataFrame(rows, columns=names), outcomes)


def _with_absent(result: pd.DataFrame, outcomes: Outcomes) -> pd.DataFrame:
    lack = "position bias needs the order in which the options stand behind the letters; pass options="
    result.attrs = {"absent": [] if outcomes.ranked else [lack]}
    return result


def _arms(table: pd.DataFrame, outcomes: Outcomes) -> Iterator[tuple[dict[str, object], _Blocks]]:
    if "rotation" not in table:
        raise ProbeError("position bias needs the column rotation, which the table does not have")
    if not outcomes.ranked:
        return
    rotation = _rotation(table)
    parts = [table[name].astype(str).to_numpy() for name in SHARED if name in table and name != "rotation"]
    block = levels_of(outcomes.persona, outcomes.case, outcomes.wording, *parts)
    sources = {"stated": ("y_gen", outcomes.stated), "latent": ("y_latent", outcomes.latent)}
    for name, (told, labels) in sources.items():
        if told in outcomes.told:
            for persona in outcomes.personas:
                for stratum in outcomes.strata:
                    inside = np.isin(np.arange(len(outcomes)), _rows(outcomes, persona, stratum))
                    blocks = _blocks(outcomes.take(inside), labels[inside], rotation[inside], block[inside])
                    yield {"labels": name, "persona": persona, "stratum": stratum}, blocks


def _rotation(table: pd.DataFrame) -> Int[np.ndarray, " row"]:
    number = numbers_of(table, ["rotation"])[:, 0]
    if (bad := ~(np.isfinite(number) & (number == np.round(number)))).any():
        row = int(np.flatnonzero(bad)[0])
        raise ProbeError(
            f"rotation counts whole places from 0, found {number[row]:g} in row {row}; mend it, or leave "
            "out rows that were not rotated"
        )
    return number.astype(int)


def _rows(outcomes: Outcomes, persona: str, stratum: str) -> Int[np.ndarray, " row"]:
    inside = outcomes.persona == persona
    return np.flatnonzero(inside if stratum == ALL else inside & (outcomes.stratum == stratum))


def _blocks(arm: Outcomes, labels: np.ndarray, rotation: np.ndarray, block: np.ndarray) -> _Blocks:
    size = len(arm.options)
    _, member = np.unique(block, return_inverse=True)
    order = np.lexsort((rotation, member))
    n_blocks = int(member.max(initial=-1)) + 1
    rows_of = np.bincount(member, minlength=n_blocks)
    whole = np.isin(member, np.flatnonzero(rows_of == size))
    order = order[whole[order]].reshape(-1, size)
    order = order[(rotation[order] % size == np.arange(size)).all(1)]
    first = order[:, 0] if len(order) else np.empty(0, dtype=int)
    lost = n_blocks - len(order)
    return _Blocks(labels[order], arm.reference[first], arm.case[first], np.arange(size), lost)


def _permuted(blocks: _Blocks, size: int, rng: np.random.Generator) -> float:
    """p of the letter counts under permutations of each case's rotations."""
    names, member = np.unique(blocks.case, return_inverse=True)

    def statistic(option: np.ndarray) -> float:
        letter = (option + blocks.rotation) % size
        counts = np.bincount(letter[option >= 0], minlength=size)
        return float(((counts - counts.mean()) ** 2).sum())

    observed = statistic(blocks.option)
    reached = 0
    for _ in range(DRAWS):
        order = np.argsort(rng.random((len(names), size)), axis=1)[member]
        reached += statistic(np.take_along_axis(blocks.option, order, axis=1)) >= observed - 1e-9
    return (1 + reached) / (1 + DRAWS)


def _letters(table: pd.DataFrame, outcomes: Outcomes) -> list[str]:
    """The letters by their place: from the column ``letter`` where every place has one, else numbers from 1."""
    size = len(outcomes.options)
    numbered = [str(k + 1) for k in range(size)]
    if "letter" not in table:
        return numbered
    place, said = (outcomes.stated + _rotation(table)) % size, text_of(table, "letter")
    # An option stated in its own words has a label and no letter.
    written = (outcomes.stated >= 0) & (said != "")
    found = [sorted(set(said[written & (place == k)].tolist())) for k in range(size)]
    for k, names in enumerate(found):
        if len(names) > 1:
            raise ProbeError(
                f"under rotation r option i has letter i + r, but place {k + 1} has the letters {names}; "
                "order options= as they stand behind the letters without rotation, or drop the column letter"
            )
    return [names[0] for names in found] if all(found) else numbered
