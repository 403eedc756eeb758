"""Where the rows of a selection stand on disk, as arrays. Knows shards and places in them; reads nothing of rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from probe.store.shards import Located, Shard
from probe.values import PlannedRow


class Row(NamedTuple):
    """One committed row of the latest plan, with its persona and case as the plan lists them."""

    planned: PlannedRow
    persona: Mapping[str, Any]
    case: Mapping[str, Any]
    located: Located


class Piece(NamedTuple):
    """What one shard holds of a selection: places in the selection, and the places in the shard, rising."""

    shard: Shard
    slots: np.ndarray
    places: np.ndarray


@dataclass(frozen=True, eq=False)
class Locations:
    """For each row of a selection, in its order: the number of its shard, and its place there (-1: it has none)."""

    shards: tuple[Shard, ...]
    numbers: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Locations:
        """The places of rows in the row tables of their shards."""
        known: dict[int, int] = {}
        shards: list[Shard] = []
        numbers = np.empty(len(rows), np.int64)
        for slot, row in enumerate(rows):
            shard = row.located.shard
            if id(shard) not in known:
                known[id(shard)] = len(shards)
                shards.append(shard)
            numbers[slot] = known[id(shard)]
        return cls(tuple(shards), numbers, np.array([row.located.row for row in rows], np.int64))

    def __len__(self) -> int:
        return len(self.places)

    def take(self, slots: np.ndarray) -> Locations:
        """Those of some places in the selection, in the order given."""
        return Locations(self.shards, self.numbers[slots], self.places[slots])

    def entries(self, position: str) -> Locations:
        """The same rows by their entries in the tensors of one position."""
        entries = np.full(len(self), -1, np.int64)
        if len(self.pieces) > 1:
            for piece in self.pieces:
                piece.shard.announce_entries(position)
        for shard, slots, places in self.pieces:
            entries[slots] = shard.entries(position)[places]
        return Locations(self.shards, self.numbers, entries)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Shard by shard, what it holds of the selection; rows that have no place are left out."""
        slots = np.flatnonzero(self.places >= 0)
        if len(slots) == 1:  # one row is often read by itself, and sorting costs as much as its bytes
            return (Piece(self.shards[self.numbers[slots[0]]], slots, self.places[slots]),)
        slots = slots[np.lexsort((self.places[slots], self.numbers[slots]))]
        numbers, places = self.numbers[slots], self.places[slots]
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(slots)]
        return tuple(
            Piece(self.shards[numbers[start]], slots[start:stop], places[start:stop])
            for start, stop in itertools.pairwise(edges)
            if stop > start
        )
