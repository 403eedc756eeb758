"""Rows come, go and fork, and each goes on as if it were alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from probe.capture import PassInput, PassSettings, prefixes, run_pass, slots, stream_pass
from probe.capture.forks import Fork
from probe.capture.raw_rows import RawRow
from probe.models.points import residual_points
from probe.models.protocol import Backend, Forward, Reads
from probe.prompts import Reopening
from tests.capture.architectures import backend, prompts
from tests.capture.lettered_ids import EveryThird
from tests.capture.matrix_rows import LABELS
from tests.capture.reference import greedy

LENGTHS = (19, 23, 14, 30, 17, 26, 21)
CAPS = (3, 12, 6, 1, 10, 8, 12)
FORKS = (
    Fork("forced", "prompt_end", (7, 8, 9), LABELS),
    Fork("other", "prompt_end", (11,)),
    Fork("after", "reasoning_end", (21, 22), LABELS),
)


class Counting:
    """A backend that notes how many rows and columns each forward has."""

    def __init__(self, inner: Backend) -> None:
        self.facts, self._inner = inner.facts, inner
        self.shapes: list[tuple[int, int]] = []

    def forward(
        self, ids: Tensor, mask: Tensor, reads: Reads, *, cache: Any = None, edits: Sequence[Any] = ()
    ) -> Forward:
        self.shapes.append((ids.shape[0], ids.shape[1]))
        return self._inner.forward(ids, mask, reads, cache=cache, edits=edits)


def rows_of(name: str, **more: Any) -> list[PassInput]:
    given = zip(prompts(name, LENGTHS, shared=12), CAPS, strict=True)
    return [PassInput(ids, 5, (12, 14), LABELS, max_new_tokens=cap, **more) for ids, cap in given]


def settings_of(model: Backend, *positions: str) -> PassSettings:
    points = residual_points(tuple(range(model.facts.shape.n_layers + 1)))
    return PassSettings(points, positions or ("prompt_end", "persona_end"), 12)


def passed(model: Backend, rows: list[PassInput], batch_size: int, *positions: str) -> list[RawRow]:
    return run_pass(model, rows, settings_of(model, *positions), EveryThird(), batch_size=batch_size)


@pytest.fixture(autouse=True)
def short_prefixes_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "WORTH", 8)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_rows_that_come_and_go_are_those_that_run_alone(batch_size: int) -> None:
    model = backend("llama", "hf")
    rows = rows_of("llama")
    for row, raw in zip(rows, passed(model, rows, batch_size), strict=True):
        assert row.max_new_tokens is not None
        tokens, _ = greedy("llama", row.token_ids, row.max_new_tokens, model.facts.shape.end_ids)
        assert raw.tokens == tokens
        assert raw.stop == ("length" if len(tokens) == row.max_new_tokens else "end")


def test_no_forward_feeds_a_row_that_has_ended_and_the_prefix_is_fed_once() -> None:
    rows = rows_of("llama")
    model = Counting(backend("llama", "hf"))
    raws = passed(model, rows, 3)
    decoded = [n_rows for n_rows, width in model.shapes[1:] if width == 1]
    # Each token but the last of a row that met its cap is fed once; an end token never is.
    assert sum(decoded) == sum(len(raw.tokens) - (raw.stop == "length") for raw in raws)
    assert max(decoded) == 3
    prefills = [shape for shape in model.shapes[1:] if shape[1] > 1]
    assert prefills[0] == (1, 12)
    assert sum(n_rows for n_rows, _ in prefills[1:]) == len(rows)
    assert max(width for _, width in prefills[1:]) == max(LENGTHS) - 12


def test_rows_are_given_as_they_end() -> None:
    model, rows = backend("llama", "hf"), rows_of("llama")
    ended = [index for index, _ in stream_pass(model, rows, settings_of(model), EveryThird(), batch_size=7)]
    lengths = [len(raw.tokens) + (raw.stop == "end") for raw in passed(model, rows, 7)]
    assert [lengths[index] for index in ended] == sorted(lengths)
    assert list(stream_pass(model, [], settings_of(model), EveryThird(), batch_size=7)) == []


def test_what_a_row_gave_holds_nothing_of_the_rows_that_it_ran_with() -> None:
    model, rows = backend("llama", "hf"), rows_of("llama", forks=FORKS[:1])
    for raw in passed(model, rows, 7, "prompt_end", "persona_end", "case_mean", "response_mean"):
        kept = [*raw.values.values(), *(value for step in raw.letter_steps for value in step.values.values())]
        kept += [value for fork in raw.forks.values() for value in fork.values.values()]
        assert len(kept) >= 4
        assert all(value.untyped_storage().nbytes() == value.numel() * value.element_size() for value in kept)


def test_the_cache_of_a_prefix_is_gone_when_its_last_row_has_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []
    run = slots.Slots.prefix

    def prefix(self: slots.Slots, row: PassInput, n_tokens: int) -> slots.Prefix:
        found = run(self, row, n_tokens)
        made.append(weakref.ref(found.cache))
        return found

    monkeypatch.setattr(slots.Slots, "prefix", prefix)
    model, rows = backend("llama", "hf"), rows_of("llama")
    alive = []
    for _ in stream_pass(model, rows, settings_of(model), EveryThird(), batch_size=3):
        gc.collect()
        alive.append([each() is not None for each in made])
    assert alive[0] == [True]  # rows of it still wait
    assert alive[-1] == [False]


def test_no_step_asks_the_device_which_logits_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the host would wait for the device")

    model, rows = backend("llama", "hf"), rows_of("llama")
    monkeypatch.setattr(torch, "unique", refused)
    assert all(raw.stop for raw in passed(model, rows, 3))
    with pytest.raises(AssertionError, match="wait for the device"):  # the control: a fork keeps several columns
        passed(model, rows_of("llama", forks=FORKS[:1]), 3)


@pytest.mark.parametrize("name", ["llama", "mistral_window", "qwen3_next", "mamba2"])
def test_forks_leave_no_trace(name: str) -> None:
    model = backend(name, "hf")
    forked = rows_of(name, forks=FORKS, reasoning_end=lambda tokens: Reopening(len(tokens) // 2, (33,)))
    plain = passed(model, rows_of(name), 3)
    for one, other in zip(passed(model, forked, 3), plain, strict=True):
        assert one.tokens == other.tokens
        assert set(one.forks) == {"forced", "other", "after"}
        assert not other.forks
        assert [step.index for step in one.letter_steps] == [step.index for step in other.letter_steps]
        assert all(torch.equal(value, other.values[place]) for place, value in one.values.items())


def test_reasoning_that_never_closed_has_no_fork() -> None:
    model = backend("llama", "hf")
    rows = rows_of("llama", forks=FORKS[2:], reasoning_end=lambda tokens: None)
    assert all(not raw.forks for raw in passed(model, rows, 3))


@pytest.mark.parametrize("name", ["llama", "qwen3_next"])
def test_a_given_answer_gives_what_the_row_that_generated_it_gave(name: str) -> None:
    model = backend(name, "hf")
    positions = ("prompt_end", "response_mean")
    generated = passed(model, rows_of(name), 3, *positions)
    rows = [replace(row, given=tuple(raw.tokens)) for row, raw in zip(rows_of(name), generated, strict=True)]
    mixed = [row if i % 3 else replace(row, given=None) for i, row in enumerate(rows)]
    for batch in (rows, mixed):
        for row, one, other in zip(batch, passed(model, batch, 3, *positions), generated, strict=True):
            assert one.tokens == other.tokens
            assert (one.stop == "given") == (row.given is not None)
            assert one.n_letter_steps == other.n_letter_steps
            assert set(one.values) == set(other.values)
            for place, value in one.values.items():
                torch.testing.assert_close(value, other.values[place], rtol=1e-4, atol=1e-4)
            for step, same in zip(one.letter_steps, other.letter_steps, strict=True):
                assert step.index == same.index
                torch.testing.assert_close(step.values["resid"], same.values["resid"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_failed_pass_leaves_nothing_behind(error: type[BaseException]) -> None:
    class Failing(Counting):
        def forward(self, *args: Any, **kwargs: Any) -> Forward:
            if len(self.shapes) == 6:
                raise error
            return super().forward(*args, **kwargs)

    model, rows = backend("llama", "hf"), rows_of("llama")
    before = passed(model, rows, 3)
    with pytest.raises(error):
        passed(Failing(model), rows, 3)
    for one, other in zip(passed(model, rows, 3), before, strict=True):
        assert one.tokens == other.tokens
        assert all(torch.equal(value, other.values[place]) for place, value in one.values.items())
