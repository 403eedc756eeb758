"""A model is found, named by its content, or refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from probe.models import find_model, weights_identity
from probe.values import ModelError
from tests.tiny_models import save_tiny_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    return save_tiny_model(tmp_path / "tiny", "llama")


def test_a_folder_without_weights_is_refused_and_a_whole_one_is_found(folder: Path) -> None:
    assert find_model(str(folder)).folder == folder.resolve()
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has no safetensors weights \(found only pytorch_model.bin, which can run"):
        find_model(str(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"no safetensors weights \(found none\); save them with"):
        find_model(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"it has no config\.json"):
        find_model(str(folder))


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "nothing", "a/b/c"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="must be 'organism', an existing folder, or 'owner/name'"):
        find_model(name)


def test_a_hub_id_while_offline_is_refused_with_the_remedy() -> None:
    with pytest.raises(ModelError, match="'someone/some-model@abc' is neither a local folder nor in the hub cache"):
        find_model("someone/some-model@abc")


def test_a_model_that_brings_code_needs_trust(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(ModelError, match="trust_remote_code: true if you trust it"):
        find_model(str(folder))
    assert find_model(str(folder), trust_remote_code=True).trust_remote_code


def test_the_identity_follows_the_bytes_and_not_the_name(folder: Path) -> None:
    first = weights_identity(find_model(str(folder)))
    moved = folder.with_name("moved")
    folder.rename(moved)
    assert weights_identity(find_model(str(moved))) == first
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = weights_identity(find_model(str(moved)))
    assert changed["weights_sha256"] != first["weights_sha256"]
    assert changed["config_sha256"] == first["config_sha256"]
