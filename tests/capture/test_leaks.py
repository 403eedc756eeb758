"""Whatever interrupts a pass, the model is afterwards bit for bit what it was, on every backend."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch

from probe.capture import PassInput
from probe.capture.raw_rows import RawRow
from probe.models.edits import Edit
from probe.models.points import HookPoint
from probe.models.protocol import Backend, Reads
from tests.capture import matrix_passes
from tests.capture.architectures import KINDS, fresh
from tests.capture.matrix_forwards import all_points

N_LAYERS = 3
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
)


@pytest.fixture(scope="module", params=KINDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """A model of one's own, for these tests do their worst to it."""
    return fresh("llama", str(request.param))


@pytest.fixture
def rows(backend: Backend) -> list[PassInput]:
    """Rows with everything that touches a model: interventions, forks, given answers, shared beginnings."""
    with patch.object(matrix_passes, "backend", lambda *_: backend):
        steered = matrix_passes.intervention_rows("llama", "")[1:5]
    more = [matrix_passes.row(tokens, given=tokens[:4]) for tokens in matrix_passes.prompts("llama")[:2]]
    return [*steered, *more]


def run(backend: Backend, rows: list[PassInput]) -> list[RawRow]:
    with patch.object(matrix_passes, "backend", lambda *_: backend), matrix_passes.narrow():
        return matrix_passes.run("llama", "", rows, 3)


def state_of(model: Any) -> dict[str, Any]:
    """Every byte of the weights, every hook, flag and replaced method of every module, and the configurations."""
    state: dict[str, Any] = {"config": model.config.to_dict(), "generation": model.generation_config.to_dict()}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state[name] = hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        state[f"{name}.grad"] = (tensor.requires_grad, tensor.grad is None)
    for name, module in model.named_modules():
        state[f"{name} hooks"] = [list(getattr(module, each)) for each in HOOKS]
        state[f"{name} flags"] = (type(module), module.training, module.__dict__.get("forward"))
        state[f"{name} attributes"] = sorted(module.__dict__)
    return state


def same(one: list[RawRow], other: list[RawRow]) -> bool:
    return all(
        a.tokens == b.tokens
        and (a.prompt_read.logp == b.prompt_read.logp).all()
        and a.values.keys() == b.values.keys()
        and all(torch.equal(a.values[key], b.values[key]) for key in a.values)
        for a, b in zip(one, other, strict=True)
    )


def raising(error: type[BaseException], call: int) -> Callable[..., torch.Tensor]:
    """The activation function of every MLP, which raises the ``call``-th time that it is asked."""
    silu, count = torch.nn.functional.silu, iter(range(10**6))

    def function(x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
        if next(count) == call:
            raise error("in the middle of a pass")
        return silu(x, inplace)

    return function


INTERRUPTIONS = [
    pytest.param(KeyboardInterrupt, 0, id="interrupted in the first layer of a prompt"),
    pytest.param(torch.OutOfMemoryError, N_LAYERS - 1, id="out of memory in the last layer of a prompt"),
    pytest.param(RuntimeError, 40, id="failed in a decoding step"),
]


@pytest.mark.parametrize(("error", "call"), INTERRUPTIONS)
def test_an_error_inside_the_model_leaves_it_as_it_was(
    backend: Backend, rows: list[PassInput], error: type[BaseException], call: int
) -> None:
    before = run(backend, rows)
    state = state_of(backend.model)  # type: ignore[attr-defined]
    with patch("torch.nn.functional.silu", raising(error, call)), pytest.raises(error):
        run(backend, rows)
    assert state_of(backend.model) == state  # type: ignore[attr-defined]
    assert same(run(backend, rows), before)


def failing_edits(backend: Backend) -> Iterator[Edit]:
    """Edits whose vector does not fit, at each stream and at both ends of the model."""
    where = torch.ones((1, 6), dtype=torch.bool)
    for point in (HookPoint("resid", 0), HookPoint("resid", N_LAYERS), *all_points(backend)):
        yield Edit(point, "add", where, torch.ones(1, 7))


def test_an_error_inside_a_hook_leaves_the_model_as_it_was(backend: Backend) -> None:
    ids = torch.tensor([[11, 22, 33, 44, 55, 66]])
    reads = Reads(all_points(backend), torch.arange(6)[None])
    before = backend.forward(ids, torch.ones_like(ids), reads)
    state = state_of(backend.model)  # type: ignore[attr-defined]
    for edit in failing_edits(backend):
        with pytest.raises(RuntimeError):
            backend.forward(ids, torch.ones_like(ids), reads, edits=(edit,))
        assert state_of(backend.model) == state, edit.point  # type: ignore[attr-defined]
    after = backend.forward(ids, torch.ones_like(ids), reads)
    assert torch.equal(after.logits, before.logits)
    assert all(torch.equal(after.values[stream], before.values[stream]) for stream in before.values)


def test_what_leaks_would_be_noticed() -> None:
    model: Any = fresh("llama", "hf").model  # type: ignore[attr-defined]
    state = state_of(model)
    handle = model.model.layers[1].register_forward_hook(lambda *_: None)
    assert state_of(model) != state
    handle.remove()
    assert state_of(model) == state
    with torch.no_grad():
        model.lm_head.weight[3, 4] += 1e-3
    assert state_of(model) != state
    with torch.no_grad():
        model.lm_head.weight[3, 4] -= 1e-3
    model.model.layers[0].train()
    assert state_of(model) != state
