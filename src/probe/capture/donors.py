"""What donors give to patches, token by token: activations, keys and values. Knows rows; knows no patch, no study."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture.batching import PassInput, left_padded
from probe.capture.sweep_full import cache_layout
from probe.capture.sweep_items import tokens_of
from probe.models.caches import KeyValueLayer, SlotCache
from probe.models.points import HookPoint
from probe.models.protocol import Backend, Reads
from probe.values import KeyValues, ModelError, ProbeError


def token_reads(
    backend: Backend,
    rows: Sequence[PassInput],
    points: tuple[HookPoint, ...],
    tokens: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
) -> list[dict[tuple[str, int], Float[np.ndarray, "token width"]]]:
    """Activations of rows, unedited, at some tokens of each: by (stream, layer), in fp32.

    Tokens are counted over the prompt and what is given after it.

    Raises:
        ProbeError: a hook point or a token that there is not.
    """
    _require_tokens(rows, tokens)
    backend.facts.require(points)
    found = []
    for first in range(0, len(rows), batch_size):
        some, at = rows[first : first + batch_size], tokens[first : first + batch_size]
        found += _read(backend, some, points, at)
    return found


@torch.inference_mode()
def _read(
    backend: Backend, rows: Sequence[PassInput], points: tuple[HookPoint, ...], tokens: Sequence[Sequence[int]]
) -> list[dict[tuple[str, int], np.ndarray]]:
    facts = backend.facts
    ids, mask, pads = left_padded([tokens_of(row) for row in rows], facts.shape.pad_id, facts.device)
    most = max(map(len, tokens), default=0)
    columns = [
        [pad + t for t in own] + [ids.shape[1] - 1] * (most - len(own)) for own, pad in zip(tokens, pads, strict=True)
    ]
    reads = Reads(points, torch.tensor(columns, dtype=torch.long, device=facts.device).reshape(len(rows), most))
    values = backend.forward(ids, mask, reads).values
    layers = {stream: [p.layer for p in points if p.stream == stream] for stream in values}
    return [
        {
            (stream, layer): _array(values[stream][k, i, : len(own)])
            for stream, some in layers.items()
            for k, layer in enumerate(some)
        }
        for i, own in enumerate(tokens)
    ]


def key_value_reads(
    backend: Backend, rows: Sequence[PassInput], tokens: Sequence[Sequence[int]], *, batch_size: int = 32
) -> list[KeyValues]:
    """Keys and values of rows, unedited, at some tokens of each, of all blocks, as their cache holds them, in fp32.

    Raises:
        ProbeError: a token that there is not.
        ModelError: the model's cache is not one of keys and values alone.
    """
    _require_tokens(rows, tokens)
    if backend.facts.caching != "attention":
        raise ModelError(
            f"keys and values are read from a cache of keys and values alone, and that of "
            f"{backend.facts.architecture} on backend {backend.facts.backend!r} is {backend.facts.caching!r}"
        )
    found = []
    for first in range(0, len(rows), batch_size):
        some, at = rows[first : first + batch_size], tokens[first : first + batch_size]
        cache, pads = _filled(backend, some)
        for i, own in enumerate(at):
            columns = [pads[i] + t for t in own]
            keys, values = zip(*(_columns(layer, i, columns) for layer in cache.layers), strict=True)
            found.append(KeyValues(tuple(own), keys, values))
    return found


@torch.inference_mode()
def _filled(backend: Backend, rows: Sequence[PassInput]) -> tuple[SlotCache, list[int]]:
    """The cache of some rows after one forward, and their pads."""
    facts = backend.facts
    ids, mask, pads = left_padded([tokens_of(row) for row in rows], facts.shape.pad_id, facts.device)
    cache = SlotCache(cache_layout(backend, int(ids[0, -1])), *ids.shape)
    cache.see(0, len(rows), 0, 0)
    backend.forward(ids, mask, Reads((), torch.zeros_like(ids[:, :1])), cache=cache)
    return cache, pads


def _columns(layer: KeyValueLayer, row: int, columns: list[int]) -> tuple[np.ndarray, np.ndarray]:
    keys, values = (_array(buffer[row][:, columns]) for buffer in layer.buffers)
    return keys, values


def _array(value: Tensor) -> np.ndarray:
    array: np.ndarray = value.float().cpu().numpy()
    return array


def _require_tokens(rows: Sequence[PassInput], tokens: Sequence[Sequence[int]]) -> None:
    if len(tokens) != len(rows):
        raise ProbeError(f"each row has its own tokens to read, found {len(rows)} rows and {len(tokens)} lists")
    for number, (row, own) in enumerate(zip(rows, tokens, strict=True)):
        last = len(tokens_of(row)) - 1
        wrong = [t for t in own if not 0 <= t <= last]
        if wrong:
            raise ProbeError(f"row {number} has tokens 0 to {last}; found {wrong[0]}")
