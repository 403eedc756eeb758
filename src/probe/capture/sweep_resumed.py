"""Arms of a sweep from where they begin to differ: below their layer and before their token all is computed once.

Rows run once, unedited; their keys and values are kept, and the residual where arms begin. Arms that touch the last
token alone stand abreast, those of a row over one copy of its keys and values. Others are fed from their first edited
token on, the arms of one row in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.capture.batching import PassInput, left_padded
from probe.capture.prefixes import WORTH
from probe.capture.sweep_full import Outcome, outcome
from probe.capture.sweep_items import Item, ItemEdits, donor_arrays, tokens_of
from probe.models.caches import BranchCache, SlotCache
from probe.models.hf import HFBackend
from probe.models.points import HookPoint, residual_points
from probe.models.protocol import Forward, Reads
from probe.models.resume import AbreastEdit, Resumer, Start

_ABREAST = 256
"""Versions of last tokens in one forward, those of all its rows together."""
_KEPT = 2**30
"""Bytes of residuals that are kept at most, where more than one row runs."""
_WASTE = 1.25
"""Arms share a batch where the longest is fed at most this many times the tokens of the shortest."""


@dataclass(frozen=True, eq=False)
class _Trunk:
    """Rows that have run: what their arms go on from. ``hidden[layer]`` are the residuals of the last columns."""

    at: Mapping[int, int]
    ids: Int[Tensor, "row pos"]
    mask: Int[Tensor, "row pos"]
    pads: Sequence[int]
    cache: SlotCache
    hidden: Mapping[int, Float[Tensor, "row column d_model"]]
    abreast: int
    plain: Outcome


class ResumedForwards:
    """What :class:`probe.capture.sweep_full.FullForwards` is asked, of a model whose forwards can be resumed."""

    def __init__(
        self,
        backend: HFBackend,
        resumer: Resumer,
        rows: Sequence[PassInput],
        points: tuple[HookPoint, ...],
        batch_size: int,
    ) -> None:
        self._backend, self._resumer = backend, resumer
        self._rows, self._points, self._batch_size = rows, points, batch_size
        self._edits = ItemEdits(backend.facts)
        self._trunk: _Trunk | None = None

    def rows_at_once(self, items: Sequence[Item]) -> int:
        """How many rows ``unedited`` takes, so that the residuals which their arms go on from have room."""
        facts = self._backend.facts
        acting = [item for item in items if item.layer is not None]
        columns = max((item.suffix for item in acting), default=1) * len({item.layer for item in acting})
        most = _KEPT // max(columns * facts.shape.d_model * facts.dtype.itemsize, 1)
        return min(max(most, 1), self._batch_size)

    @torch.inference_mode()
    def unedited(self, here: Sequence[int], items: Sequence[Item]) -> Outcome:
        """Some rows as they are, in one batch. What their ``items`` go on from is kept until the next call."""
        self._trunk = None  # its memory is free before the next one's is taken
        facts, tokens = self._backend.facts, [tokens_of(self._rows[r]) for r in here]
        ids, mask, pads = left_padded(tokens, facts.shape.pad_id, facts.device)
        acting = [item for item in items if item.layer is not None]
        abreast = self._versions(acting, len(here))
        cache = SlotCache(self._resumer.layout, len(here), ids.shape[1] + abreast)
        layers = sorted({item.layer for item in acting if item.layer is not None})
        n_read = max((item.suffix for item in acting), default=1)
        width = self._share_beginning(cache, tokens, pads, n_read)
        points = tuple(dict.fromkeys((*self._points, *residual_points(tuple(layers)))))
        columns = torch.arange(width - n_read, width, device=ids.device).expand(len(here), -1)
        forward = self._backend.forward(ids[:, -width:], mask, Reads(points, columns), cache=cache)
        for row, pad in enumerate(pads):
            cache.blank(row, 0, pad)
        plain = outcome(forward, self._points, points, column=-1)
        known = [point.layer for point in points if point.stream == "resid"]
        hidden = {layer: forward.values["resid"][known.index(layer)] for layer in layers}
        at = {r: i for i, r in enumerate(here)}
        self._trunk = _Trunk(at, ids, mask, pads, cache, hidden, abreast, plain)
        return plain

    def _share_beginning(
        self, cache: SlotCache, tokens: Sequence[tuple[int, ...]], pads: Sequence[int], n_read: int
    ) -> int:
        """Run what all rows begin with once, and put it into the cache; how many columns are left to be fed.

        A row that is shorter than others is fed some of its beginning again, so that pads stand leftmost. The last
        ``n_read`` columns are always fed.
        """
        n_rows, n_pos = len(tokens), len(tokens[0]) + pads[0]
        first, last = min(tokens), max(tokens)
        differ = (k for k, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
        n_shared = min(next(differ, len(first)), n_pos - n_read)
        if sum(max(n_shared - pad, 0) for pad in pads) - n_shared < WORTH:
            cache.see(0, n_rows, 0, 0)
            return n_pos
        ids = torch.tensor([first[:n_shared]], device=self._backend.facts.device)
        shared = SlotCache(self._resumer.layout, 1, n_shared)
        shared.see(0, 1, 0, 0)
        self._backend.forward(ids, torch.ones_like(ids), Reads((), torch.zeros_like(ids[:, :1])), cache=shared)
        width = n_pos - n_shared
        for row, pad in enumerate(pads):
            cache.place(row, pad, shared, max(n_shared - pad, 0))
        cache.see(0, n_rows, 0, n_pos - width)
        return width

    def edited(self, items: Sequence[Item]) -> Iterator[tuple[list[Item], Outcome]]:
        """Batches of the items that ``unedited`` was told, with what they gave, in any order."""
        trunk = self._trunk
        assert trunk is not None
        idle = [item for item in items if item.layer is None]
        if idle:
            rows = [trunk.at[item.row] for item in idle]
            plain = trunk.plain
            yield idle, Outcome(plain.logits[rows], {point: value[rows] for point, value in plain.values.items()})
        acting = [item for item in items if item.layer is not None]
        yield from self._abreast(trunk, [item for item in acting if self._stands_abreast(item)])
        for batch in _branches([item for item in acting if not self._stands_abreast(item)], self._batch_size):
            yield batch, self._branch(trunk, batch)

    def _stands_abreast(self, item: Item) -> bool:
        return self._resumer.abreast and item.suffix == 1 and not item.donors

    def _versions(self, items: Sequence[Item], n_rows: int) -> int:
        """How many versions of a row's last token at most stand abreast in one forward."""
        counts: dict[tuple[int, int | None], int] = {}
        for item in items:
            if self._stands_abreast(item):
                counts[item.row, item.layer] = counts.get((item.row, item.layer), 0) + 1
        return min(max(counts.values(), default=0), max(_ABREAST // n_rows, 1))

    def _abreast(self, trunk: _Trunk, items: Sequence[Item]) -> Iterator[tuple[list[Item], Outcome]]:
        """Arms that begin at one layer, a few of each row at a time."""
        for layer in sorted({item.layer for item in items if item.layer is not None}):
            waiting: dict[int, list[Item]] = {}
            for item in items:
                if item.layer == layer:
                    waiting.setdefault(trunk.at[item.row], []).append(item)
            while waiting:
                first, last = min(waiting), max(waiting) + 1
                taken = [waiting.get(row, [])[: trunk.abreast] for row in range(first, last)]
                waiting = {row: own[trunk.abreast :] for row, own in waiting.items() if len(own) > trunk.abreast}
                yield [item for own in taken for item in own], self._side_by_side(trunk, layer, first, taken)

    @torch.inference_mode()
    def _side_by_side(self, trunk: _Trunk, layer: int, first: int, taken: Sequence[Sequence[Item]]) -> Outcome:
        """Versions of the last tokens of neighbouring rows; rows that have fewer are filled up with their own token."""
        n, last, width = max(map(len, taken)), first + len(taken), trunk.ids.shape[1]
        filler = _inert(next(item for own in taken for item in own))
        filled = [item for own in taken for item in (*own, *[filler] * (n - len(own)))]
        edits = self._edits.edits(filled, [len(item.tokens) - 1 for item in filled], 1)
        start = min(trunk.pads[first:last])
        trunk.cache.see(first, last, start, width - 1)
        columns = torch.arange(n, device=trunk.ids.device).expand(len(taken), -1)
        forward = self._resumer.forward(
            trunk.ids[first:last, -1:],
            trunk.mask[first:last, start:],
            Reads(_above(self._points, layer), columns),
            Start(layer, trunk.hidden[layer][first:last, -1:].expand(-1, n, -1).contiguous(), abreast=True),
            cache=trunk.cache,
            edits=[AbreastEdit.of(edit, n) for edit in edits],
        )
        rows, places = zip(*((i, k) for i, own in enumerate(taken) for k in range(len(own))), strict=True)
        values = {point: value[list(rows), list(places)] for point, value in _by_point(forward, self._points, layer)}
        found = Outcome(forward.logits[list(rows), list(places)], values)
        return self._with_below(trunk, found, layer, [first + i for i in rows])

    @torch.inference_mode()
    def _branch(self, trunk: _Trunk, items: Sequence[Item]) -> Outcome:
        """Arms of one row that begin at one layer, from the first token of any of them on."""
        layer, tokens = items[0].layer, items[0].tokens
        assert layer is not None
        row, n, device = trunk.at[items[0].row], len(items), trunk.ids.device
        cache = BranchCache(trunk.cache, row, trunk.pads[row], n)
        edges = sorted({min(item.start for item in items), *items[0].bounds})
        for start, end in pairwise((*edges, len(tokens))):
            cache.see(start, layer)
            for i, item in enumerate(items):
                for patch in item.donors:
                    if patch.first_seen == start:
                        for block, donor in donor_arrays(patch, trunk.hidden[layer]):
                            cache.put(i, block, patch.tokens, *donor)
            from_end = slice(start - len(tokens) + trunk.ids.shape[1], end - len(tokens) + trunk.ids.shape[1])
            forward = self._resumer.forward(
                trunk.ids[row, from_end].expand(n, -1),
                torch.ones((n, end), dtype=torch.long, device=device),
                Reads(_above(self._points, layer), torch.full((n, 1), end - start - 1, device=device)),
                Start(layer, self._stored(trunk, layer, row, from_end).expand(n, -1, -1).contiguous()),
                cache=cache,
                edits=self._edits.edits(items, [start] * n, end - start),
            )
        values = {point: value[:, 0] for point, value in _by_point(forward, self._points, layer)}
        return self._with_below(trunk, Outcome(forward.logits[:, 0], values), layer, [row] * n)

    @staticmethod
    def _stored(trunk: _Trunk, layer: int, row: int, columns: slice) -> Float[Tensor, "column d_model"]:
        """The stored residuals of some columns of a row."""
        own = trunk.hidden[layer]
        before = trunk.ids.shape[1] - own.shape[1]
        return own[row, columns.start - before : columns.stop - before]

    def _with_below(self, trunk: _Trunk, found: Outcome, layer: int, rows: Sequence[int]) -> Outcome:
        """What was read, and below the layer, where nothing is edited, what the rows gave by themselves."""
        chosen = list(rows)
        below = [(point.stream, point.layer) for point in self._points if point.layer < layer]
        plain = {point: trunk.plain.values[point][chosen] for point in below}
        return Outcome(found.logits, {**plain, **found.values})


def _branches(items: Sequence[Item], batch_size: int) -> Iterator[list[Item]]:
    """Arms that are fed together: of one row, from one layer, with donors seen from the same tokens, about as long."""

    def kind(item: Item) -> tuple[int, int, tuple[int, ...]]:
        assert item.layer is not None
        return item.row, item.layer, item.bounds

    for _, group in groupby(sorted(items, key=lambda item: (*kind(item), item.suffix)), key=kind):
        batch: list[Item] = []
        for item in group:
            if batch and (len(batch) == batch_size or item.suffix > _WASTE * batch[0].suffix):
                yield batch
                batch = []
            batch.append(item)
        yield batch


def _inert(item: Item) -> Item:
    return replace(item, fed=replace(item.fed, interventions=()), patches=())


def _above(points: tuple[HookPoint, ...], layer: int) -> tuple[HookPoint, ...]:
    return tuple(point for point in points if point.layer >= layer)


def _by_point(
    forward: Forward, points: tuple[HookPoint, ...], layer: int
) -> Iterator[tuple[tuple[str, int], Float[Tensor, "batch column width"]]]:
    """What a forward read, point by point."""
    for stream, values in forward.values.items():
        own = [point.layer for point in _above(points, layer) if point.stream == stream]
        yield from (((stream, at), value) for at, value in zip(own, values, strict=True))
