"""A TransformerBridge gives what plain hooks give, installs nothing, and says what it cannot serve."""

from __future__ import annotations

import builtins
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources.transformers import helpers
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration, LlamaForCausalLM

from probe.models import transformer_lens
from probe.models.hf import HFBackend
from probe.models.loading import load_backend
from probe.models.points import HookPoint
from probe.models.protocol import Reads
from probe.models.transformer_lens import TransformerLensBackend
from probe.values import ModelError
from tests.capture.architectures import fresh, source_of, tokenizer_of
from tests.models.backend_parity import LIMIT, decoded, differences, edits_at, forward, points_of

SERVED = ("llama", "gpt2", "gemma2", "qwen3", "falcon", "gpt_oss")


@cache
def lens(name: str) -> TransformerLensBackend:
    loaded = fresh(name, "transformer-lens")
    assert isinstance(loaded, TransformerLensBackend)
    return loaded


@cache
def hf(name: str) -> HFBackend:
    """A model that no bridge has seen, with the attention that transformers chooses for it."""
    return HFBackend.load(source_of(name), dtype="float32", device="cpu", attention=None)


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_hook_point_gives_what_plain_hooks_give(name: str, side: str) -> None:
    assert lens(name).facts.widths == hf(name).facts.widths
    points = points_of(hf(name))
    found = differences(forward(lens(name), points, side), forward(hf(name), points, side))
    assert max(found.values()) <= LIMIT, found
    shifted = tuple(replace(point, layer=point.layer - 1) for point in points if point.layer)
    above = tuple(point for point in points if point.layer)
    control = differences(forward(lens(name), shifted, side), forward(hf(name), above, side))
    del control["logits"]
    assert min(control.values()) > 100 * LIMIT, control


@pytest.mark.parametrize("name", [*SERVED, "qwen3_next"])
def test_the_same_is_read_when_its_cache_goes_on(name: str) -> None:
    points = tuple(point for point in points_of(hf(name)) if point.stream in lens(name).facts.widths)
    for ours, theirs in zip(decoded(lens(name), points), decoded(hf(name), points), strict=True):
        found = differences(ours, theirs)
        assert max(found.values()) <= LIMIT, found


@pytest.mark.parametrize("name", ["llama", "granite", "falcon", "olmo2"])
def test_each_operator_acts_as_in_plain_hooks_on_every_stream(name: str) -> None:
    points = points_of(hf(name))
    plain = forward(hf(name), points)
    for stream, width in hf(name).facts.widths.items():
        for edit in edits_at(HookPoint(stream, 1), width):
            theirs = forward(hf(name), points, edits=(edit,))
            found = differences(forward(lens(name), points, edits=(edit,)), theirs)
            assert max(found.values()) <= LIMIT, (edit.kind, edit.point, found)
            assert max(differences(theirs, plain).values()) > 100 * LIMIT  # the control: it acts


def test_an_exception_in_the_middle_of_a_forward_leaves_no_hook_and_the_logits_as_they_were() -> None:
    backend = fresh("llama", "transformer-lens")
    points = points_of(backend)
    plain = forward(backend, points)
    before = hooks_on(backend)

    def fail(_module: Any, _args: Any) -> None:
        raise RuntimeError("in the middle")

    handle = backend.model.model.layers[2].register_forward_pre_hook(fail)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="in the middle"):
        forward(backend, points, edits=tuple(edits_at(HookPoint("resid", 1), 32)))
    handle.remove()
    assert hooks_on(backend) == before
    assert torch.equal(forward(backend, points).logits, plain.logits)


def hooks_on(backend: Any) -> int:
    modules = backend.model.modules()
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def test_weights_are_those_of_the_checkpoint() -> None:
    ours = lens("gpt2").model.state_dict()
    theirs = {name: weight for name, weight in hf("gpt2").model.state_dict().items() if "wte" in name}
    assert theirs
    for name, weight in theirs.items():  # centring or folding would have changed the embeddings first
        assert any(torch.equal(weight, own) for own in ours.values()), name


class Installed(Exception):
    """Something tried to start a program."""


