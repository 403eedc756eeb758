"""Every arm of a sweep as a forward over the whole row: plain, for any backend, and what resuming is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture.batching import PassInput, left_padded
from probe.capture.sweep_items import Item, ItemEdits, donor_arrays, tokens_of
from probe.models.caches import CacheLayout, KeyValueLayer, SlotCache
from probe.models.points import HookPoint
from probe.models.protocol import Backend, Forward, Reads
from probe.values import ModelError


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the last tokens of some rows gave: next-token logits and values by (stream, layer)."""

    logits: Float[Tensor, "row vocab"]
    values: Mapping[tuple[str, int], Float[Tensor, "row width"]]


class FullForwards:
    """A sweep without any reuse; rows and arms share batches."""

    def __init__(
        self, backend: Backend, rows: Sequence[PassInput], points: tuple[HookPoint, ...], batch_size: int
    ) -> None:
        self._backend, self._rows = backend, rows
        self._points = points
        self._batch_size = batch_size
        self._edits = ItemEdits(backend.facts)

    def rows_at_once(self, items: Sequence[Item]) -> int:
        """How many rows ``unedited`` takes in one batch."""
        return self._batch_size

    def unedited(self, here: Sequence[int], items: Sequence[Item]) -> Outcome:
        """Some rows as they are, in one batch; nothing is kept for their ``items``."""
        return self._run([tokens_of(self._rows[r]) for r in here], [])

    def edited(self, items: Sequence[Item]) -> Iterator[tuple[list[Item], Outcome]]:
        """Batches of items with what they gave, in any order."""
        plain = [item for item in items if not item.donors]
        for first in range(0, len(plain), self._batch_size):
            batch = plain[first : first + self._batch_size]
            yield batch, self._run([item.tokens for item in batch], batch)
        for item in items:
            if item.donors:
                yield [item], self._with_donors(item)

    @torch.inference_mode()
    def _run(self, rows: Sequence[tuple[int, ...]], items: Sequence[Item]) -> Outcome:
        facts = self._backend.facts
        ids, mask, pads = left_padded(rows, facts.shape.pad_id, facts.device)
        edits = self._edits.edits(items, [-pad for pad in pads], ids.shape[1]) if items else ()
        return outcome(self._backend.forward(ids, mask, _last(self._points, ids), edits=edits), self._points)

    @torch.inference_mode()
    def _with_donors(self, item: Item) -> Outcome:
        """The row piece by piece, alone, so that donors' keys and values stand in its cache where they are seen."""
        backend, n = self._backend, len(item.tokens)
        cache = SlotCache(cache_layout(backend, item.tokens[0]), 1, n)
        for start, end in zip((0, *item.bounds), (*item.bounds, n), strict=True):
            for patch in item.donors:
                if patch.first_seen == start:
                    put_donor(cache, patch.tokens, donor_arrays(patch, cache.attending[0].buffers[0]))
            cache.see(0, 1, 0, start)
            ids = torch.tensor([item.tokens[start:end]], device=backend.facts.device)
            mask = torch.ones((1, end), dtype=torch.long, device=backend.facts.device)
            edits = self._edits.edits([item], [start], end - start)
            forward = backend.forward(ids, mask, _last(self._points, ids), cache=cache, edits=edits)
        return outcome(forward, self._points)


def cache_layout(backend: Backend, token: int) -> CacheLayout:
    """The layout of a model's cache, which one token tells.

    Raises:
        ModelError: rows of it cannot be aligned.
    """
    ids = torch.tensor([[token]], device=backend.facts.device)
    layout = CacheLayout(backend.forward(ids, torch.ones_like(ids), Reads((), torch.zeros_like(ids))).cache)
    if layout.layers is None or layout.recurrent:
        raise ModelError(f"the cache of {backend.facts.architecture} is not one of keys and values alone")
    return layout


def put_donor(cache: SlotCache, tokens: Sequence[int], arrays: Sequence[tuple[int, tuple[Tensor, Tensor]]]) -> None:
    """Write donors' keys and values over those of row 0, which has no pads."""
    for layer, donor in arrays:
        own = cache.layers[layer]
        assert isinstance(own, KeyValueLayer)
        for buffer, new in zip(own.buffers, donor, strict=True):
            buffer[0, :, list(tokens)] = new.to(buffer.device)


def outcome(
    forward: Forward, points: tuple[HookPoint, ...], read: tuple[HookPoint, ...] | None = None, *, column: int = 0
) -> Outcome:
    """What a forward gave of some points at one column of each row; ``read`` are all the points that it read."""
    read = points if read is None else read
    layers = {stream: [point.layer for point in read if point.stream == stream] for stream in forward.values}
    return Outcome(
        forward.logits[:, 0],
        {(p.stream, p.layer): forward.values[p.stream][layers[p.stream].index(p.layer), :, column] for p in points},
    )


def _last(points: tuple[HookPoint, ...], ids: Tensor) -> Reads:
    return Reads(points, torch.full((ids.shape[0], 1), ids.shape[1] - 1, device=ids.device))
