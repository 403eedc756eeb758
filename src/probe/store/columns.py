"""Entries of some tensors of one shard, read together. Knows where they and their checksums stand; knows no rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from probe.store.checksums import crc32
from probe.store.shard_format import DTYPES, as_bytes
from probe.store.tensor_files import TensorFile

REGION = 2**18
"""Bytes of checksums that are read at once in place of the few that are needed, which would cost a call per tensor."""

Span = tuple[int, memoryview]


class Targets(NamedTuple):
    """Where entries go: the i-th of tensor t to ``memories[t]``, from byte ``firsts[t] + strides[t] * lines[i]`` on."""

    memories: Sequence[memoryview]
    firsts: np.ndarray
    strides: np.ndarray
    lines: np.ndarray

    @classmethod
    def of(cls, arrays: Sequence[np.ndarray]) -> Targets:
        """Arrays with one entry per line, in the order of the entries."""
        strides = np.array([array[:1].nbytes for array in arrays], np.int64)
        return cls([*map(as_bytes, arrays)], 0 * strides, strides, np.arange(len(arrays[0])))

    def rows(self, widths: np.ndarray) -> Iterator[memoryview]:
        """The bytes of each entry, all of a tensor before the next."""
        places = iter(_each(self.firsts, self.strides, self.lines))
        for memory, width in zip(self.memories, widths.tolist(), strict=True):
            for at in itertools.islice(places, len(self.lines)):
                yield memory[at : at + width]


@dataclass(frozen=True, eq=False)
class Columns:
    """Some tensors of one shard. For each: where it starts, the bytes of an entry, where its checksums start."""

    file: TensorFile
    tensors: tuple[str, ...]
    starts: np.ndarray
    widths: np.ndarray
    crcs: np.ndarray
    n_crcs: int
    """How many checksums the tensor with the fewest has."""

    kind: tuple[np.dtype[Any], tuple[int, ...]] | None
    """Dtype and shape of an entry; None where the tensors differ."""

    def announce(self, entries: np.ndarray) -> None:
        """Say that these entries are read soon, so that a disk brings them all at once and not one after the other."""
        if len(entries):
            firsts, counts = _stretches(entries)
            starts = _each(self.starts, self.widths, entries[firsts])
            sums = self._sums(int(entries.min()), int(entries.max()))
            found = [(start, stop - start) for start, stop in sums]
            self.file.announce([*found, *zip(starts, _each(0, self.widths, counts), strict=True)])

    def _sums(self, low: int, high: int) -> list[tuple[int, int]]:
        """The bytes ``[start, stop)`` of the checksums of entries ``low`` to ``high``; one stretch if it is short."""
        first, last = self._edges
        if last - first + 8 * (high - low) <= REGION and self._places is not None:
            return [(first + 8 * low, last + 8 * (high + 1))]
        return [(start + 8 * low, start + 8 * (high + 1)) for start in self.crcs.tolist()]

    @cached_property
    def _edges(self) -> tuple[int, int]:
        """Where the first and the last tensor's checksums start."""
        return int(self.crcs.min()), int(self.crcs.max())

    @cached_property
    def _places(self) -> np.ndarray | None:
        """Where each tensor's checksums start if all are one array of 8-byte numbers; None where they are not."""
        apart = self.crcs - self._edges[0]
        return None if (apart % 8).any() else apart // 8

    def read(self, entries: np.ndarray, targets: Targets) -> None:
        """Read entries straight to where they go, and check the crc32 of each.

        The file is opened once, and entries that follow each other, there and in their target, are one read.

        Raises:
            CorruptShard: an entry's bytes are not those that were committed, or cannot be read.
        """
        memories, first, stride, line = targets
        spans, sums, places = self._checksums(entries)
        firsts: np.ndarray | slice = slice(None)
        counts = np.ones(len(entries), np.int64)
        if len(entries) > 1 and (stride == self.widths).all():
            firsts, counts = _stretches(entries, line)
        starts = _each(self.starts, self.widths, entries[firsts])
        lines, sizes = _each(first, stride, line[firsts]), _each(0, self.widths, counts)
        into = memories if len(counts) == 1 else [memory for memory in memories for _ in counts]
        blocks = [memory[at : at + size] for memory, at, size in zip(into, lines, sizes, strict=True)]
        self.file.fill([*spans, *zip(starts, blocks, strict=True)])
        rows = blocks if len(counts) == len(entries) else targets.rows(self.widths)
        found, expected = [crc32(row) for row in rows], sums[places].ravel().tolist()
        if found != expected:
            bad = next(at for at, crc in enumerate(found) if crc != expected[at])
            tensor, entry = self.tensors[bad // len(entries)], entries[bad % len(entries)]
            raise self.file.corrupt(f"tensor {tensor!r} fails its crc32 at entry {entry}")

    def _checksums(self, entries: np.ndarray) -> tuple[list[Span], np.ndarray, np.ndarray]:
        """What to read for the checksums of some entries, the array that it fills, and where in it they stand.

        The places are ``[tensor, entry]``.

        Raises:
            CorruptShard: there are no such entries.
        """
        each = entries.tolist()
        low, high = min(each), max(each)
        if low < 0 or high >= self.n_crcs:
            raise self.file.corrupt(f"tensor {self.tensors[0]!r} has {self.n_crcs} checksums and no entry {high}")
        stretches = self._sums(low, high)
        found = np.empty(sum(stop - start for start, stop in stretches) // 8, DTYPES["I64"])
        firsts = np.arange(len(self.crcs)) * (high + 1 - low)
        if len(stretches) == 1 and self._places is not None:
            firsts = self._places
        spans, memory, at = [], found.view(np.uint8).data, 0
        for start, stop in stretches:
            spans.append((start, memory[at : at + stop - start]))
            at += stop - start
        return spans, found, np.add.outer(firsts, entries - low)


def _each(firsts: np.ndarray | int, steps: np.ndarray, counts: np.ndarray) -> list[int]:
    """``firsts[t] + steps[t] * counts[i]``, all of t before the next."""
    if len(counts) > 1:
        firsts, steps = np.reshape(firsts, (-1, 1)), np.reshape(steps, (-1, 1))
    return [*(firsts + steps * counts).ravel().tolist()]


def _stretches(*rising: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where stretches begin in which all of some arrays rise by one, and how long they are."""
    cuts = [np.diff(array) != 1 for array in rising]
    edges = np.concatenate([[0], np.flatnonzero(np.logical_or.reduce(cuts)) + 1, [len(rising[0])]])
    return edges[:-1], np.diff(edges)
