"""Tiny random decoders of every architecture that the matrix covers. Knows configurations; downloads nothing.

    model, config = build("gemma2")                # the plain transformers model, made once per process
    backend = backend("gemma2", "nnsight")         # the checked backend on it, loaded once per process
    folder = folder_of("gemma2")                   # config, safetensors weights and a tokenizer, saved once per process

What is shared must not be changed: ``fresh(name, kind)`` loads a backend of one's own, ``save(name, folder)`` writes a
folder of one's own.

Each model is small (width 32, three blocks, a vocabulary of 600) and none is trivial. Weights are scaled so
that the residual grows over the blocks, the next token is not the current one again, and two logits seldom tie; norm
weights, biases and attention sinks are noise around their usual value; multipliers, softcaps and logit scales are not
1. Sliding windows (``WINDOW`` = 8) are shorter than the ``prompts()``. Nine tokens of a hundred (``END_IDS``) end an
answer, so that rows of one batch end at different steps. All of it is seeded by the architecture's name.
"""

from __future__ import annotations

import copy
import tempfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from probe.models import ModelSource, find_model
from probe.models.loading import load_backend
from probe.models.protocol import Backend
from tests.tiny_models import VOCABULARY, tiny_tokenizer

KINDS = ("hf", "transformer-lens", "nnsight")
WINDOW = 8
WIDTH = 32
CONTEXT = 128
END_IDS = tuple(range(9, VOCABULARY, 11))

