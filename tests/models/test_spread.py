"""What does not fit where it is computed is fetched, and changes no bit; what cannot be laid so is refused before."""

from __future__ import annotations

import gc
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from probe.models.hf import HFBackend
from probe.models.loading import load_backend
from probe.models.protocol import Reads
from probe.models.readout import find_readout
from probe.models.spread import ONE_DEVICE, DeviceMap, Spread, device_map_of, held, main_device, require_room
from probe.values import ModelError
from tests.capture.architectures import build, prompts, source_of
from tests.capture.matrix_forwards import all_points

MEMORY = "transformers.integrations.accelerate.accelerate_max_memory"
AUTO = Spread("auto")


def load(name: str, spread: Spread = ONE_DEVICE, **settings: Any) -> HFBackend:
    known = {"backend": "hf", "dtype": "float32", "device": "auto", "attention": None}
    backend = load_backend(source_of(name), spread=spread, **{**known, **settings})
    assert isinstance(backend, HFBackend)
    return backend


def size_of(name: str) -> int:
    return sum(weight.numel() * weight.itemsize for weight in build(name)[0].parameters())


def room(monkeypatch: pytest.MonkeyPatch, n_bytes: float) -> None:
    """So much main memory is free."""
    monkeypatch.setattr(MEMORY, lambda given=None: {"cpu": int(n_bytes)})


def everything(backend: HFBackend, name: str) -> dict[str, torch.Tensor]:
    ids = torch.tensor([prompts(name)[0]])
    columns = torch.arange(ids.shape[1])[None]
    first = backend.forward(ids, torch.ones_like(ids), Reads(all_points(backend), columns, logits_at=columns))
    found = {**first.values, "logits": first.logits}
    if first.cache is not None:
        mask = torch.ones((1, ids.shape[1] + 1), dtype=torch.long)
        again = backend.forward(ids[:, :1], mask, Reads((), columns[:, :1]), cache=first.cache)
        found["newest"] = again.logits
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="the accelerator has room")
@pytest.mark.parametrize(
    ("name", "part", "laid"),
    [
        ("llama", 0.9, ("cpu", "disk", "disk")),
        ("llama", 0.5, ("disk", "disk", "disk")),
        ("gpt2", 0.9, ("cpu", "disk", "disk")),  # tied, and blocks of another name
        ("qwen3_moe", 0.9, ("cpu", "disk", "disk")),  # experts are written anew
        ("mamba2", 0.9, ("cpu", "disk", "disk")),
    ],
)
def test_weights_that_are_fetched_give_what_a_plain_load_gives_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, part: float, laid: tuple[str, ...]
) -> None:
    plain = load(name)
    room(monkeypatch, part * size_of(name))
    with caplog.at_level(logging.WARNING):
        backend = load(name, AUTO)
    assert not [record for record in caplog.records if "meta device" in record.getMessage()]  # we tell it better
    assert backend.facts.device == torch.device("cpu")
    device_map = backend.facts.device_map
    assert device_map is not None and device_map.blocks == laid
    assert 0 < device_map.fetched["disk"] <= size_of(name) and device_map.told.count("GB from disk") == 1
    assert any(weight.is_meta for weight in backend.model.parameters())
    found, wanted = everything(backend, name), everything(plain, name)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert (backend.facts.widths, backend.facts.caching) == (plain.facts.widths, plain.facts.caching)
    assert (backend.resumer is None) == (plain.resumer is None)
    one, two = find_readout(backend, (3, 8)), find_readout(plain, (3, 8))
    assert one is not None and two is not None
    assert all((one.tensors()[key] == two.tensors()[key]).all() for key in two.tensors())
    assert one.metadata() == two.metadata()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the accelerator has room")
def test_weights_written_anew_are_gone_with_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    room(monkeypatch, 0.9 * size_of("qwen3_moe"))
    backend = load("qwen3_moe", AUTO)
    assert list(tmp_path.glob("probe-weights-*/*experts*.safetensors"))
    del backend
    gc.collect()
    assert not list(tmp_path.glob("probe-weights-*"))
    with pytest.raises(ModelError, match="does not load as a decoder"):
        load("qwen3_moe", AUTO, attention="no such attention")
    assert not list(tmp_path.glob("probe-weights-*"))


