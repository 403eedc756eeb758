"""What a decoder does, by the plainest means. Knows transformers and a table of module names; knows no ``probe``.

One row, no padding, no cache, one forward over the whole sequence. Residual points below the last come from
``output_hidden_states``, the last one from a hook, and the terms inside a block from hooks on modules that are named
here architecture by architecture, where the package finds them by what they compute. An edit is a Python function on
``[pos, width]`` that is called where its term passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.capture.architectures import build, double

EditFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Places:
    """Module names: where the blocks are, and within one the modules that give the attention's and the MLP's term (the
    first that the block has), the output projection of the heads, and what reads the residual between the terms (None:
    nothing does, both terms are added at once). ``scale`` multiplies a term as it is added. ``includes_residual``: the
    modules give the sum with the residual, not the term."""

    blocks: str = "model.layers"
    attention: tuple[str, ...] = ("self_attn",)
    mlp: str = "mlp"
    heads: tuple[str, ...] = ("self_attn.o_proj",)
    between: str | None = "post_attention_layernorm"
    scale: float = 1.0
    includes_residual: bool = False


_USUAL = Places()
_GEMMA = Places(
    attention=("post_attention_layernorm",), mlp="post_feedforward_layernorm", between="pre_feedforward_layernorm"
)
_OLMO = Places(attention=("post_attention_layernorm",), mlp="post_feedforward_layernorm", between="mlp")
PLACES: dict[str, Places | None] = {
    **dict.fromkeys(("llama", "mistral", "mistral_window", "qwen2", "qwen3", "qwen3_moe", "phi3", "smollm3"), _USUAL),
    **dict.fromkeys(("mixtral", "gpt_oss", "stablelm"), _USUAL),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    **dict.fromkeys(("olmo2", "olmo3"), _OLMO),
    "granite": Places(scale=0.6),
    "cohere2": Places(between=None),
    "phi": Places(heads=("self_attn.dense",), between=None),
    "glm4": Places(attention=("post_self_attn_layernorm",), mlp="post_mlp_layernorm"),
    "gpt2": Places("transformer.h", ("attn",), "mlp", ("attn.c_proj",), "ln_2"),
    "gpt_neox": Places("gpt_neox.layers", ("attention",), "mlp", ("attention.dense",), None),
    "falcon": Places("transformer.h", ("self_attention",), "mlp", ("self_attention.dense",), None),
    "bloom": Places("transformer.h", ("self_attention",), heads=("self_attention.dense",), includes_residual=True),
    "opt": Places("model.decoder.layers", ("self_attn",), "fc2", ("self_attn.out_proj",), "final_layer_norm"),
    "qwen3_next": Places(attention=("self_attn", "linear_attn"), heads=("self_attn.o_proj", "linear_attn.out_proj")),
    "mamba2": None,
}
"""None: a block that adds one term only has none of these streams."""
_BLOCKS_OF_MAMBA = "backbone.layers"


@dataclass(frozen=True, eq=False)
class States:
    """``values[stream, layer]`` is ``[pos, width]``; ``logits`` is ``[pos, vocab]``."""

    values: dict[tuple[str, int], Tensor]
    logits: Tensor

    def stacked(self, stream: str) -> Tensor:
        """One stream as ``[layer, pos, width]``."""
        return torch.stack([self.values[key] for key in sorted(self.values) if key[0] == stream])


@dataclass(eq=False)
class _Taken:
    """What the hooks of one forward saw, by (stream, layer), as ``[pos, width]``."""

    edits: Mapping[tuple[str, int], Sequence[EditFunction]]
    seen: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def through(self, stream: str, layer: int, x: Tensor) -> Tensor:
        for edit in self.edits.get((stream, layer), ()):
            x = edit(x)
        self.seen[stream, layer] = x
        return x


@torch.inference_mode()
def states_of(
    name: str,
    ids: Sequence[int],
    edits: Mapping[tuple[str, int], Sequence[EditFunction]] | None = None,
    *,
    exact: bool = False,
) -> States:
    """All streams and logits of one sequence; ``edits[stream, layer]`` are applied in order where their term passes.

    ``exact``: in double precision.
    """
    model, places = double(name) if exact else build(name)[0], PLACES[name]
    blocks = model.get_submodule(places.blocks if places else _BLOCKS_OF_MAMBA)
    taken = _Taken(edits or {})
    with ExitStack() as hooks:
        for layer, block in enumerate(blocks):
            _hook_block(hooks, taken, block, layer, places)
        last = len(blocks)
        _on_output(hooks, blocks[-1], lambda x, _args: taken.through("resid", last, x))
        output = model(input_ids=torch.tensor([list(ids)]), output_hidden_states=not edits, use_cache=False)
    if not edits:
        states = [each[0] for each in output.hidden_states]
        if name == "mamba2":  # its hidden_states begin with the first block's output, and end twice
            states = [taken.seen["resid", 0], *states[:-1]]
        taken.seen.update({("resid", layer): states[layer] for layer in range(last)})
    return States(taken.seen, output.logits[0].float())


def _hook_block(hooks: ExitStack, taken: _Taken, block: nn.Module, layer: int, places: Places | None) -> None:
    def enter(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (taken.through("resid", layer, args[0][0])[None], *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": taken.through("resid", layer, kwargs["hidden_states"][0])[None]}

    hooks.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
    if places is None:
        return
    scale, between = places.scale, places.between is not None

    def attention(x: Tensor, _args: Any) -> Tensor:
        pre = taken.seen["resid", layer]
        term = taken.through("attn_out", layer, x - pre if places.includes_residual else x * scale)
        if between:
            mid = taken.through("resid_mid", layer, pre + term)
            if ("resid_mid", layer) in taken.edits:  # what stands between the terms is what the first one made of it
                term = taken.seen["attn_out", layer] = mid - pre
        return pre + term if places.includes_residual else term / scale

    def mlp(x: Tensor, args: Any) -> Tensor:
        residual = args[1][0] if places.includes_residual else 0.0
        term = taken.through("mlp_out", layer, x - residual if places.includes_residual else x * scale)
        return residual + term if places.includes_residual else term / scale

    def heads(_module: Any, args: tuple[Any, ...]) -> Any:
        x = args[0]
        return (taken.through("head_out", layer, x.reshape(x.shape[-2], -1)).reshape(x.shape), *args[1:])

    names = {name for name, _ in block.named_modules()}
    _on_output(hooks, block.get_submodule(next(p for p in places.attention if p in names)), attention)
    _on_output(hooks, block.get_submodule(places.mlp), mlp)
    projection = block.get_submodule(next(p for p in places.heads if p in names))
    hooks.callback(projection.register_forward_pre_hook(heads).remove)


def _on_output(hooks: ExitStack, module: nn.Module, function: Callable[[Tensor, Any], Tensor]) -> None:
    def hook(_module: Any, args: Any, output: Any) -> Any:
        own = output[0] if isinstance(output, tuple) else output
        new = function(own.reshape(own.shape[-2:]), args).reshape(own.shape)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    hooks.callback(module.register_forward_hook(hook).remove)


def greedy(
    name: str,
    prompt: Sequence[int],
    n_new: int,
    ends: Sequence[int],
    edits: Callable[[int], Mapping[tuple[str, int], Sequence[EditFunction]]] = lambda _length: {},
) -> tuple[list[int], list[float]]:
    """Tokens (the end token left out) and the gap between the two highest logits at each step, the end's included.

    The whole sequence is run again for every token. ``edits(n)`` are those of a sequence of ``n`` tokens.
    """
    tokens: list[int] = []
    gaps: list[float] = []
    while len(tokens) < n_new:
        logits = states_of(name, [*prompt, *tokens], edits(len(prompt) + len(tokens))).logits[-1]
        top = logits.topk(2)
        gaps.append(float(top.values[0] - top.values[1]))
        if int(top.indices[0]) in ends:
            break
        tokens.append(int(top.indices[0]))
    return tokens, gaps
