"""Whether the parts of a divided model make up its blocks. Knows blocks and their weights; knows no plan and no stream.

A model that is divided wrongly (a bias that is added once for each process, a norm over some heads only) agrees with
itself in every way. So one block of each kind is put together from the weights of all processes, given what the
divided one was given, and compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from probe.models.tensor_parallel import gathered
from probe.models.tensors import first_argument, first_tensor
from probe.values import ModelError

_LENGTH = 8
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
_COARSE = 2e-2
_SLACK = 4
"""In units of the dtype's eps: what rounding the sum of a large residual and a small term may cost."""


@torch.inference_mode()
def check_divided(model: Any, blocks: nn.ModuleList) -> None:
    """Compare one block of each kind, the embedding and the unembedding with the same as a whole, in every process.

    Raises:
        ModelError: they differ, or the whole block cannot be made.
    """
    _check_ends(model)
    config = model.get_decoder().config
    ids = torch.randint(0, config.vocab_size, (1, _LENGTH), generator=torch.Generator().manual_seed(0))
    calls = {b: _Call() for b in _one_of_each_kind(blocks, config)}
    with ExitStack() as hooks:
        for b, call in calls.items():
            hooks.callback(blocks[b].register_forward_pre_hook(call.before, with_kwargs=True).remove)
            hooks.callback(blocks[b].register_forward_hook(call.after).remove)
        ids = ids.to(model.device)
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    for b, call in calls.items():
        try:
            whole = first_tensor(_whole(blocks[b], config, b)(*call.args, **call.kwargs))
        except (TypeError, AttributeError, KeyError, RuntimeError) as error:
            said = str(error).strip().splitlines()
            raise ModelError(
                f"block {b} of {type(model).__name__} cannot be compared with what its parts make up "
                f"({said[0] if said else error!r}), so it is not read divided; use device_map: auto"
            ) from error
        given = first_argument(call.args, call.kwargs)
        assert given is not None and whole is not None and call.gave is not None
        if (far := _off(call.gave, whole, given.value)) > 0:
            raise ModelError(
                f"block {b} of {type(model).__name__} is not what its parts make up: what it adds is off by {far:.1g} "
                "more than rounding; transformers divides it wrongly, so use device_map: auto, and report it there"
            )


def _check_ends(model: Any) -> None:
    """The same of the embedding, but for a factor that it may apply, and of the unembedding."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = gathered(embedding.weight)
    ids = torch.linspace(0, len(rows) - 1, 4 * _LENGTH).long().to(model.device)
    gave, whole = embedding(ids[None])[0].double(), rows[ids].double()
    factor = (gave * whole).sum() / whole.square().sum().clamp(min=1e-30)
    pairs = [("embedding", gave, factor * whole)]
    if head is not None:
        given = torch.randn(2, head.weight.shape[-1], generator=torch.Generator().manual_seed(0))
        given = given.to(model.device, model.dtype)
        bias = getattr(head, "bias", None)
        logits = given @ gathered(head.weight).T + (0 if bias is None else gathered(bias))
        pairs.append(("unembedding", head(given[None])[0].double(), logits.double()))
    for name, gave, whole in pairs:
        near = _TOLERANCE.get(model.dtype, _COARSE) * whole.abs().max()
        if gave.shape != whole.shape or not bool((gave - whole).abs().max() <= near):
            raise ModelError(
                f"the {name} of {type(model).__name__} is not what its parts make up; transformers divides it wrongly, "
                "so use device_map: auto, and report it there"
            )


class _Call:
    """What a block was given in one forward, and the residual that it gave."""

    def __init__(self) -> None:
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.gave: Tensor | None = None

    def before(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs

    def after(self, _module: Any, _args: Any, output: Any) -> None:
        self.gave = first_tensor(output)


def _one_of_each_kind(blocks: nn.ModuleList, config: Any) -> Iterator[int]:
    """The first block of each class, kind of layer and set of weights."""
    kinds = getattr(config, "layer_types", None)
    kinds = kinds if kinds and len(kinds) == len(blocks) else [None] * len(blocks)
    seen = set()
    for b, (block, kind) in enumerate(zip(blocks, kinds, strict=True)):
        weights = frozenset((name, weight.shape) for name, weight in block.named_parameters())
        if (type(block), kind, weights) not in seen:
            seen.add((type(block), kind, weights))
            yield b


def _whole(block: nn.Module, config: Any, b: int) -> nn.Module:
    """A block like one that is divided, with the weights of all processes."""
    kind: Any = type(block)
    with torch.device("meta"):
        whole: nn.Module = kind(config, b)
    weights = {name: gathered(weight) for name, weight in block.named_parameters()}
    whole.load_state_dict(weights, assign=True, strict=False)
    for name, buffer in block.named_buffers():
        path, _, leaf = name.rpartition(".")
        setattr(whole.get_submodule(path), leaf, buffer)
    left = [name for name, weight in (*whole.named_parameters(), *whole.named_buffers()) if weight.is_meta]
    if left:
        raise KeyError(f"nothing is known of {left[0]}")
    return whole.eval()


def _off(gave: Tensor, whole: Tensor, given: Tensor) -> float:
    """How much further apart they are than rounding explains, in parts of the largest that is added; else at most 0."""
    dtype = gave.dtype
    gave, whole, given = gave.double(), whole.double(), given.double()
    added = (whole - given).abs().max().clamp(min=1e-6)
    far = (gave - whole).abs() - _SLACK * torch.finfo(dtype).eps * whole.abs()
    worst = float(far.max() / added)
    return worst - _TOLERANCE.get(dtype, _COARSE) if worst == worst else float("inf")