@pytest.fixture
def nothing_can_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way to start a program fails, with an exception that nobody catches by name."""

    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise Installed

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr("os.system", refuse)
    monkeypatch.setattr("os.execvp", refuse)
    monkeypatch.setattr(helpers, "_ensure_torchvision", refuse)


@pytest.mark.usefixtures("nothing_can_be_installed")
def test_nothing_is_installed_while_a_model_is_loaded() -> None:
    assert fresh("llama", "transformer-lens").facts.backend == "transformer-lens"


@pytest.mark.usefixtures("nothing_can_be_installed")
def test_nothing_is_installed_for_a_model_that_also_takes_images(tmp_path: Path) -> None:
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config={**text, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 600},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=599,
        attn_implementation="eager",
        architectures=["Gemma3ForConditionalGeneration"],
    )
    models = [Gemma3ForConditionalGeneration(config).eval().requires_grad_(False) for _ in range(2)]
    assert TransformerLensBackend(HFBackend(models[0])).facts.widths["resid"] == 32
    tokenizer_of().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    elsewhere = str(tmp_path / "without-an-image-processor")
    with pytest.raises(Installed):  # the control: the library's other entrance would install torchvision for it
        TransformerBridge.boot_transformers(elsewhere, hf_model=models[1], device="cpu", tokenizer=tokenizer)


def test_the_bridge_runs_eager_attention_and_another_is_refused_before_weights_are_read() -> None:
    assert lens("llama").facts.attention == "eager"
    with pytest.raises(ModelError, match=r"runs attention as 'eager', and model.attn_implementation is 'sdpa'"):
        load_backend(source_of("llama"), backend="transformer-lens", dtype="auto", device="cpu", attention="sdpa")


def test_an_architecture_that_the_bridge_does_not_know_is_refused_in_one_sentence() -> None:
    class NeverHeardOfForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
        pass

    model = NeverHeardOfForCausalLM(hf("llama").model.config).eval()
    with pytest.raises(ModelError) as refused:
        TransformerLensBackend(HFBackend(model))
    assert str(refused.value) == (
        "backend 'transformer-lens' cannot serve NeverHeardOfForCausalLM: "
        "Unsupported architecture: NeverHeardOfForCausalLM; use --backend hf"
    )


def test_a_stream_that_comes_out_otherwise_is_left_out_and_the_residual_stream_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loaded() -> HFBackend:
        return HFBackend.load(source_of("llama"), dtype="float32", device="cpu", attention="eager")

    names = TransformerLensBackend._names

    def swapped(self: Any, at: int, own: Any) -> Any:
        yield from ((name.replace("hook_mlp_out", "mlp.hook_in"), function) for name, function in names(self, at, own))

    monkeypatch.setattr(TransformerLensBackend, "_names", swapped)
    facts = TransformerLensBackend(loaded()).facts
    assert set(facts.missing) == {"mlp_out"}
    assert facts.missing["mlp_out"].startswith("TransformerLens gives it off by ")
    monkeypatch.setattr(TransformerLensBackend, "_names", lambda self, at, own: names(self, max(at, 1), own))
    with pytest.raises(ModelError, match=r"cannot serve LlamaForCausalLM: .* gives it off by .*; use --backend hf"):
        TransformerLensBackend(loaded())


def test_a_stream_without_a_hook_point_is_named() -> None:
    backend = lens("llama")
    reads = Reads((HookPoint("head_out", 0),), torch.tensor([[0]]))
    backend._points, points = {k: v for k, v in backend._points.items() if "hook_z" not in k}, backend._points
    with pytest.raises(KeyError, match=r"blocks\.0\.attn\.hook_z"):
        backend.forward(torch.tensor([[7]]), torch.tensor([[1]]), reads)
    backend._points = points
    assert backend.forward(torch.tensor([[7]]), torch.tensor([[1]]), reads).values["head_out"].shape == (1, 1, 1, 32)


def test_without_the_library_one_line_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "transformer_lens":
            raise ModuleNotFoundError(f"No module named {name!r}", name="transformer_lens")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelError) as refused:
        transformer_lens.require_library()
    assert 'pip install "persona-probe[transformer-lens]"' in str(refused.value)
    assert "\n" not in str(refused.value)
