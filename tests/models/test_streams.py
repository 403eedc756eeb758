"""Each stream is what the architecture's own formula says; edits act there; what is not there is refused."""

from __future__ import annotations

import re
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from probe.models.check import check_backend
from probe.models.edits import Edit
from probe.models.hf import HFBackend
from probe.models.layers import find_blocks
from probe.models.points import HookPoint
from probe.models.protocol import Forward, Reads
from probe.models.streams import find_streams
from probe.values import ModelError
from tests.capture.architectures import ARCHITECTURES, CONFIGS, build

PARALLEL = ("phi", "gpt_neox", "cohere2", "falcon")
INNER = ("attn_out", "mlp_out", "resid_mid", "head_out")
COLUMNS = ("resid_mid", "attn_out", "mlp_out", "head_out")


@cache
def hf(name: str) -> HFBackend:
    return HFBackend(build(name)[0])


def ids_of(seed: int = 1, n_rows: int = 2, length: int = 9) -> Tensor:
    return torch.randint(5, 600, (n_rows, length), generator=torch.Generator().manual_seed(seed))


def all_points(backend: HFBackend) -> tuple[HookPoint, ...]:
    n_layers = backend.facts.shape.n_layers
    return tuple(
        HookPoint(stream, layer) for stream in backend.facts.widths for layer in range(n_layers + (stream == "resid"))
    )


def read(backend: HFBackend, ids: Tensor, *edits: Edit) -> Forward:
    reads = Reads(all_points(backend), torch.arange(ids.shape[1]).expand(*ids.shape))
    return backend.forward(ids, torch.ones_like(ids), reads, edits=edits)


def at_last_token(point: HookPoint, vector: Tensor, ids: Tensor, kind: str = "add") -> Edit:
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[:, -1] = True
    return Edit(point, kind, where, vector.expand(len(ids), -1))


def built(model_type: str, **sizes: Any) -> Any:
    base = {**CONFIGS["llama"][1], "vocab_size": 600, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**base, **sizes}))
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_terms_take_every_point_to_the_next(name: str) -> None:
    backend = hf(name)
    values = read(backend, ids_of()).values
    assert ("resid_mid" in values) == (name not in (*PARALLEL, "mamba2"))
    assert ("head_out" in values) == (name not in ("qwen3_next", "mamba2"))
    if name == "mamba2":
        assert set(values) == {"resid"}
        return
    mid = values["resid"][:-1] + values["attn_out"]
    torch.testing.assert_close(mid + values["mlp_out"], values["resid"][1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values.get("resid_mid", mid), mid, rtol=0, atol=0)
    # The control: neither term is nothing, nor are they one.
    assert all(values[stream].abs().mean() > 1e-3 for stream in ("attn_out", "mlp_out"))
    assert not torch.allclose(values["attn_out"], values["mlp_out"], rtol=0.1)


def by_hand(name: str, block: Any, x: Tensor, attention: Tensor) -> dict[str, Tensor]:
    """The terms of one block by the architecture's formula, from its input and the output of its attention module."""
    if name == "llama":
        mid = x + attention
        return {"attn_out": attention, "resid_mid": mid, "mlp_out": block.mlp(block.post_attention_layernorm(mid))}
    if name == "granite":
        term = 0.6 * attention
        mid = x + term
        return {"attn_out": term, "resid_mid": mid, "mlp_out": 0.6 * block.mlp(block.post_attention_layernorm(mid))}
    if name == "gemma2":
        term = block.post_attention_layernorm(attention)
        mid = x + term
        mlp = block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(mid)))
        return {"attn_out": term, "resid_mid": mid, "mlp_out": mlp}
    if name == "olmo2":
        term = block.post_attention_layernorm(attention)
        mid = x + term
        return {"attn_out": term, "resid_mid": mid, "mlp_out": block.post_feedforward_layernorm(block.mlp(mid))}
    assert name == "gpt_neox"
    return {"attn_out": attention, "mlp_out": block.mlp(block.post_attention_layernorm(x))}


