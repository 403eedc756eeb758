"""Rows keep what they have seen wherever their cache puts them, and nothing that was left there before is ever read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from probe.capture import PassInput, PassSettings, run_pass, slots
from probe.capture.raw_rows import RawRow
from probe.models.caches import CacheLayout, KeyValueLayer, SlotCache
from probe.models.points import residual_points
from tests.capture.architectures import backend, prompts
from tests.capture.lettered_ids import EveryThird
from tests.capture.matrix_rows import LABELS

LENGTHS = (19, 23, 14, 30, 17, 26, 21)


def rows_of(name: str) -> list[PassInput]:
    """Rows whose answers have very different lengths, so that they enter and leave at every turn."""
    caps = (3, 14, 6, 1, 11, 8, 14)
    given = zip(prompts(name, LENGTHS, shared=9), caps, strict=True)
    return [PassInput(ids, None, None, LABELS, max_new_tokens=cap) for ids, cap in given]


def passed(name: str, batch_size: int) -> list[RawRow]:
    layers = tuple(range(backend(name, "hf").facts.shape.n_layers + 1))
    settings = PassSettings(residual_points(layers), ("prompt_end", "response_mean"), 14)
    return run_pass(backend(name, "hf"), rows_of(name), settings, EveryThird(), batch_size=batch_size)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever no row has written or emptied is NaN: a slot before a row is placed there, and columns yet to come."""
    see, place = SlotCache.see, SlotCache.place

    def seeing(self: SlotCache, first: int, last: int, start: int, end: int, *, fresh: bool = False) -> None:
        for layer in self.attending:
            for buffer in layer.buffers:
                buffer[first:last, :, end:] = torch.nan
                buffer[last:] = torch.nan
        see(self, first, last, start, end, fresh=fresh)

    def placing(self: SlotCache, row: int, *args: Any) -> None:
        for layer in [*self.attending, *self.recurring]:
            for buffer in layer.buffers:
                buffer[row] = torch.nan
        place(self, row, *args)

    monkeypatch.setattr(SlotCache, "see", seeing)
    monkeypatch.setattr(SlotCache, "place", placing)


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma2", "qwen3_next"])
def test_what_was_left_in_a_slot_is_never_read(
    name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    clean = passed(name, 3)
    monkeypatch.setattr(slots, "_CHUNK", 2)  # columns are given up, and the cache grows, every few steps
    request.getfixturevalue("poisoned")
    for one, other in zip(passed(name, 3), clean, strict=True):
        assert one.tokens == other.tokens
        for place, value in one.values.items():
            torch.testing.assert_close(value, other.values[place], rtol=1e-5, atol=1e-5)


def test_a_slot_that_is_not_emptied_would_be_noticed(monkeypatch: pytest.MonkeyPatch, poisoned: None) -> None:
    """The control: the same poison, and rows that are placed without emptying what stands before them."""
    place = SlotCache.place

    def careless(self: SlotCache, row: int, pad: int, prefix: SlotCache | None, kept: int) -> None:
        before = [buffer[row, :, :pad].clone() for layer in self.attending for buffer in layer.buffers]
        place(self, row, pad, prefix, kept)
        for layer in self.attending:
            for buffer in layer.buffers:
                buffer[row, :, :pad] = before.pop(0) + torch.nan

    monkeypatch.setattr(SlotCache, "place", careless)
    assert not all(value.isfinite().all() for row in passed("llama", 3) for value in row.values.values())


def layout_of(heads: int = 2, width: int = 4) -> CacheLayout:
    told = DynamicCache()
    for layer in range(2):
        told.update(torch.zeros(1, heads, 1, width), torch.zeros(1, heads, 1, width), layer)
    return CacheLayout(told)


def written(cache: SlotCache, row: int, pad: int, n_tokens: int) -> list[torch.Tensor]:
    """Random keys and values of a row that stands in the columns after ``pad``."""
    cache.place(row, pad, None, 0)
    cache.see(row, row + 1, pad, pad)
    own = [torch.randn(1, 2, n_tokens, 4) for _ in range(4)]
    for layer in range(2):
        cache.update(own[2 * layer], own[2 * layer + 1], layer)
    return own


def stands(cache: SlotCache, row: int, pad: int, own: list[torch.Tensor]) -> bool:
    """Whether a row's columns are its own, and those before them empty."""
    buffers = [buffer for layer in cache.attending for buffer in layer.buffers]
    n = own[0].shape[2]
    return all(
        torch.equal(buffer[row, :, pad : pad + n], each[0]) and not buffer[row, :, :pad].any()
        for buffer, each in zip(buffers, own, strict=True)
    )


def test_rows_keep_their_columns_when_rows_move_the_cache_grows_and_old_columns_are_given_up() -> None:
    torch.manual_seed(0)
    cache = SlotCache(layout_of(), 3, 12)
    own = [written(cache, row, pad, 10 - pad) for row, pad in enumerate((4, 6, 5))]
    assert all(stands(cache, row, pad, own[row]) for row, pad in enumerate((4, 6, 5)))
    cache.move([2], [0], 4, 10)
    assert stands(cache, 0, 5, own[2])
    cache.shift(2, 3, 10)
    assert stands(cache, 0, 2, own[2])
    assert stands(cache, 1, 3, own[1])
    cache.resize(5, 20, kept=2, end=7)
    assert (cache.rows, cache.columns) == (5, 20)
    assert stands(cache, 0, 2, own[2])
    assert stands(cache, 1, 3, own[1])
    assert all(not buffer[:, :, 7:].any() for layer in cache.attending for buffer in layer.buffers)


def test_a_cropped_cache_goes_on_as_if_the_tokens_had_not_been() -> None:
    torch.manual_seed(0)
    cache = SlotCache(layout_of(), 1, 9)
    first, second, third = (torch.randn(1, 2, n, 4) for n in (4, 3, 2))
    cache.see(0, 1, 0, 0)
    cache.update(first, first, 0)
    cache.see(0, 1, 0, 4)
    cache.update(second, second, 0)
    cache.see(0, 1, 0, 4)
    keys, _ = cache.update(third, third, 0)
    assert torch.equal(keys, torch.cat([first, third], dim=2))
    assert cache.get_seq_length(0) == 6


def test_a_layer_of_a_kind_that_is_not_known_has_no_layout() -> None:
    class Odd(KeyValueLayer):
        """Keys of a kind of its own."""

    told = DynamicCache()
    told.update(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4), 0)
    assert CacheLayout(told).layers is not None
    told.layers[0] = Odd(told.layers[0], 1, 1)
    assert CacheLayout(told).layers is None
