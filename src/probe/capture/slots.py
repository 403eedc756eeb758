"""Rows that run together: prompts enter, one token each is fed, rows leave. Knows columns and caches; chooses no token.

All rows end in the same column. A prompt enters so that its last token stands there; where its first tokens are shared,
their keys and values are copied and only the rest is fed. A batch of prompts feeds as many tokens of each as the
longest rest has: a shorter one feeds some shared tokens again, so that pads never stand inside a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from probe.capture.batching import PassInput, PassSettings, filled, mask_of, newest_reads, prompt_reads
from probe.capture.interventions import Interventions
from probe.models.caches import CacheLayout, SlotCache
from probe.models.points import HookPoint
from probe.models.protocol import Backend, Forward, Reads

_CHUNK = 64
"""Columns by which a cache grows, and fewer than which are not worth being freed by moving the others."""


def columns_at_most(longest: int, new: int) -> int:
    """The columns that a cache comes to whose rows have up to ``longest`` prompt tokens and each ``new`` new ones."""
    return longest + (new if new <= _CHUNK else -(-new // _CHUNK) * _CHUNK)


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens that rows share, run once: their cache, and what was read at the end of the persona, by stream."""

    cache: SlotCache | None = None
    n_tokens: int = 0
    persona_end: dict[str, Tensor] = field(default_factory=dict)


NO_PREFIX = Prefix()


class Slots:
    """The rows of one preallocated cache; row i of every call is the i-th that entered and has not left.

    ``longest`` is the length of the longest prompt that will ever enter.
    """

    def __init__(
        self, backend: Backend, layout: CacheLayout, *, n_rows: int, longest: int, settings: PassSettings
    ) -> None:
        self.rows: list[PassInput] = []
        self.shares = True
        self.can_go_back = not layout.recurrent
        self.equal_lengths = layout.recurrent
        self._backend = backend
        self._settings = settings
        self._longest = longest
        self._end = longest
        self._pads: list[int] = []
        self._cache = SlotCache(layout, n_rows, longest + min(settings.max_new_tokens, _CHUNK))
        self._pad_id = backend.facts.shape.pad_id
        self._interventions = Interventions(backend.facts.device)

    @property
    def free(self) -> int:
        """How many rows can enter."""
        return self._cache.rows - len(self.rows)

    def fed(self, row: int) -> int:
        """How many tokens a row has seen, those of its prompt included."""
        return self._end - self._pads[row]

    def expect(self, longest: int) -> None:
        """The longest prompt that may still enter, 0 where none will."""
        self._longest = longest

    @torch.inference_mode()
    def prefix(self, row: PassInput, n_tokens: int) -> Prefix:
        """Run the first tokens of a row alone."""
        device, end = self._backend.facts.device, row.persona_end
        cache = SlotCache(self._cache.layout, 1, n_tokens)
        cache.see(0, 1, 0, 0, fresh=True)
        ids = torch.tensor([row.token_ids[:n_tokens]], device=device)
        inside = end is not None and end < n_tokens and "persona_end" in self._settings.positions
        points = self._settings.points if inside else ()
        reads = Reads(points, torch.tensor([[end if inside else 0]], device=device))
        edits = self._interventions.edits([row], [0], n_tokens)
        forward = self._backend.forward(ids, torch.ones_like(ids), reads, cache=cache, edits=edits)
        values = {stream: value[:, 0, 0] for stream, value in forward.values.items()} if inside else {}
        return Prefix(cache, n_tokens, values)

    @torch.inference_mode()
    def enter(self, group: Sequence[PassInput], prefix: Prefix) -> Forward:
        """Feed prompts; values, means and logits as ``prompt_reads`` asks, in the order of the group."""
        if not self.rows:
            self._end = self._longest
        first = len(self.rows)
        width = max(row.length for row in group) - prefix.n_tokens
        self.rows.extend(group)
        self._pads.extend(self._end - row.length for row in group)
        for slot, row in enumerate(group, start=first):
            self._cache.place(slot, self._pads[slot], prefix.cache, max(row.length - width, 0))
        reads = prompt_reads(group, width, self._settings, prefix.n_tokens, self._backend.facts.device)
        ids = [[*[self._pad_id] * (width - row.length), *row.token_ids[-width:]] for row in group]
        forward = self._forward(first, ids, reads, offset=-width, fresh=prefix.cache is None)
        for slot, row in enumerate(group, start=first):
            if row.length < width:
                self._cache.blank(slot, self._end - width, self._pads[slot])
        return forward

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], points: tuple[HookPoint, ...]) -> Forward:
        """Feed one more token of every row, and read it."""
        reads = newest_reads(len(tokens), points, self._backend.facts.device)
        forward = self._forward(0, [[token] for token in tokens], reads)
        self._end += 1
        return forward

    @contextmanager
    def side_path(self, first: int, last: int) -> Iterator[None]:
        """Whatever is fed ``aside`` of some rows in here, they go on as if it had not been."""
        saved = self._cache.saved_states(first, last)
        yield
        self._cache.restore_states(first, last, saved)

    @torch.inference_mode()
    def aside(self, first: int, chunks: Sequence[Sequence[int]], reads: Reads, *, offset: int = 0) -> Forward:
        """Feed tokens of neighbouring rows that are not counted as theirs, in a side path.

        They follow what the rows have seen, less (``offset`` < 0) or plus tokens fed so before (``offset`` > 0).
        Shorter chunks are filled up behind, where nothing is read.
        """
        return self._forward(first, filled(chunks, self._pad_id), reads, offset=offset)

    @torch.inference_mode()
    def leave(self, gone: Sequence[int]) -> list[int]:
        """Drop rows; the last ones move into their places. Row i of those that stay was row ``result[i]``."""
        n_left = len(self.rows) - len(gone)
        holes = sorted(row for row in gone if row < n_left)
        movers = sorted(set(range(n_left, len(self.rows))) - set(gone))
        self._cache.move(movers, holes, min(self._pads), self._end)
        order = list(range(n_left))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        self.rows, self._pads = [self.rows[i] for i in order], [self._pads[i] for i in order]
        return order

    def _forward(
        self, first: int, ids: list[list[int]], reads: Reads, *, offset: int = 0, fresh: bool = False
    ) -> Forward:
        """Feed a block of tokens whose first column is ``offset`` columns after the newest."""
        last, width = first + len(ids), len(ids[0])
        self._make_room(offset + width)
        end, pads, device = self._end + offset, self._pads[first:last], self._backend.facts.device
        start = min(pads)
        mask = mask_of([pad - start for pad in pads], end + width - start, device)
        self._cache.see(first, last, start, end, fresh=fresh)
        edits = self._interventions.edits(self.rows[first:last], [end - pad for pad in pads], width)
        tokens = torch.tensor(ids, device=device)
        return self._backend.forward(tokens, mask, reads, cache=self._cache, edits=edits)

    def _make_room(self, more: int) -> None:
        """Columns for ``more`` tokens: the oldest are given up where no row needs them, else the cache grows.

        What was fed aside stands beyond the newest column and may still be gone on from, so all columns are kept.
        """
        if self._end + more <= self._cache.columns:
            return
        spare = min(min(self._pads), self._end - self._longest)
        if spare >= max(more, _CHUNK):
            self._cache.shift(len(self.rows), spare, self._cache.columns)
            self._end -= spare
            self._pads = [pad - spare for pad in self._pads]
        else:
            rows = self._cache.rows if self._longest else len(self.rows)
            columns = self._end + max(more, _CHUNK)
            self._cache.resize(rows, columns, kept=len(self.rows), end=self._cache.columns)