@pytest.mark.parametrize("name", ["llama", "granite", "gemma2", "olmo2", "gpt_neox"])
def test_the_terms_are_those_of_the_architectures_formula(name: str) -> None:
    backend = hf(name)
    seen: dict[int, Tensor] = {}
    handles = [
        getattr(block, "self_attn" if hasattr(block, "self_attn") else "attention").register_forward_hook(
            lambda _module, _args, output, b=b: seen.__setitem__(b, output[0])
        )
        for b, block in enumerate(backend.blocks)
    ]
    values = read(backend, ids_of(2)).values
    for handle in handles:
        handle.remove()
    for b, block in enumerate(backend.blocks):
        for stream, expected in by_hand(name, block, values["resid"][b], seen[b]).items():
            torch.testing.assert_close(values[stream][b], expected, rtol=1e-5, atol=1e-5)


def test_head_out_of_llama_is_attention_weights_times_values() -> None:
    """Softmax attention written out: rotary embeddings, shared key-value heads, causal mask."""
    backend = hf("llama")
    ids = ids_of(3)
    values = read(backend, ids).values
    length, d_head = ids.shape[1], 8
    block, x = backend.blocks[1], values["resid"][1]
    normed, own = block.input_layernorm(x), block.self_attn

    def split(y: Tensor) -> Tensor:
        return y.view(*ids.shape, -1, d_head).transpose(1, 2)

    angle = torch.arange(length)[:, None] * 1e4 ** (-torch.arange(0, d_head, 2) / d_head)
    cos, sin = (torch.cat([f(angle), f(angle)], -1) for f in (torch.cos, torch.sin))

    def turned(y: Tensor) -> Tensor:
        half = torch.cat([-y[..., d_head // 2 :], y[..., : d_head // 2]], -1)
        return y * cos + half * sin

    q, k = turned(split(own.q_proj(normed))), turned(split(own.k_proj(normed))).repeat_interleave(2, 1)
    scores = (q @ k.transpose(-1, -2)) / d_head**0.5
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    heads = scores.softmax(-1) @ split(own.v_proj(normed)).repeat_interleave(2, 1)
    expected = heads.transpose(1, 2).reshape(*ids.shape, -1)
    torch.testing.assert_close(values["head_out"][1], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own.o_proj(expected), values["attn_out"][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "stream"),
    [
        *(("llama", stream) for stream in INNER),
        *(("granite", stream) for stream in INNER),
        *(("bloom", stream) for stream in INNER),
        *((name, "attn_out") for name in ("gemma2", "gpt2", "opt", "falcon", "qwen3_next")),
        *((name, "mlp_out") for name in ("gpt_neox", "qwen3_moe", "gpt_oss", "opt", "phi3")),
        *((name, "head_out") for name in ("qwen3", "gpt2", "glm4", "cohere2")),
    ],
)
def test_an_edit_of_a_stream_is_seen_there_and_carried_on(name: str, stream: str) -> None:
    backend = hf(name)
    ids = ids_of(4)
    plain = read(backend, ids)
    vector = torch.randn(backend.facts.widths[stream], generator=torch.Generator().manual_seed(6))
    edited = read(backend, ids, at_last_token(HookPoint(stream, 1), vector, ids))
    seen = edited.values[stream][1] - plain.values[stream][1]
    torch.testing.assert_close(seen[:, -1], vector.expand(len(ids), -1), rtol=1e-4, atol=1e-4)
    assert torch.equal(edited.values[stream][1][:, :-1], plain.values[stream][1][:, :-1])
    assert torch.equal(edited.values["resid"][:2], plain.values["resid"][:2])
    assert not torch.allclose(edited.values["resid"][2][:, -1], plain.values["resid"][2][:, -1], atol=1e-3)
    summed = edited.values["resid"][1] + edited.values["attn_out"][1] + edited.values["mlp_out"][1]
    torch.testing.assert_close(summed, edited.values["resid"][2], rtol=1e-5, atol=1e-5)
    if stream == "mlp_out":
        moved = edited.values["resid"][2] - plain.values["resid"][2]
        torch.testing.assert_close(moved[:, -1], vector.expand(len(ids), -1), rtol=1e-4, atol=1e-4)
        assert torch.equal(edited.values["attn_out"][1], plain.values["attn_out"][1])
    assert torch.equal(read(backend, ids).logits, plain.logits)


@pytest.mark.parametrize("name", ["llama", "granite", "gemma2", "bloom", "opt", "gpt_oss"])
def test_to_edit_resid_mid_is_to_edit_attn_out_by_the_same(name: str) -> None:
    backend = hf(name)
    ids = ids_of(7)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(8))
    one, two = (
        read(backend, ids, at_last_token(HookPoint(stream, 1), vector, ids)) for stream in ("resid_mid", "attn_out")
    )
    torch.testing.assert_close(one.logits, two.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.values["attn_out"], two.values["attn_out"], rtol=1e-4, atol=1e-5)
    put = read(backend, ids, at_last_token(HookPoint("resid_mid", 1), vector, ids, "patch"))
    torch.testing.assert_close(put.values["resid_mid"][1][:, -1], vector.expand(len(ids), -1), rtol=1e-4, atol=1e-4)


def test_edits_at_one_point_act_in_order_and_reads_see_what_they_made() -> None:
    backend = hf("granite")
    ids = ids_of(9)
    one, two = torch.randn(2, 32, generator=torch.Generator().manual_seed(10))
    for stream in ("resid", "attn_out", "mlp_out", "resid_mid", "head_out"):
        point = HookPoint(stream, 1)
        put, added = at_last_token(point, one, ids, "patch"), at_last_token(point, two, ids)
        forth = read(backend, ids, put, added).values[stream][1][:, -1]
        back = read(backend, ids, added, put).values[stream][1][:, -1]
        torch.testing.assert_close(forth, (one + two).expand_as(forth), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(back, one.expand_as(back), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "granite"])
def test_an_edit_of_attn_out_acts_before_one_of_resid_mid_whatever_their_order(name: str) -> None:
    backend = hf(name)
    ids = ids_of(12)
    put, added = torch.randn(2, 32, generator=torch.Generator().manual_seed(13))
    mid = at_last_token(HookPoint("resid_mid", 1), put, ids, "patch")
    for term in (at_last_token(HookPoint("attn_out", 1), added, ids, kind) for kind in ("add", "patch")):
        forth, back, alone = (read(backend, ids, *edits) for edits in ((term, mid), (mid, term), (mid,)))
        assert torch.equal(forth.logits, back.logits)
        torch.testing.assert_close(back.values["resid_mid"][1][:, -1], put.expand(len(ids), -1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(forth.logits, alone.logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(read(backend, ids, term).logits, alone.logits, atol=1e-2)  # the control: it acts


@pytest.mark.parametrize(
    ("name", "stream", "why"),
    [
        (
            "gpt_neox",
            "resid_mid",
            "block 0 adds attention and MLP at once, so nothing lies between them; it has resid, ",
        ),
        ("qwen3_next", "head_out", "its blocks have heads of different widths in all ("),
        ("mamba2", "attn_out", "block 0 adds one term, that of 'mixer', and not one of attention and one of an MLP"),
        ("llama", "resid_pre", "a stream is one of resid, resid_mid, attn_out, mlp_out, head_out; found 'resid_pre'"),
    ],
)
def test_a_stream_that_is_not_there_is_refused_with_the_reason(name: str, stream: str, why: str) -> None:
    backend = hf(name)
    ids = ids_of()
    point = HookPoint(stream, 0)
    with pytest.raises(ModelError, match=re.escape(why)):
        backend.forward(ids, torch.ones_like(ids), Reads((point,), torch.zeros(2, 1, dtype=torch.long)))
    with pytest.raises(ModelError, match=re.escape(why)):
        read(backend, ids, at_last_token(point, torch.ones(32), ids))


@pytest.mark.parametrize(("stream", "beyond"), [("resid", 4), ("attn_out", 3), ("head_out", -1)])
def test_a_layer_beyond_the_last_is_refused(stream: str, beyond: int) -> None:
    backend = hf("llama")
    ids = ids_of()
    with pytest.raises(
        ModelError, match=f"has layers 0 to {3 - (stream != 'resid')} of stream '{stream}'; found {beyond}"
    ):
        backend.forward(ids, torch.ones_like(ids), Reads((HookPoint(stream, beyond),), ids[:, :1] * 0))


@pytest.mark.parametrize(
    ("model_type", "sizes", "has"),
    [
        ("stablelm", {"use_parallel_residual": True}, {"resid", "attn_out", "mlp_out", "head_out"}),
        ("gpt_neox", {"use_parallel_residual": False}, {"resid", *INNER}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, {"resid", "attn_out", "mlp_out", "head_out"}),
        ("falcon", {"parallel_attn": False}, {"resid", *INNER}),
        ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 48, "do_layer_norm_before": False}, {"resid"}),
    ],
)
def test_variants_of_one_architecture_are_told_apart_by_what_they_do(
    model_type: str, sizes: dict[str, Any], has: set[str]
) -> None:
    streams, _ = find_streams(model := built(model_type, **sizes), find_blocks(model))
    assert set(streams.widths) == has
    if model_type == "opt":  # the norm after each sum: what is added is not what the residual gains
        assert "pre + attention + mlp == post" in streams.missing["attn_out"]


def test_the_table_on_the_page_is_what_is_measured() -> None:
    page = (Path(__file__).parents[2] / "docs" / "streams.md").read_text("utf-8")
    shown = {cells[0].strip("`"): cells[1:] for cells in rows_of(page) if cells[0].strip("`") in ARCHITECTURES}
    for name in ARCHITECTURES:
        facts = hf(name).facts
        streams = ["yes" if stream in facts.widths else "no" for stream in COLUMNS]
        assert shown.pop(name) == [*streams, facts.caching], name
    assert not shown


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "granite"])
def test_massive_activations_and_coarse_numbers_hide_no_stream(name: str, dtype: torch.dtype) -> None:
    """As in trained models: one token is larger than the others by far, and attention adds little to it."""
    model = deepcopy(build(name)[0])
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        embedding[0] *= 1000
    streams, _ = find_streams(model.to(dtype), find_blocks(model))
    assert streams.widths == hf(name).facts.widths
    assert streams.blocks == hf(name).streams.blocks


def rows_of(page: str) -> list[list[str]]:
    """The cells of every table line of a page."""
    lines = (line.strip().strip("|").split("|") for line in page.splitlines() if line.startswith("| `"))
    return [[cell.strip() for cell in cells] for cells in lines]


class Block(nn.Module):
    """Attention-like and MLP-like parts, put together in a way that can be wrong."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.mix, self.project = nn.Linear(16, 16), nn.Linear(16, 16)
        self.mlp = nn.Linear(16, 16)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.kind == "mlp_first":
            mid: Tensor = hidden_states + self.mlp(hidden_states)
            return mid + self.project(self.mix(mid).cumsum(1))
        mixed = self.project(self.mix(hidden_states).cumsum(1))
        if self.kind == "three":
            return hidden_states + mixed + self.mlp(hidden_states + mixed) + 0.1 * hidden_states.sin()
        if self.kind == "scaled":
            mid = hidden_states + 0.5 * mixed
            return mid + 2 * self.mlp(mid)
        mid = hidden_states + mixed
        return mid + self.mlp(mid)


class Toy(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.config = AutoConfig.for_model(
            "llama", hidden_size=16, num_attention_heads=4, num_hidden_layers=2, vocab_size=20
        )
        self.device = torch.device("cpu")
        self.embed = nn.Embedding(20, 16)
        self.layers = nn.ModuleList([Block(kind), Block(kind)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool, return_dict: bool) -> Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("plain", ""),
        ("scaled", ""),
        ("three", "has no two modules whose outputs take its input to its output"),
        ("mlp_first", "adds the term of 'mlp', which sees one token, before that which mixes tokens"),
    ],
)
def test_only_two_terms_that_add_up_in_the_right_order_are_accepted(kind: str, why: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        toy = Toy(kind)
    streams, _ = find_streams(toy, toy.layers)
    if why:
        assert set(streams.widths) == {"resid"}
        assert all(why in reason for reason in streams.missing.values())
        return
    assert set(streams.widths) == {"resid", *INNER}
    parts = streams.blocks[0]
    assert parts is not None
    assert (parts.attention.path, parts.mlp.path, parts.heads) == ("project", "mlp", "project")
    assert [parts.attention.scale, parts.mlp.scale] == pytest.approx([0.5, 2] if kind == "scaled" else [1, 1], rel=1e-5)


def test_blocks_that_give_lists_are_edited_in_every_row() -> None:
    backend = HFBackend(built("openai-gpt", n_positions=128))
    assert backend.facts.caching == "none"
    check_backend(backend, backend.model)


def test_blocks_that_are_given_other_than_one_vector_for_each_token_are_refused() -> None:
    """Gemma-3n keeps several residual streams, which its blocks mix."""
    own = {"vocab_size_per_layer_input": 600, "hidden_size_per_layer_input": 16, "laurel_rank": 4, "head_dim": 8}
    own |= {"altup_num_inputs": 2, "num_kv_shared_layers": 1, "intermediate_size": [48] * 3}
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    model = built("gemma3n_text", **own, layer_types=kinds)
    with pytest.raises(ModelError, match=r"those of gemma3n_text are given shape \[2, 2, 6, 32\]; this architecture"):
        HFBackend(model)
