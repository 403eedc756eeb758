"""A model that would be read wrongly is refused at load, with what was found; one that is read rightly is not."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probe.models.check import check_backend
from probe.models.edits import Edit
from probe.models.hf import HFBackend
from probe.models.protocol import Backend, Forward, Reads
from probe.values import ModelError
from tests.capture.architectures import build


@pytest.fixture(scope="module")
def sound() -> HFBackend:
    return HFBackend(build("llama")[0])


class Wrong(Backend):
    """A sound backend, one thing of which is done wrongly."""

    def __init__(self, sound: HFBackend, wrong: Callable[..., Forward]) -> None:
        self.facts = sound.facts
        self._sound, self._wrong = sound, wrong

    def forward(
        self, ids: Tensor, mask: Tensor, reads: Reads, *, cache: Any = None, edits: Sequence[Edit] = ()
    ) -> Forward:
        return self._wrong(self._sound.forward, ids, mask, reads, cache, edits)


def changed(values: dict[str, Tensor], stream: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {**values, stream: change(values[stream])}


def test_a_sound_backend_passes_with_and_without_its_reference(sound: HFBackend) -> None:
    check_backend(sound, sound.model)
    check_backend(sound)
    check_backend(
        Wrong(sound, lambda run, ids, mask, reads, cache, edits: run(ids, mask, reads, cache=cache, edits=edits))
    )


def one_layer_off(run: Any, ids: Tensor, mask: Tensor, reads: Reads, cache: Any, edits: Any) -> Forward:
    found = run(ids, mask, reads, cache=cache, edits=edits)
    return replace(found, values=changed(found.values, "resid", lambda resid: resid.roll(1, dims=0)))


def other_logits(run: Any, ids: Tensor, mask: Tensor, reads: Reads, cache: Any, edits: Any) -> Forward:
    found = run(ids, mask, reads, cache=cache, edits=edits)
    return replace(found, logits=found.logits + 0.01 * found.logits.abs().max())


def mlp_before_its_norm(run: Any, ids: Tensor, mask: Tensor, reads: Reads, cache: Any, edits: Any) -> Forward:
    found = run(ids, mask, reads, cache=cache, edits=edits)
    return replace(found, values=changed(found.values, "mlp_out", lambda term: 1.1 * term))


def edits_are_forgotten(run: Any, ids: Tensor, mask: Tensor, reads: Reads, cache: Any, edits: Any) -> Forward:
    return run(ids, mask, reads, cache=cache)  # type: ignore[no-any-return]


def edits_are_read_and_not_used(run: Any, ids: Tensor, mask: Tensor, reads: Reads, cache: Any, edits: Any) -> Forward:
    return replace(run(ids, mask, reads, cache=cache, edits=edits), logits=run(ids, mask, reads, cache=cache).logits)


def edits_act_on_every_row(run: Any, ids: Tensor, mask: Tensor, reads: Reads, cache: Any, edits: Any) -> Forward:
    spread = tuple(replace(edit, where=edit.where.any(0).expand_as(edit.where)) for edit in edits)
    return run(ids, mask, reads, cache=cache, edits=spread)  # type: ignore[no-any-return]


def edits_act_on_every_token(run: Any, ids: Tensor, mask: Tensor, reads: Reads, cache: Any, edits: Any) -> Forward:
    spread = tuple(replace(edit, where=edit.where.any(1, keepdim=True).expand_as(edit.where)) for edit in edits)
    return run(ids, mask, reads, cache=cache, edits=spread)  # type: ignore[no-any-return]


def edits_act_twice(run: Any, ids: Tensor, mask: Tensor, reads: Reads, cache: Any, edits: Any) -> Forward:
    return run(ids, mask, reads, cache=cache, edits=(*edits, *edits))  # type: ignore[no-any-return]


def the_mask_is_forgotten(run: Any, ids: Tensor, mask: Tensor, reads: Reads, cache: Any, edits: Any) -> Forward:
    return run(ids, torch.ones_like(mask), reads, cache=cache, edits=edits)  # type: ignore[no-any-return]


def the_cache_is_forgotten(run: Any, ids: Tensor, mask: Tensor, reads: Reads, cache: Any, edits: Any) -> Forward:
    return run(ids, mask[:, -ids.shape[1] :], reads, edits=edits)  # type: ignore[no-any-return]


def overflow(run: Any, ids: Tensor, mask: Tensor, reads: Reads, cache: Any, edits: Any) -> Forward:
    found = run(ids, mask, reads, cache=cache, edits=edits)
    return replace(found, values=changed(found.values, "resid", lambda resid: resid / 0))


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (one_layer_off, "residual point 0 is not hidden_states[0] but off by"),
        (other_logits, "its logits are off by 0.01 from those of a plain forward"),
        (mlp_before_its_norm, "what block 0 adds does not make the next residual point: it is off by"),
        (edits_are_forgotten, "an edit of resid 1 is not read where it was made"),
        (edits_are_read_and_not_used, "an edit of resid 1 does not change what lies above it"),
        (edits_act_on_every_row, "an edit of one row changes another row's logits by"),
        (edits_act_on_every_token, "an edit of resid 1 at the last token changes earlier tokens by"),
        (edits_act_twice, "an edit of resid 1 is not read where it was made"),
        (the_mask_is_forgotten, "padding on the left changes what is read by"),
        (the_cache_is_forgotten, "continued from a cache, token 6 is read otherwise: off by"),
        (overflow, "activations or logits of 8 random tokens are not finite in float32"),
    ],
)
def test_each_check_refuses_what_it_is_there_for(sound: HFBackend, wrong: Callable[..., Forward], found: str) -> None:
    backend = Wrong(sound, wrong)
    with pytest.raises(ModelError, match=f"LlamaForCausalLM cannot be read rightly.*{re.escape(found)}"):
        check_backend(backend, sound.model)


@pytest.mark.parametrize(
    ("facts", "remedy"),
    [
        ({}, "report it with its config.json"),
        ({"dtype": torch.float16}, "load it with --dtype float32"),
        ({"backend": "nnsight", "dtype": torch.float16}, "use --backend hf"),
    ],
)
def test_a_refusal_ends_with_what_to_do(sound: HFBackend, facts: dict[str, Any], remedy: str) -> None:
    backend = Wrong(sound, overflow)
    backend.facts = replace(sound.facts, **facts)
    with pytest.raises(ModelError, match=f"are not finite in float[0-9]+; .*{re.escape(remedy)}$"):
        check_backend(backend)


def test_a_point_after_the_final_norm_is_refused() -> None:
    backend = HFBackend(build("llama")[0])
    norm = backend.model.get_decoder().norm

    def normed(run: Any, ids: Tensor, mask: Tensor, reads: Reads, cache: Any, edits: Any) -> Forward:
        found = run(ids, mask, reads, cache=cache, edits=edits)
        after = found.values["resid"].clone()
        after[-1] = norm(after[-1])
        return replace(found, values={**found.values, "resid": after})

    with pytest.raises(ModelError, match="what block 2 adds does not make the next residual point"):
        check_backend(Wrong(backend, normed), backend.model)


def test_a_trace_that_an_edit_leaves_is_refused() -> None:
    backend = HFBackend(build("llama")[0])
    bias: list[float] = [0.0]

    def lasting(run: Any, ids: Tensor, mask: Tensor, reads: Reads, cache: Any, edits: Any) -> Forward:
        found = run(ids, mask, reads, cache=cache, edits=edits)
        found = replace(found, logits=found.logits + bias[0])
        bias[0] += 1e-6 * bool(edits)
        return found

    with pytest.raises(ModelError, match="after edits were undone the logits are not what they were, but off by"):
        check_backend(Wrong(backend, lasting), backend.model)


def test_blocks_in_another_order_are_refused() -> None:
    backend = HFBackend(build("llama")[0])
    backend.blocks = nn.ModuleList([backend.blocks[0], backend.blocks[2], backend.blocks[1]])
    with pytest.raises(ModelError, match=r"residual point 1 is not hidden_states\[1\] but off by"):
        check_backend(backend, backend.model)