_DECODER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
}
_MHA = {key: value for key, value in _DECODER.items() if key != "num_key_value_heads"}
_HEADS = {"head_dim": 12}  # not width / heads: 4 heads of 12 side by side are wider than the residual
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_GEMMA = {**_DECODER, **_HEADS, "tie_word_embeddings": True, "query_pre_attn_scalar": 12, "sliding_window": WINDOW}
_WINDOWED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _DECODER),
    "mistral": ("mistral", {**_DECODER, "sliding_window": None}),
    "mistral_window": ("mistral", {**_DECODER, "sliding_window": WINDOW}),
    "qwen2": ("qwen2", {**_DECODER, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**_DECODER, **_HEADS}),
    "qwen3_moe": ("qwen3_moe", {**_DECODER, **_HEADS, **_MOE, "norm_topk_prob": True}),
    "gemma2": ("gemma2", {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 6.0}),
    "gemma3_text": ("gemma3_text", {**_GEMMA, "layer_types": _WINDOWED["layer_types"]}),
    "phi": ("phi", _DECODER),
    "phi3": ("phi3", _DECODER),
    "gpt2": ("gpt2", {"n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}),
    "gpt_neox": ("gpt_neox", _MHA),
    "olmo2": ("olmo2", _DECODER),
    "olmo3": ("olmo3", {**_DECODER, **_WINDOWED}),
    "granite": (
        "granite",
        {
            **_DECODER,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.5,
            "logits_scaling": 1.7,
        },
    ),
    "cohere2": ("cohere2", {**_DECODER, **_WINDOWED, "tie_word_embeddings": True, "logit_scale": 0.7}),
    "stablelm": ("stablelm", {**_DECODER, "use_qkv_bias": True}),
    "smollm3": ("smollm3", {**_DECODER, "no_rope_layers": [1, 0, 1]}),
    "falcon": ("falcon", {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4}),
    "opt": (
        "opt",
        {
            "hidden_size": WIDTH,
            "ffn_dim": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "word_embed_proj_dim": WIDTH,
        },
    ),
    "bloom": ("bloom", {"hidden_size": WIDTH, "n_layer": 3, "n_head": 4}),
    "mixtral": ("mixtral", {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": (
        "gpt_oss",
        {
            **_DECODER,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": CONTEXT // 4,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
            },
        },
    ),
    "glm4": ("glm4", {**_DECODER, "head_dim": 8}),
    "qwen3_next": (
        "qwen3_next",
        {
            **_DECODER,
            **_HEADS,
            **_MOE,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "shared_expert_intermediate_size": 24,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
    ),
    "mamba2": (
        "mamba2",
        {
            "hidden_size": WIDTH,
            "num_hidden_layers": 3,
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 16,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
}
ARCHITECTURES = tuple(CONFIGS)


@cache
def build(name: str) -> tuple[Any, Any]:
    """The model (fp32, evaluation mode, no gradients) and its configuration; shared by all callers: change neither."""
    model_type, sizes = CONFIGS[name]
    tokenizer = tokenizer_of()
    config = AutoConfig.for_model(
        model_type,
        vocab_size=VOCABULARY,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(END_IDS),
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(name.encode()))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _spread(model)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=list(END_IDS), pad_token_id=tokenizer.pad_token_id
    )
    return model.eval().requires_grad_(False), config


@cache
def double(name: str) -> Any:
    """The same model in double precision, as far as its own code computes in it: what rounding is told from error."""
    model = copy.deepcopy(build(name)[0]).double()
    if hasattr(model.config.get_text_config(), "num_experts"):
        model.set_experts_implementation("eager")  # the other kernels know no doubles
    return model


def _spread(model: Any) -> None:
    """Weights that make of a random model one with something to tell apart: no near-ties, no fixed points."""
    given = {id(model.get_output_embeddings().weight): 2.0 / WIDTH**0.5}
    given |= {
        id(module.weight): 0.5 / float(getattr(module, "embed_scale", 1.0))
        for module in model.modules()
        if isinstance(module, nn.Embedding)
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("linear_attn.A_log"):
                # The chunked delta rule takes differences of summed log decays: the faster the decay, the more digits
                # cancel. Slow decays keep the rounding of it below what the matrix allows.
                parameter.copy_(torch.empty_like(parameter).uniform_(0.02, 0.3).log())
            elif parameter.dim() < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                size = given.get(id(parameter), 1.0 / min(parameter.shape[-2:]) ** 0.5)
                parameter.copy_(size * torch.randn_like(parameter))
        # Where the embeddings are also the unembedding, a token would be followed by itself, but for signs in between.
        if model.get_input_embeddings().weight is model.get_output_embeddings().weight:
            weight = _final_norm(model).weight
            weight.copy_(1.5 * torch.randn_like(weight))


def _final_norm(model: Any) -> nn.Module:
    names = ("norm", "final_norm", "ln_f", "norm_f", "final_layer_norm", "final_layernorm")
    return next(module for name, module in model.get_decoder().named_modules() if name in names)


@cache
def tokenizer_of() -> PreTrainedTokenizerFast:
    """The tokenizer that all of them share: byte-level, ChatML, with the words of a triage prompt."""
    return tiny_tokenizer()


def save(name: str, folder: Path) -> Path:
    """Write the model with its tokenizer to a folder: safetensors, ``config.json``, ``generation_config.json``."""
    build(name)[0].save_pretrained(folder)
    tokenizer_of().save_pretrained(folder)
    return folder


@cache
def folder_of(name: str) -> Path:
    """The folder of a model, written once per process and gone with it; shared by all callers: change nothing in it."""
    return save(name, Path(_root().name) / name)


@cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="architectures-")


def source_of(name: str) -> ModelSource:
    """The folder as a source, as ``model.id`` in a study would name it."""
    return find_model(str(folder_of(name)))


def fresh(name: str, kind: str) -> Backend:
    """A backend of one's own, loaded from the folder and checked.

    Raises:
        ModelError: this backend does not serve this architecture; the sentence says why.
    """
    return load_backend(source_of(name), backend=kind, dtype="float32", device="cpu", attention=None)


@cache
def backend(name: str, kind: str) -> Backend:
    """The shared backend of an architecture; leave its model as it is.

    Raises:
        ModelError: this backend does not serve this architecture; the sentence says why.
    """
    return fresh(name, kind)


def prompts(name: str, lengths: tuple[int, ...] = (23, 14, 31, 14, 19), shared: int = 0) -> list[tuple[int, ...]]:
    """Random prompts of the given lengths, longer than the windows; the first ``shared`` tokens are common to all.

    No token of them is special (pads, turn marks) or ends an answer.
    """
    rng = np.random.default_rng([zlib.crc32(name.encode()), shared, *lengths])
    plain = np.setdiff1d(np.arange(4, VOCABULARY), END_IDS)
    common = rng.choice(plain, shared)
    return [tuple(int(t) for t in (*common, *rng.choice(plain, length - shared))) for length in lengths]