def test_a_model_that_fits_on_one_device_is_loaded_as_without_a_map() -> None:
    backend = load("llama", Spread("balanced"))
    assert backend.facts.device_map is None
    assert not hasattr(backend.model, "_hf_hook")
    if backend.facts.device.type == "cpu":
        found, wanted = everything(backend, "llama"), everything(load("llama"), "llama")
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_what_cannot_be_loaded_so_is_refused_before_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", never)
    with pytest.raises(ModelError, match="device_map or with tensor_parallel, found both; leave one out"):
        Spread("auto", 2)
    for backend in ("transformer-lens", "nnsight"):
        with pytest.raises(
            ModelError, match=rf"only the backend hf .* device_map, found '{backend}'; use --backend hf"
        ):
            load("llama", AUTO, backend=backend, attention="eager")
    with pytest.raises(ModelError, match=r"device_map chooses devices of kind '\w+' here, found device 'cuda:7'; use"):
        load("llama", AUTO, device="cuda:7")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ModelError, match=r'not installed; pip install "persona-probe\[big\]", or leave device_map out'):
        load("llama", AUTO)
    with pytest.raises(AssertionError, match="weights were read"):
        load("llama")  # the control: one device needs no library


def test_a_model_for_which_the_accelerator_has_no_room_is_refused() -> None:
    model = build("llama")[0]
    require_room(model, torch.device("cpu"))
    with pytest.raises(ModelError, match="found no room for any block on cuda, and would compute on cpu"):
        require_room(model, torch.device("cuda"))


class _Hook:
    def __init__(self, device: Any) -> None:
        self.execution_device = device


def laid(device_map: dict[str, Any], main: Any = 0) -> Any:
    """A decoder of four blocks that says that accelerate has laid it so."""
    model = nn.Module()
    model.embed = nn.Embedding(4, 2)
    model.layers = nn.ModuleList(nn.ModuleDict({"attn": nn.Linear(2, 2), "mlp": nn.Linear(2, 2)}) for _ in range(4))
    model.head = nn.Linear(2, 4)
    model.hf_device_map = device_map
    model._hf_hook = _Hook(main)
    return model


def test_a_map_is_told_block_by_block_and_a_divided_block_is_refused() -> None:
    mixed = {"embed": 0, "layers.0": 0, "layers.1": 1, "layers.2": "cpu", "layers.3": "disk", "head": "disk"}
    model = laid(mixed)
    found = device_map_of(model, model.layers)
    assert found == DeviceMap(("cuda:0", "cuda:1", "cpu", "disk"), {"cpu": 48, "disk": 48 + 48})
    assert str(found) == "cuda:0 x 1 block, cuda:1 x 1 block, cpu x 1 block, disk x 1 block"
    assert main_device(model) == torch.device("cuda:0")
    assert found.shares(main_device(model)) == {torch.device("cuda:0"): 0.75, torch.device("cuda:1"): 0.25}
    whole = laid({"embed": 1, "layers": 0, "head": 1}, main=1)
    found = device_map_of(whole, whole.layers)
    assert found is not None and found.told == "the model lies on cuda:0 x 4 blocks"
    assert found.shares(main_device(whole)) == {torch.device("cuda:1"): 0.0, torch.device("cuda:0"): 1.0}
    divided = {
        "embed": 0,
        "layers.0": 0,
        "layers.1.attn": 0,
        "layers.1.mlp": 1,
        "layers.2": 1,
        "layers.3": 1,
        "head": 1,
    }
    model = laid(divided)
    with pytest.raises(ModelError, match="block 1 of Module is divided between cuda:0, cuda:1"):
        device_map_of(model, model.layers)
    model = laid({**divided, "layers.1.mlp": "cpu"})  # computed on cuda:0, so it is no division
    found = device_map_of(model, model.layers)
    assert found is not None and found.blocks[1] == "cpu"


def test_weights_are_held_while_they_are_read_and_not_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("the accelerator has room")
    room(monkeypatch, 0.5 * size_of("llama"))
    head = load("llama", AUTO).model.get_output_embeddings()
    assert head.weight.is_meta
    with torch.inference_mode(), held(head):
        assert torch.equal(head.weight, build("llama")[0].get_output_embeddings().weight)
    assert head.weight.is_meta
    with held(build("llama")[0].lm_head):
        pass  # a model that is not laid is there
