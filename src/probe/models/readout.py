"""From the last residual point to logits, as numbers: final norm, unembedding rows, scale. Knows no lens and no label.

Nothing is taken from an architecture's name: each part is found by what it does on given residuals, and the whole is
kept only if it gives the model's own logits again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.models.layers import find_blocks
from probe.models.points import HookPoint
from probe.models.protocol import Backend, Reads, WrapsModel
from probe.models.spread import held
from probe.models.tensor_parallel import gathered

_TOLERANCE = 1e-3
Same = Callable[[Tensor, Tensor], bool]
_EPS_NAMES = ("variance_epsilon", "eps", "norm_eps")


@dataclass(frozen=True, eq=False)
class Readout:
    """``logits = f(scale * (unembed @ norm(x) + unembed_bias))`` for some token ids, with x at the last residual point.

    ``kind`` is ``rms`` (x / sqrt(mean(x^2) + eps)) or ``layer`` (the same after centring); then ``weight`` and ``bias``
    apply. ``f`` is ``softcap * tanh(. / softcap)``, or nothing where ``softcap`` is 0. All in float32.
    """

    kind: str
    eps: float
    scale: float
    softcap: float
    token_ids: tuple[int, ...]
    weight: Float[np.ndarray, " d_model"]
    bias: Float[np.ndarray, " d_model"]
    unembed: Float[np.ndarray, "token d_model"]
    unembed_bias: Float[np.ndarray, " token"]

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays, by the names that they have in a store."""
        return {
            "norm.weight": self.weight,
            "norm.bias": self.bias,
            "unembed.weight": self.unembed,
            "unembed.bias": self.unembed_bias,
        }

    def metadata(self) -> dict[str, str]:
        """The rest, as strings."""
        return {
            "norm.kind": self.kind,
            "norm.eps": repr(self.eps),
            "logit_scale": repr(self.scale),
            "softcap": repr(self.softcap),
            "token_ids": json.dumps(list(self.token_ids)),
        }


@torch.inference_mode()
def find_readout(backend: Backend, token_ids: Sequence[int]) -> Readout | None:
    """The readout of a model for some token ids; None where no such form gives the model's logits again."""
    if not isinstance(backend, WrapsModel):
        return None
    model = backend.model
    shape, device = backend.facts.shape, backend.facts.device
    ids = torch.randint(0, shape.vocab, (1, 8), generator=torch.Generator().manual_seed(0)).to(device)
    columns = torch.arange(8, device=device)[None]
    reads = Reads((HookPoint("resid", shape.n_layers),), columns)
    x = backend.forward(ids, torch.ones_like(ids), reads).values["resid"][0, 0]
    states = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    same = partial(_same, tolerance=_TOLERANCE if backend.facts.dtype == torch.float32 else 3e-2)
    norm = _find_norm(model, x, states.hidden_states[-1][0], same)
    head = model.get_output_embeddings()
    if norm is None or head is None:
        return None
    kind, eps, weight, bias = norm
    chosen = list(token_ids)
    with held(head):
        own_bias = getattr(head, "bias", None)
        unembed = gathered(head.weight)[chosen].float().to(device)
        unembed_bias = torch.zeros(len(chosen)) if own_bias is None else gathered(own_bias)[chosen].float().cpu()
    plain = _apply_norm(x.float(), kind, eps, weight, bias) @ unembed.T + unembed_bias.to(device)
    scale, softcap = _finish(model.config.get_text_config(decoder=True))
    logits = scale * plain
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    if not same(logits, states.logits[0][:, chosen].float()):
        return None
    arrays = [tensor.cpu().numpy() for tensor in (weight, bias, unembed, unembed_bias)]
    return Readout(kind, eps, scale, softcap, tuple(chosen), *arrays)


def _find_norm(model: Any, x: Tensor, normed: Tensor, same: Same) -> tuple[str, float, Tensor, Tensor] | None:
    """The module outside the blocks that turns the last residual point into ``hidden_states[-1]``, as numbers."""
    inside = {id(module) for block in find_blocks(model) for module in block.modules()}
    for module in model.get_decoder().modules():
        own = getattr(module, "weight", None)
        if id(module) in inside or not isinstance(own, Tensor) or own.shape != x.shape[-1:]:
            continue
        if not same(module(x), normed):
            continue
        eps = next((float(getattr(module, name)) for name in _EPS_NAMES if hasattr(module, name)), 0.0)
        kind = "layer" if isinstance(module, nn.LayerNorm) or same(module(x + x.std()), normed) else "rms"
        bias = module(torch.zeros_like(x[:1]))[0].float()
        with held(module):
            own = module.weight.float()
        weight = _norm_weight(module, own, kind, eps, bias)
        return kind, eps, weight.to(x.device), bias.to(x.device)
    return None


def _norm_weight(module: Any, own: Tensor, kind: str, eps: float, bias: Tensor) -> Tensor:
    """The factor that a norm applies: its own weight, or one more than that (Gemma), whichever it is seen to apply.

    The seen factor itself would differ in its last bits between devices, and a store's readout must not.
    """
    size = own.shape[0]
    signs = 1 - 2 * (torch.arange(size, device=own.device) % 2)
    x = ((1 + torch.linspace(0, 1, size, device=own.device)) * signs)[None]
    unit = _apply_norm(x, kind, eps, torch.ones_like(bias), torch.zeros_like(bias))
    seen: Tensor = ((module(x.to(module.weight.dtype)).float() - bias) / unit)[0]
    for candidate in (own, own + 1):
        if torch.allclose(candidate, seen, rtol=2e-2, atol=1e-3):
            return candidate
    return seen


def _apply_norm(x: Tensor, kind: str, eps: float, weight: Tensor, bias: Tensor) -> Tensor:
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight + bias


def _finish(config: Any) -> tuple[float, float]:
    """What follows the unembedding: a factor (Cohere's multiplies, Granite's divides) and a softcap (Gemma-2)."""
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return scale, float(getattr(config, "final_logit_softcapping", None) or 0.0)


def _same(a: Tensor, b: Tensor, tolerance: float) -> bool:
    b = b.to(a.device)  # of a model over several devices the norm may give its output on another than the model
    return bool((a.float() - b.float()).abs().max() <= tolerance * b.float().abs().max().clamp(min=1e-6))
