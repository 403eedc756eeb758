"""What a model holds in memory while it runs. Knows its configuration and the headers of its weights; loads none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from safetensors import SafetensorError, safe_open

from probe.models.sources import ModelSource
from probe.values import ModelError

_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
_ATTENDING = ("full_attention", "sliding_attention", "chunked_attention", "attention")
_EXPERT = re.compile(r"(^|\.)experts\.")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")

Weights = Mapping[str, tuple[str, tuple[int, ...]]]
"""Dtype as safetensors names it, and shape, of each tensor by its name."""


@dataclass(frozen=True)
class Footprint:
    """Numbers of elements, to be multiplied by the bytes of the dtype that is computed in.

    ``dtype`` is what the checkpoint is meant to be computed in: what its configuration names, else what most of its
    weights are ``stored`` in. ``parameters`` are counted in the headers of its files. ``cached`` are the keys and
    values of one token in all attention layers, ``attended`` those of one layer, repeated for each head. ``fed`` is
    what one token holds at most inside a block while it is fed. ``recurrent`` says that some layers keep a state
    instead of keys and values, which is not counted.

    Multiplications, of which each is two operations with its addition: ``per_token`` of every token that is fed (all
    weights but the embedding, the unembedding and the experts that a token is not sent to), ``per_read`` of every
    token whose logits are read, ``per_pair`` of every two tokens of which one attends to the other, in all layers.
    ``idle`` are the weights of experts that a token is not sent to.
    """

    dtype: str
    stored: str
    parameters: int
    cached: int
    attended: int
    fed: int
    vocab: int
    recurrent: bool
    per_token: int
    per_read: int
    per_pair: int
    idle: int

    @property
    def streamed(self) -> int:
        """Weights that a forward over many tokens reads: all but the embedding, of which it looks up a few rows."""
        return self.per_token + self.per_read + self.idle


def read_footprint(source: ModelSource) -> Footprint:
    """The footprint of a model folder: configuration and headers of the weights.

    Raises:
        ModelError: a header or the index cannot be read, or the configuration is not one that transformers knows.
    """
    return footprint_of(_config(source), _weights(source))


def footprint_of(config: Any, weights: Weights) -> Footprint:
    """The footprint that a configuration and the dtypes and shapes of the weights describe."""
    stored, parameters = _stored(weights)
    text = config.get_text_config(decoder=True)
    named = getattr(text, "dtype", None) or getattr(config, "dtype", None)
    dtype = stored if named is None else str(named).removeprefix("torch.")
    kinds = getattr(text, "layer_types", None)
    heads = getattr(text, "num_attention_heads", None) or 0
    attending = text.num_hidden_layers if kinds is None else sum(kind in _ATTENDING for kind in kinds)
    if getattr(text, "state_size", None) and kinds is None:
        attending = 0  # a state space model: what it calls heads keep no keys
    head = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    keys = _key_value_heads(text, heads) * head
    inner = getattr(text, "intermediate_size", None) or getattr(text, "ffn_dim", None) or 4 * text.hidden_size
    used = getattr(text, "num_experts_per_tok", None)
    if used:
        inner = used * (getattr(text, "moe_intermediate_size", None) or inner)
    # The residual beside the widest part of a block: gate, up and their product, or queries, keys, values and output.
    fed = 3 * text.hidden_size + max(3 * inner, 2 * heads * head + 2 * keys)
    idle = _idle(weights, text)
    by_token = sum(prod(shape) for _, shape in weights.values() if len(shape) == 2 and shape[0] == text.vocab_size)
    return Footprint(
        dtype=dtype,
        stored=stored,
        parameters=parameters,
        cached=2 * attending * keys,
        attended=2 * heads * head if attending else 0,
        fed=fed,
        vocab=text.vocab_size,
        recurrent=attending < text.num_hidden_layers,
        per_token=parameters - by_token - idle,
        per_read=text.vocab_size * text.hidden_size,
        per_pair=2 * heads * head * attending,
        idle=idle,
    )


def _idle(weights: Weights, text: Any) -> int:
    """Weights of the experts that one token is not sent to."""
    used = getattr(text, "num_experts_per_tok", None)
    there = max(getattr(text, name, None) or 0 for name in _EXPERTS)
    if not used or not there:
        return 0
    held = sum(prod(shape) for name, (_, shape) in weights.items() if _EXPERT.search(name))
    return int(held * (there - used) // there)


def _key_value_heads(text: Any, heads: int) -> int:
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        return 1
    return getattr(text, "num_key_value_heads", None) or getattr(text, "num_kv_heads", None) or heads


def _config(source: ModelSource) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            str(source.folder), trust_remote_code=source.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source.folder}/config.json is not usable: {str(error).strip().splitlines()[0]}") from error


def _weights(source: ModelSource) -> Weights:
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in source.weight_files:
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118  # it is no mapping
                    tensor = file.get_slice(name)
                    found[name] = (tensor.get_dtype(), tuple(tensor.get_shape()))
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is not a safetensors file: {error}; fetch the model again") from error
    return found


def _stored(weights: Weights) -> tuple[str, int]:
    """The dtype of most elements, and how many elements there are."""
    counts: dict[str, int] = {}
    for kind, shape in weights.values():
        counts[kind] = counts.get(kind, 0) + prod(shape)
    most = max(sorted(counts), key=lambda kind: counts[kind], default="F32")
    return _TYPES.get(most, "float32"), sum(counts.values())
