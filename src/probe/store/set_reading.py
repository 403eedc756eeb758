"""What a store of sums holds of a selection. Knows which sets count, and adds them up; knows no analysis.

A set counts whole or not at all: no row can be taken out of a sum. So every row of it must be asked for, and where two
sets hold a row (a shard that was run twice, once divided) one of them counts: the larger, then that of the lower name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from probe.store.locations import Row
from probe.store.packing import tensor_name
from probe.store.plans import cell_name
from probe.store.shards import Key, Shard
from probe.store.sums import SETS, names_at, sums_from
from probe.store.views import View
from probe.values import ProbeWarning, StoreError
from probe.values.blocks import block_of
from probe.values.sums import Sums, stacked

_SETS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Line:
    """What is added up: one persona under one condition, the cases of a stratum whose families are in one block.

    ``first`` is the place of its first row in the view.
    """

    stratum: str
    block: int
    first: int


@dataclass(frozen=True, eq=False)
class SiteSums:
    """The lines that have a site, rising, with their sums, and the places in the view of the rows of each, rising."""

    lines: np.ndarray
    sums: Sums
    rows: tuple[np.ndarray, ...]

    @classmethod
    def nothing(cls, width: int) -> SiteSums:
        """Where no line has the site."""
        one, wide = np.zeros(0), np.zeros((0, width))
        return cls(np.zeros(0, int), Sums(one, wide, wide, np.zeros((0, 0, 0)), np.zeros((0, 0)), one), ())


@dataclass(frozen=True, eq=False)
class HeldSet:
    """A set that counts: its number in a shard, its line, and by the rows of the shard their places in the view."""

    shard: Shard
    number: int
    line: int
    places: Mapping[int, int]


@dataclass(frozen=True, eq=False)
class AddedUp:
    """The sums of a view: its lines in the order of their first rows, and the sets that make them, by shard.

    ``left`` are places of rows that are in no set that counts: each set that holds them overlaps with a larger one.
    """

    view: View
    lines: tuple[Line, ...]
    held: tuple[HeldSet, ...]
    left: tuple[int, ...]
    _at: dict[str, tuple[_Batch, ...]] = field(default_factory=dict, init=False, repr=False)

    def at(self, layer: int, position: str, stream: str = "resid") -> SiteSums | None:
        """The sums at one site, None where no line has it; the same shards give the same bits.

        Raises:
            CorruptShard: their bytes are not those that were committed.
        """
        if position not in self._at:
            self._at[position] = tuple(_batches(self.held, position))
        if not (batches := self._at[position]):
            return None
        site = tensor_name(stream, position, layer)
        return SiteSums(
            np.concatenate([batch.lines for batch in batches]),
            stacked([batch.sums(site) for batch in batches]),
            tuple(own for batch in batches for own in batch.rows),
        )


@dataclass(frozen=True, eq=False)
class _Batch:
    """Some lines that have a position: the sets that make them, by shard, and the line among these of each set."""

    lines: np.ndarray
    pieces: tuple[_Piece, ...]
    into: np.ndarray
    rows: tuple[np.ndarray, ...]

    def sums(self, site: str) -> Sums:
        return stacked([piece.sums(site) for piece in self.pieces]).merged(self.into)


@dataclass(frozen=True, eq=False)
class _Piece:
    """The sets of one shard that count and have a position: their entries there, their lines, and their rows."""

    shard: Shard
    entries: np.ndarray
    lines: np.ndarray
    rows: tuple[list[int], ...]

    def sums(self, site: str) -> Sums:
        names = names_at(site, 1)
        names = names if self.shard.has(names["products"]) else names_at(site, 0)
        arrays = self.shard.take_all(names.values(), self.entries)
        axes = arrays[names["powers"]].shape[1] - 1 if "powers" in names else 0
        return sums_from(arrays, names, np.array([len(own) for own in self.rows]), axes)


def added_up(view: View) -> AddedUp:
    """The sums of all rows of a view.

    Raises:
        StoreError: the store keeps rows; or a set holds rows that are not in the view, or are of several strata or
            blocks of families as the latest plan has them.
    """
    layout = view.frame.layout.moments
    if layout is None:
        raise StoreError("this store keeps every row; its sums are those of its rows")
    places = {(row.planned.cell.row_id, row.planned.prompt_sha): at for at, row in enumerate(view.rows)}
    counted: set[int] = set()
    chosen: list[tuple[Shard, int, dict[int, int]]] = []
    for shard, number, own in sorted(_candidates(view, places), key=lambda one: (-len(one[2]), one[0].name, one[1])):
        if counted.isdisjoint(own.values()):
            counted |= set(own.values())
            chosen.append((shard, number, own))
    chosen.sort(key=lambda one: (one[0].name, one[1]))
    if left := tuple(sorted(set(places.values()) - counted)):
        warnings.warn(
            f"{len(left)} rows of {view.rows[left[0]].located.shard.file.place.url} are in no sum that counts (each of "
            "theirs overlaps with a larger one), and are left out",
            ProbeWarning,
            stacklevel=3,
        )
    keys = [_key([view.rows[at] for at in own.values()], layout.seed) for _, _, own in chosen]
    first: dict[object, int] = {}
    for key, (_, _, own) in zip(keys, chosen, strict=True):
        first[key] = min(first.get(key, len(places)), *own.values())
    order = sorted(first, key=first.__getitem__)
    number_of = {key: at for at, key in enumerate(order)}
    return AddedUp(
        view,
        tuple(Line(*_told(view.rows[first[key]], layout.seed), first[key]) for key in order),
        tuple(HeldSet(*one[:2], number_of[key], one[2]) for key, one in zip(keys, chosen, strict=True)),
        left,
    )


def _candidates(view: View, places: Mapping[Key, int]) -> Iterator[tuple[Shard, int, dict[int, int]]]:
    """Every set that the view asks for: its shard, its number, and the places in the view of the rows of the shard."""
    for shard in view.frame.sites.shards:
        asked = [places.get(key, -1) for key in shard.keys]
        if max(asked, default=-1) < 0:
            continue
        sets = shard.take(SETS, range(len(asked)))
        for number in range(int(sets.max()) + 1):
            rows = np.flatnonzero(sets == number).tolist()
            own = {row: asked[row] for row in rows if asked[row] >= 0}
            if own and len(own) < len(rows):
                named = cell_name(view.rows[next(iter(own.values()))].planned.cell)
                raise StoreError(
                    f"{shard.file.where} has {named} in a sum with {len(rows) - len(own)} rows that are not asked for, "
                    "and no row can be taken out of a sum (capture.keep: moments): select whole strata, personas and "
                    "conditions, and run the study with the cases that were captured"
                )
            if own:
                yield shard, number, own


def _batches(held: Sequence[HeldSet], position: str) -> Iterator[_Batch]:
    """The lines that have a position, so many at a time that their sets take little memory."""
    by_line: dict[int, list[HeldSet]] = {}
    for one in held:
        by_line.setdefault(one.line, []).append(one)
    batch: list[HeldSet] = []
    for line in sorted(by_line):
        batch += by_line[line]
        if len(batch) >= _SETS_AT_ONCE:
            yield from _batch(batch, position)
            batch = []
    yield from _batch(batch, position)


def _batch(held: Sequence[HeldSet], position: str) -> Iterator[_Batch]:
    pieces = tuple(_pieces(sorted(held, key=lambda one: (one.shard.name, one.number)), position))
    if pieces:
        lines, into = np.unique(np.concatenate([piece.lines for piece in pieces]), return_inverse=True)
        rows: list[list[int]] = [[] for _ in lines]
        for at, own in zip(into.tolist(), (one for piece in pieces for one in piece.rows), strict=True):
            rows[at] += own
        yield _Batch(lines, pieces, into, tuple(np.sort(own) for own in rows))


def _pieces(held: Sequence[HeldSet], position: str) -> Iterator[_Piece]:
    by_shard: dict[str, list[HeldSet]] = {}
    for one in held:
        by_shard.setdefault(one.shard.name, []).append(one)
    for sets in by_shard.values():
        shard = sets[0].shard
        if not shard.has(name := f"rows.{position}"):
            continue
        present = shard.take(name, range(shard.spec(name).shape[0]))
        numbers = shard.take(SETS, range(len(shard.keys)))[present]
        there = np.unique(numbers).tolist()
        found = [(there.index(one.number), one) for one in sets if one.number in there]
        if found:
            rows = tuple([one.places[row] for row in present[numbers == one.number].tolist()] for _, one in found)
            entries, lines = (np.array(each) for each in zip(*((at, one.line) for at, one in found), strict=True))
            yield _Piece(shard, entries, lines, rows)


def _told(row: Row, seed: int) -> tuple[str, int]:
    """Stratum and block of a row's case, as the latest plan has it; a case without a family is one of its own."""
    return str(row.case.get("stratum", "")), block_of(str(row.case.get("family") or row.case["id"]), seed)


def _key(rows: Sequence[Row], seed: int) -> tuple[object, ...]:
    """What all rows of a set have in common.

    Raises:
        StoreError: strata or families were changed since the capture.
    """
    keys = {(row.planned.cell.persona, row.planned.cell.condition, *_told(row, seed)) for row in rows}
    if len(keys) > 1:
        raise StoreError(
            f"{cell_name(rows[0].planned.cell)} stands in a sum with cases of another stratum or block of families: "
            "these were changed since the capture, and no row can be taken out of a sum (capture.keep: moments); use "
            "the study as it was captured, or --store NEW_DIR"
        )
    return keys.pop()
