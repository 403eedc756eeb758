"""Rows that run together on a backend without a cache: the whole sequence again for every token. Plain, and exact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from probe.capture.batching import PassInput, PassSettings, filled, left_padded, newest_reads, prompt_reads
from probe.capture.interventions import Interventions
from probe.capture.slots import NO_PREFIX, Prefix
from probe.models.points import HookPoint
from probe.models.protocol import Backend, Forward, Reads


class Replays:
    """The rows of a batch as lists of tokens; it is asked what :class:`probe.capture.slots.Slots` is asked."""

    can_go_back = True
    shares = False
    equal_lengths = False

    def __init__(self, backend: Backend, *, n_rows: int, settings: PassSettings) -> None:
        self.rows: list[PassInput] = []
        self._backend = backend
        self._settings = settings
        self._n_rows = n_rows
        self._seen: list[list[int]] = []
        self._beside: dict[int, list[int]] = {}
        self._interventions = Interventions(backend.facts.device)

    @property
    def free(self) -> int:
        """How many rows can enter."""
        return self._n_rows - len(self.rows)

    def fed(self, row: int) -> int:
        """How many tokens a row has seen, those of its prompt included."""
        return len(self._seen[row])

    def expect(self, longest: int) -> None:
        """The longest prompt that may still enter: nothing is prepared for it."""

    def prefix(self, row: PassInput, n_tokens: int) -> Prefix:
        """Nothing is shared."""
        return NO_PREFIX

    def enter(self, group: Sequence[PassInput], prefix: Prefix) -> Forward:
        """Feed prompts; values, means and logits as ``prompt_reads`` asks, in the order of the group."""
        first, width = len(self.rows), max(row.length for row in group)
        self.rows.extend(group)
        self._seen.extend(list(row.token_ids) for row in group)
        device = self._backend.facts.device
        return self._forward(first, self._seen[first:], prompt_reads(group, width, self._settings, 0, device))

    def step(self, tokens: Sequence[int], points: tuple[HookPoint, ...]) -> Forward:
        """Feed one more token of every row, and read it."""
        for seen, token in zip(self._seen, tokens, strict=True):
            seen.append(token)
        reads = newest_reads(len(tokens), points, self._backend.facts.device)
        return self._forward(0, self._seen, _moved(reads, max(map(len, self._seen)) - 1))

    @contextmanager
    def side_path(self, first: int, last: int) -> Iterator[None]:
        """See :meth:`probe.capture.slots.Slots.side_path`."""
        yield

    def aside(self, first: int, chunks: Sequence[Sequence[int]], reads: Reads, *, offset: int = 0) -> Forward:
        """See :meth:`probe.capture.slots.Slots.aside`."""
        block = filled(chunks, self._backend.facts.shape.pad_id)
        for row, chunk in enumerate(block, start=first):
            before = self._beside.get(row, []) if offset > 0 else self._seen[row]
            self._beside[row] = before[: len(self._seen[row]) + offset] + chunk
        sequences = [self._beside[first + i] for i in range(len(block))]
        return self._forward(first, sequences, _moved(reads, max(map(len, sequences)) - len(block[0])))

    def leave(self, gone: Sequence[int]) -> list[int]:
        """Drop rows. Row i of those that stay was row ``result[i]``."""
        self._beside.clear()
        order = [row for row in range(len(self.rows)) if row not in gone]
        self.rows, self._seen = [self.rows[i] for i in order], [self._seen[i] for i in order]
        return order

    def _forward(self, first: int, sequences: list[list[int]], reads: Reads) -> Forward:
        device = self._backend.facts.device
        ids, mask, pads = left_padded(sequences, self._backend.facts.shape.pad_id, device)
        rows = self.rows[first : first + len(sequences)]
        edits = self._interventions.edits(rows, [-pad for pad in pads], ids.shape[1])
        return self._backend.forward(ids, mask, reads, edits=edits)


def _moved(reads: Reads, by: int) -> Reads:
    """Reads of the last columns of a block as reads of a longer one that ends with it."""

    def moved(columns: Tensor | None) -> Tensor | None:
        return None if columns is None else columns + by

    with torch.no_grad():
        return replace(reads, columns=reads.columns + by, spans=moved(reads.spans), logits_at=moved(reads.logits_at))
