"""Hooks read what they say, on every family, and leave nothing behind."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from probe.models import find_model, read_shape
from probe.models.check import check_backend
from probe.models.edits import Edit
from probe.models.hf import HFBackend, caching_of
from probe.models.loading import load_backend
from probe.models.points import HookPoint, residual_points
from probe.models.protocol import Reads
from probe.values import ModelError
from tests.tiny_models import FAMILIES, save_tiny_model

FOLLOWING = [family for family in FAMILIES if family != "mamba2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: save_tiny_model(root / family, family, scale=3.0) for family in FAMILIES}


def load(folder: Path) -> HFBackend:
    backend = load_backend(find_model(str(folder)), backend="hf", dtype="auto", device="cpu", attention=None)
    assert isinstance(backend, HFBackend)
    return backend


@cache
def shared(folder: Path) -> HFBackend:
    """Loaded and checked once; to be left as it is."""
    return load(folder)


def everything(backend: HFBackend, ids: torch.Tensor) -> Reads:
    n_rows, length = ids.shape
    return Reads(
        residual_points(tuple(range(backend.facts.shape.n_layers + 1))), torch.arange(length).expand(n_rows, length)
    )


def hooks_on(backend: HFBackend) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backend.model.modules())


@pytest.mark.parametrize("family", FOLLOWING)
def test_points_below_the_last_equal_hidden_states(folders: dict[str, Path], family: str) -> None:
    backend = shared(folders[family])
    ids = torch.randint(5, 600, (2, 9), generator=torch.Generator().manual_seed(1))
    got = backend.forward(ids, torch.ones_like(ids), everything(backend, ids))
    expected = backend.model(input_ids=ids, output_hidden_states=True, use_cache=False)
    for layer, states in enumerate(expected.hidden_states[:-1]):
        torch.testing.assert_close(got.values["resid"][layer], states, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.logits[:, 0], expected.logits[:, -1], rtol=1e-5, atol=1e-4)
    # The control: hidden_states[-1] stands after the final norm, so the last point is something else.
    assert not torch.allclose(got.values["resid"][-1], expected.hidden_states[-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FOLLOWING)
def test_the_last_point_is_what_the_final_norm_receives(folders: dict[str, Path], family: str) -> None:
    backend = shared(folders[family])
    received: list[torch.Tensor] = []
    decoder = backend.model.get_decoder()
    norms = [
        module
        for name, module in decoder.named_modules()
        if "norm" in type(module).__name__.lower() and not any(part.isdigit() for part in name.split("."))
    ]
    assert norms
    handle = norms[-1].register_forward_pre_hook(lambda _module, args: received.append(args[0]))
    ids = torch.randint(5, 600, (1, 7), generator=torch.Generator().manual_seed(2))
    got = backend.forward(ids, torch.ones_like(ids), everything(backend, ids))
    handle.remove()
    torch.testing.assert_close(got.values["resid"][-1], received[-1], rtol=0, atol=0)


def adding(point: HookPoint, vector: torch.Tensor, ids: torch.Tensor) -> Edit:
    return Edit(point, "add", torch.ones_like(ids, dtype=torch.bool), vector.expand(len(ids), -1))


@pytest.mark.parametrize("family", FOLLOWING)
def test_an_edit_acts_at_its_point_and_is_undone_bit_for_bit(folders: dict[str, Path], family: str) -> None:
    backend = shared(folders[family])
    ids = torch.randint(5, 600, (1, 6), generator=torch.Generator().manual_seed(3))
    mask, reads = torch.ones_like(ids), everything(backend, ids)
    hooks_before = hooks_on(backend)
    plain = backend.forward(ids, mask, reads)
    vector = torch.randn(backend.facts.shape.d_model, generator=torch.Generator().manual_seed(4))
    edit, still = (adding(HookPoint("resid", 1), scale * vector, ids) for scale in (1, 0))
    edited = backend.forward(ids, mask, reads, edits=(edit,))
    torch.testing.assert_close(edited.values["resid"][1], plain.values["resid"][1] + vector)
    assert torch.equal(edited.values["resid"][0], plain.values["resid"][0])
    assert not torch.allclose(edited.values["resid"][2], plain.values["resid"][2])
    assert torch.equal(backend.forward(ids, mask, reads, edits=(still,)).logits, plain.logits)
    assert torch.equal(backend.forward(ids, mask, reads).logits, plain.logits)
    assert hooks_on(backend) == hooks_before  # transformers keeps some of its own there, after the check at load


class Broken(Edit):
    """An edit that fails while the model runs."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("in mid-pass")


