"""A cache whose rows come, go and fork. Knows keys, values and states; knows no token and no schedule.

Every row of a :class:`SlotCache` stands in one run of columns, its last token in the last column that is filled, so
that pads are always leftmost: sliding windows, alibi and position ids count as if the row were alone. Columns that no
token of a row has filled hold zeros: they are masked, but what is masked is still multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)


def _zeros(like: Tensor, *shape: int) -> Tensor:
    """Zeros that may be written in and outside of inference mode."""
    with torch.inference_mode(False):
        return torch.zeros(shape, dtype=like.dtype, device=like.device)


class KeyValueLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Keys and values of one attention block in buffers that are written in place.

    A layer with a sliding window keeps every column as well: the mask does the windowing, and a column that has left
    the window of one row may still be in that of another.
    """

    def __init__(self, like: DynamicLayer, rows: int, columns: int) -> None:
        super().__init__()
        assert like.keys is not None and like.values is not None
        self.dtype, self.device = like.keys.dtype, like.keys.device
        self.buffers = [_zeros(each, rows, each.shape[1], columns, each.shape[3]) for each in (like.keys, like.values)]
        self.is_initialized = True
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.see(0, rows, 0, 0)

    def see(self, first: int, last: int, start: int, end: int) -> None:
        """Let the next update write from column ``end`` on and give back the columns from ``start`` on."""
        self._rows, self._start, self._end = slice(first, last), start, end

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new tokens; the keys and values of all that the rows have seen."""
        end = self._end + key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[self._rows, :, self._end : end] = new
        self._end = end
        keys, values = (buffer[self._rows, :, self._start : end] for buffer in self.buffers)
        self.keys, self.values = keys, values
        return keys, values

    def get_seq_length(self) -> int:
        """Columns seen by the rows of the moment, pads included."""
        return self._end - self._start

    def resize(self, rows: int, columns: int, kept: int, end: int) -> None:
        """New buffers with the columns up to ``end`` of the first ``kept`` rows."""
        self.keys = self.values = None
        for i, old in enumerate(self.buffers):
            self.buffers[i] = _zeros(old, rows, old.shape[1], columns, old.shape[3])
            self.buffers[i][:kept, :, :end] = old[:kept, :, :end]

    def shift(self, kept: int, start: int, end: int) -> None:
        """Bring the columns from ``start`` to ``end`` of the first ``kept`` rows to the front."""
        for buffer in self.buffers:
            buffer[:kept, :, : end - start] = buffer[:kept, :, start:end].clone()


class StateLayer(LinearAttentionLayer):  # type: ignore[misc]  # transformers has no types
    """The convolution and recurrent states of one block; rows can be copied, and nothing of a state taken back."""

    def __init__(self, like: LinearAttentionLayer, rows: int) -> None:
        super().__init__(like.number_of_states)
        self.dtype, self.device = like.dtype, like.device
        self.conv_kernel_size = dict(like.conv_kernel_size)
        self.is_conv_states_initialized = dict(like.is_conv_states_initialized)
        self.is_recurrent_states_initialized = dict(like.is_recurrent_states_initialized)
        self.buffers: list[Tensor] = []
        self._views: list[tuple[dict[int, Tensor | None], int]] = []
        for states in (like.conv_states, like.recurrent_states):
            own = self.conv_states if states is like.conv_states else self.recurrent_states
            for index, state in states.items():
                if state is not None:
                    self.buffers.append(_zeros(state, rows, *state.shape[1:]))
                    self._views.append((own, index))

    def see(self, first: int, last: int, fresh: bool) -> None:
        """Let the next update start from nothing (``fresh``) or from the states of some rows, and write there."""
        for buffer, (own, index) in zip(self.buffers, self._views, strict=True):
            own[index] = buffer[first:last]
        self.has_previous_state = dict.fromkeys(range(self.number_of_states), not fresh)

    def resize(self, rows: int, kept: int) -> None:
        """New buffers that begin with the first ``kept`` rows."""
        for i, old in enumerate(self.buffers):
            self.buffers[i] = _zeros(old, rows, *old.shape[1:])
            self.buffers[i][:kept] = old[:kept]


class CacheLayout:
    """The forms of a model's cache layers, learned from a cache that the model itself has filled.

    ``recurrent`` says that some layer keeps a state of everything so far. ``layers`` is None where a layer is of a kind
    whose rows this project cannot align.
    """

    def __init__(self, filled: Any) -> None:
        layers = list(filled.layers) if isinstance(filled, Cache) else []
        known = (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer, DummyLayer)
        self.layers: list[Any] | None = layers if layers and all(type(each) in known for each in layers) else None
        self.recurrent = any(type(each) is LinearAttentionLayer for each in layers)


class SlotCache(Cache):  # type: ignore[misc]  # transformers has no types
    """Preallocated rows and columns, of which a forward sees some neighbouring rows up to the newest column."""

    def __init__(self, layout: CacheLayout, rows: int, columns: int) -> None:
        assert layout.layers is not None
        super().__init__(layers=[_layer(each, rows, columns) for each in layout.layers])
        self.layout = layout
        self.rows, self.columns = rows, columns
        self.attending = [each for each in self.layers if isinstance(each, KeyValueLayer)]
        self.recurring = [each for each in self.layers if isinstance(each, StateLayer)]

    def see(self, first: int, last: int, start: int, end: int, *, fresh: bool = False) -> None:
        """Let the next forward go on with the rows ``[first, last)`` after the columns ``[start, end)``.

        What the rows held from column ``end`` on is forgotten: that is how an attention cache is cropped and forked.
        States cannot be cropped; ``fresh`` starts them from nothing.
        """
        for layer in self.attending:
            layer.see(first, last, start, end)
        for state in self.recurring:
            state.see(first, last, fresh)

    def place(self, row: int, pad: int, prefix: SlotCache | None, kept: int) -> None:
        """Empty a row's columns up to ``pad`` and put the first ``kept`` tokens of a prefix there."""
        for layer in self.attending:
            for i, buffer in enumerate(layer.buffers):
                buffer[row, :, :pad] = 0
                if prefix is not None and kept:
                    source = prefix.layers[self.layers.index(layer)].buffers[i]
                    buffer[row, :, pad : pad + kept] = source[0, :, :kept]
        if prefix is not None:
            for state, whole in zip(self.recurring, prefix.recurring, strict=True):
                for buffer, source in zip(state.buffers, whole.buffers, strict=True):
                    buffer[row] = source[0]

    def blank(self, row: int, start: int, end: int) -> None:
        """Zeros in some columns of a row."""
        for layer in self.attending:
            for buffer in layer.buffers:
                buffer[row, :, start:end] = 0

    def move(self, sources: Sequence[int], targets: Sequence[int], start: int, end: int) -> None:
        """Copy rows onto others that are no longer needed; ``[start, end)`` are the columns that any row uses."""
        for source, target in zip(sources, targets, strict=True):
            for layer in self.attending:
                for buffer in layer.buffers:
                    buffer[target, :, start:end] = buffer[source, :, start:end]
            for state in self.recurring:
                for buffer in state.buffers:
                    buffer[target] = buffer[source]

    def shift(self, kept: int, start: int, end: int) -> None:
        """Forget the columns before ``start``, which no row uses."""
        for layer in self.attending:
            layer.shift(kept, start, end)

    def resize(self, rows: int, columns: int, *, kept: int, end: int) -> None:
        """Other numbers of rows and columns, one layer at a time, so that only one is held twice."""
        for layer in self.attending:
            layer.resize(rows, columns, kept, end)
        for state in self.recurring:
            state.resize(rows, kept)
        self.rows, self.columns = rows, columns

    def saved_states(self, first: int, last: int) -> list[Tensor]:
        """Copies of the states of some rows; nothing in a cache that has none."""
        return [buffer[first:last].clone() for layer in self.recurring for buffer in layer.buffers]

    def restore_states(self, first: int, last: int, saved: Sequence[Tensor]) -> None:
        """Put saved states back."""
        buffers = [buffer for layer in self.recurring for buffer in layer.buffers]
        for buffer, before in zip(buffers, saved, strict=True):
            buffer[first:last] = before


