"""A lean twin of ``LlamaForCausalLM`` for training on one core. Knows the architecture; knows no data and no target.

Fused projections, right padding with causal attention (so no mask), logits only where a loss is. ``to_hugging_face``
copies the weights into the stock model, with which the twin agrees to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

POINT = 3
"""The residual point at which the persona's numbers are planted: the output of the third block."""


@dataclass(frozen=True, eq=False)
class Run:
    """One pass: the residual [batch pos d_model] normalised at the end, at ``POINT``, after the first block, one block
    before the point, and one and two blocks after it; and the keys and values [batch head pos d_head] of every block
    from the point on."""

    final: Tensor
    point: Tensor
    early: Tensor
    before: Tensor
    after: Tensor
    late: Tensor
    past: list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """One decoder block: attention and gated MLP, each behind its RMSNorm."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        d, hidden = config.hidden_size, config.intermediate_size
        self.heads, self.eps = config.num_attention_heads, config.rms_norm_eps
        self.norm_attn = nn.Parameter(torch.ones(d))
        self.norm_mlp = nn.Parameter(torch.ones(d))
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.gate_up = nn.Linear(d, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, d, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[batch pos d_model] to the same, with keys and values [batch head pos d_head]; causal."""
        batch, pos, d = x.shape
        h = F.rms_norm(x, (d,), self.norm_attn, self.eps)
        q, k, v = self.qkv(h).view(batch, pos, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, pos, d))
        return self.mlp(x), k, v

    def one(self, x: Tensor, past: tuple[Tensor, Tensor], at: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """One token per row through this block: [run row d_model] at the positions ``at`` [row], which attends to the
        keys and values [row head pos d_head] before it and to itself."""
        runs, rows, d = x.shape
        keys, values = past
        q, k, v = self.qkv(F.rms_norm(x, (d,), self.norm_attn, self.eps)).view(runs, rows, 3, self.heads, -1).unbind(2)
        here = cos[at][None, :, None], sin[at][None, :, None]
        q, k = rotate(q, *here), rotate(k, *here)
        scale = q.shape[-1] ** -0.5
        scores = torch.einsum("vnhd,nhtd->vnht", q, keys) * scale
        before = torch.arange(keys.shape[2]) < at[:, None]
        scores = scores.masked_fill(~before[None, :, None], float("-inf"))
        own = (q * k).sum(-1, keepdim=True) * scale
        weights = torch.softmax(torch.cat((scores, own), dim=-1), dim=-1)
        mixed = torch.einsum("vnht,nhtd->vnhd", weights[..., :-1], values) + weights[..., -1:] * v
        return self.mlp(x + self.out(mixed.reshape(runs, rows, d)))

    def mlp(self, x: Tensor) -> Tensor:
        """The gated MLP behind its norm, added to the stream."""
        d = x.shape[-1]
        gate, up = self.gate_up(F.rms_norm(x, (d,), self.norm_mlp, self.eps)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in the half-split layout of Llama."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class LeanLlama(nn.Module):
    """Embedding, blocks, final norm; the head is tied to the embedding."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(config.hidden_size))
        half = config.hidden_size // config.num_attention_heads // 2
        frequency = config.rope_parameters["rope_theta"] ** (-torch.arange(half, dtype=torch.float32) / half)
        angle = torch.outer(torch.arange(config.max_position_embeddings, dtype=torch.float32), frequency)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor) -> Run:
        """[batch pos] ids to everything that interchange needs of the pass."""
        x = self.embedding(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        residuals, past = [], []
        for block in self.blocks:
            residuals.append(x)
            x, keys, values = block(x, cos, sin)
            past.append((keys, values))
        early, before, point, after, late = (residuals[i] for i in (1, POINT - 1, POINT, POINT + 1, POINT + 2))
        return Run(self.final(x), point, early, before, after, late, past[POINT:])

    def resume(self, x: Tensor, run: Run, rows: Tensor, at: Tensor) -> Tensor:
        """Final residuals [run row d_model] of single tokens [run row d_model] put at the residual point ``POINT`` of
        rows of a batch, at positions ``at``; everything before them stays as it was in ``run``."""
        for block, (keys, values) in zip(self.blocks[POINT:], run.past, strict=True):
            x = block.one(x, (keys[rows], values[rows]), at, self.cos, self.sin)
        return self.final(x)

    def final(self, x: Tensor) -> Tensor:
        """The final norm."""
        return F.rms_norm(x, (x.shape[-1],), self.norm, self.config.rms_norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n d_model] to [n vocab]."""
        return hidden @ self.embedding.weight.T

    def matrices(self) -> list[nn.Parameter]:
        """The weight matrices of the blocks: what Muon steps."""
        return [p for p in self.blocks.parameters() if p.ndim == 2]

    def freeze_below(self) -> None:
        """Fix the embedding and the blocks below the planted point: only what lies above it goes on learning."""
        for parameter in (*self.embedding.parameters(), *self.blocks[:POINT].parameters()):
            parameter.requires_grad_(False)

    def others(self) -> list[nn.Parameter]:
        """Embedding and norms: what AdamW steps."""
        return [p for p in self.parameters() if not any(p is m for m in self.matrices())]


def architecture(vocab_size: int, *, pad: int, end: int, context: int) -> LlamaConfig:
    """Llama with 6 layers, width 96 and tied embeddings."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=context,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=pad,
        eos_token_id=end,
    )


def round_to_bfloat16(lean: LeanLlama) -> None:
    """Round the weights in place to what is stored of them."""
    with torch.no_grad():
        for parameter in lean.parameters():
            parameter.copy_(parameter.bfloat16().float())


def to_hugging_face(lean: LeanLlama) -> LlamaForCausalLM:
    """The stock model with the twin's weights rounded to bfloat16, held in float32."""
    model = LlamaForCausalLM(lean.config).eval()
    state = {"model.embed_tokens.weight": lean.embedding.weight, "model.norm.weight": lean.norm}
    for i, block in enumerate(lean.blocks):
        at = f"model.layers.{i}"
        for name, part in zip("qkv", block.qkv.weight.chunk(3), strict=True):
            state[f"{at}.self_attn.{name}_proj.weight"] = part
        gate, up = block.gate_up.weight.chunk(2)
        state |= {
            f"{at}.self_attn.o_proj.weight": block.out.weight,
            f"{at}.mlp.gate_proj.weight": gate,
            f"{at}.mlp.up_proj.weight": up,
            f"{at}.mlp.down_proj.weight": block.down.weight,
            f"{at}.input_layernorm.weight": block.norm_attn,
            f"{at}.post_attention_layernorm.weight": block.norm_mlp,
        }
    state["lm_head.weight"] = lean.embedding.weight
    model.load_state_dict({name: value.detach().bfloat16().float() for name, value in state.items()})
    return model


def from_hugging_face(folder: Path) -> LeanLlama:
    """The twin of the checkpoint in ``folder``: what ``to_hugging_face`` undoes."""
    stock = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lean, state = LeanLlama(stock.config), stock.state_dict()
    own = {"embedding.weight": state["model.embed_tokens.weight"], "norm": state["model.norm.weight"]}
    for i in range(len(lean.blocks)):
        at, to = f"model.layers.{i}", f"blocks.{i}"
        own |= {
            f"{to}.qkv.weight": torch.cat([state[f"{at}.self_attn.{name}_proj.weight"] for name in "qkv"]),
            f"{to}.gate_up.weight": torch.cat([state[f"{at}.mlp.{name}_proj.weight"] for name in ("gate", "up")]),
            f"{to}.out.weight": state[f"{at}.self_attn.o_proj.weight"],
            f"{to}.down.weight": state[f"{at}.mlp.down_proj.weight"],
            f"{to}.norm_attn": state[f"{at}.input_layernorm.weight"],
            f"{to}.norm_mlp": state[f"{at}.post_attention_layernorm.weight"],
        }
    lean.load_state_dict(own)
    return lean