@pytest.mark.parametrize("stream", ["resid", "attn_out", "mlp_out", "head_out", "resid_mid"])
def test_a_pass_that_fails_half_way_leaves_the_model_as_it_was(folders: dict[str, Path], stream: str) -> None:
    backend = shared(folders["llama"])
    ids = torch.randint(5, 600, (2, 6), generator=torch.Generator().manual_seed(8))
    mask, reads = torch.ones_like(ids), everything(backend, ids)
    plain, hooks_before = backend.forward(ids, mask, reads), hooks_on(backend)
    before = {name: value.clone() for name, value in backend.model.state_dict().items()}
    buffers = {name: value.clone() for name, value in backend.model.named_buffers()}
    config = backend.model.config.to_dict()
    where = torch.ones_like(ids, dtype=torch.bool)
    broken = Broken(HookPoint(stream, 1), "add", where, torch.ones(2, 32))
    with pytest.raises(RuntimeError, match="in mid-pass"):
        backend.forward(ids, mask, reads, edits=(adding(HookPoint("resid", 0), torch.ones(32), ids), broken))
    assert hooks_on(backend) == hooks_before
    assert not backend.model.training
    assert backend.model.config.to_dict() == config
    assert all(torch.equal(before[name], value) for name, value in backend.model.state_dict().items())
    assert all(torch.equal(buffers[name], value) for name, value in backend.model.named_buffers())
    assert torch.equal(backend.forward(ids, mask, reads).logits, plain.logits)


def test_logits_are_those_of_the_columns_asked_for_in_each_row(folders: dict[str, Path]) -> None:
    for family in ("llama", "gemma2", "mamba2"):
        backend = shared(folders[family])
        ids = torch.randint(5, 600, (2, 7), generator=torch.Generator().manual_seed(9))
        at = torch.tensor([[6, 1, 1], [0, 3, 6]])
        reads = Reads(residual_points((0,)), at[:, :1], logits_at=at)
        got = backend.forward(ids, torch.ones_like(ids), reads).logits
        every = backend.model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(got, torch.stack([every[0, at[0]], every[1, at[1]]]), rtol=1e-4, atol=1e-4)


def test_the_cache_says_what_can_be_done_with_it(folders: dict[str, Path]) -> None:
    caching = {family: shared(folders[family]).facts.caching for family in ("llama", "gemma2", "mamba2")}
    assert caching == {"llama": "attention", "gemma2": "attention", "mamba2": "recurrent"}
    assert caching_of(None) == caching_of(object()) == "none"


class Uncached(torch.nn.Module):
    """A decoder that takes no cache: what it is given is all that it sees."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner, self.config, self.generation_config = model, model.config, model.generation_config
        self.device, self.dtype, self.get_decoder = model.device, model.dtype, model.get_decoder

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any = None, **_ignored: Any) -> Any:
        return self.inner(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )


def test_a_model_without_a_cache_is_served_without_one(folders: dict[str, Path]) -> None:
    with_cache = shared(folders["llama"])
    without = HFBackend(Uncached(with_cache.model))
    assert without.facts.caching == "none"
    check_backend(without)
    ids = torch.randint(5, 600, (2, 6), generator=torch.Generator().manual_seed(10))
    one, two = (each.forward(ids, torch.ones_like(ids), everything(each, ids)) for each in (with_cache, without))
    torch.testing.assert_close(one.logits, two.logits)
    assert one.cache is not None
    assert two.cache is None


def test_a_span_mean_is_the_mean_of_its_columns(folders: dict[str, Path]) -> None:
    backend = shared(folders["llama"])
    ids = torch.randint(5, 600, (2, 8), generator=torch.Generator().manual_seed(5))
    spans = torch.tensor([[[2, 5]], [[0, 8]]])
    reads = Reads(residual_points((0, 3)), torch.arange(8).expand(2, 8), spans)
    got = backend.forward(ids, torch.ones_like(ids), reads)
    torch.testing.assert_close(got.means["resid"][:, 0, 0], got.values["resid"][:, 0, 2:5].mean(1))
    torch.testing.assert_close(got.means["resid"][:, 1, 0], got.values["resid"][:, 1].mean(1))


def test_a_model_that_lists_its_states_from_the_first_block_on_is_read_by_point(folders: dict[str, Path]) -> None:
    backend = shared(folders["mamba2"])
    ids = torch.randint(5, 600, (2, 9), generator=torch.Generator().manual_seed(6))
    resid = backend.forward(ids, torch.ones_like(ids), everything(backend, ids)).values["resid"]
    states = backend.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    torch.testing.assert_close(resid[0], backend.model.get_input_embeddings()(ids))
    for k in (1, 2):
        torch.testing.assert_close(resid[k], states[k - 1])
        assert not torch.allclose(resid[k], states[k], rtol=1e-2)


def test_settings_of_the_models_own_generation_config_are_ignored_and_named(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "penalised", "llama")
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": [2, 7], "pad_token_id": 0, "repetition_penalty": 1.3, "do_sample": true, "temperature": 0.6}'
    )
    shape = read_shape(find_model(str(folder)))
    assert shape.end_ids == (2, 7)
    assert shape.ignored == {"repetition_penalty": 1.3, "do_sample": True, "temperature": 0.6}


@pytest.mark.parametrize("part", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_checkpoint_that_lacks_weights_is_refused_instead_of_filled_with_noise(tmp_path: Path, part: str) -> None:
    folder = save_tiny_model(tmp_path / "lacking", "llama")
    weights = load_file(folder / "model.safetensors")
    assert load(folder)
    del weights[part]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"lacks weights that its config.json asks for \\({part}"):
        load(folder)


def test_a_device_that_is_not_there_is_refused(folders: dict[str, Path]) -> None:
    source = find_model(str(folders["llama"]))
    for device in ("cuda:7", "abacus"):
        with pytest.raises(ModelError, match=f"device '{device}' is not usable here"):
            load_backend(source, backend="hf", dtype="auto", device=device, attention=None)