class BranchCache(Cache):  # type: ignore[misc]  # transformers has no types
    """One row of a :class:`SlotCache`, without its pads, from which ``n`` rows go on: each layer copies what they share
    when it is fed."""

    def __init__(self, trunk: SlotCache, row: int, pad: int, n: int) -> None:
        kinds = (DummyLayer if isinstance(each, DummyLayer) else DynamicLayer for each in trunk.layers)
        super().__init__(layers=[kind() for kind in kinds])
        self._shared = {
            b: [buffer[row, :, pad:].expand(n, -1, -1, -1) for buffer in each.buffers]
            for b, each in enumerate(trunk.layers)
            if isinstance(each, KeyValueLayer)
        }

    def see(self, end: int, first: int) -> None:
        """Let the next forward go on after ``end`` tokens; blocks from ``first`` on have what they were fed so far."""
        for b, shared in self._shared.items():
            layer = self.layers[b]
            if b < first or not layer.is_initialized:
                layer.keys, layer.values = (each[:, :, :end] for each in shared)
                layer.dtype, layer.device = layer.keys.dtype, layer.keys.device
                layer.is_initialized = True

    def put(self, row: int, block: int, tokens: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """Other keys and values of some tokens in one row of one block, each ``[head, token, width]``."""
        layer = self.layers[block]
        layer.keys, layer.values = layer.keys.clone(), layer.values.clone()  # rows may share them
        layer.keys[row][:, list(tokens)] = keys.to(layer.keys)
        layer.values[row][:, list(tokens)] = values.to(layer.values)


def _layer(like: Any, rows: int, columns: int) -> Any:
    if isinstance(like, LinearAttentionLayer):
        return StateLayer(like, rows)
    return DummyLayer() if isinstance(like, DummyLayer) else KeyValueLayer(like, rows, columns)
