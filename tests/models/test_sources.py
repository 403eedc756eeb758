"""A model is found, named by its content, or refused in one sentence."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress
from pathlib import Path

import pytest

from probe.models import ModelSource, find_model, read_shape, weights_identity
from probe.models.hf import HFBackend
from probe.prompts import load_tokenizer
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


@pytest.mark.parametrize(("named", "used"), [(5, 5), (-1, 2), (600, 2), (None, 2)])
def test_a_pad_token_outside_the_vocabulary_is_not_used(folder: Path, named: int | None, used: int) -> None:
    for file in ("config.json", "generation_config.json"):
        settings = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**settings, "pad_token_id": named, "eos_token_id": [2, 7]}))
    shape = read_shape(find_model(str(folder)))
    assert (shape.pad_id, shape.end_ids) == (used, (2, 7))


def test_a_hub_id_while_offline_is_refused_with_the_remedy() -> None:
    with pytest.raises(ModelError, match="'someone/some-model@abc' is neither a local folder nor in the hub cache"):
        find_model("someone/some-model@abc")


def test_a_model_that_brings_code_needs_trust(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(ModelError, match="trust_remote_code: true if you trust it"):
        find_model(str(folder))
    assert find_model(str(folder), trust_remote_code=True).trust_remote_code


def test_code_from_the_hub_runs_only_at_a_pinned_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = folder.parent / "snapshots" / commit
    snapshot.parent.mkdir()
    folder.rename(snapshot)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    for revision in (None, "main", "v1.0", commit[:12]):
        assert find_model("someone/plain", revision, trust_remote_code=True).folder == snapshot  # no code, no pin
    config = json.loads((snapshot / "config.json").read_text())
    (snapshot / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    for revision in (None, "main", "v1.0", commit[:12]):
        with pytest.raises(ModelError, match=f"only at a pinned commit.* set model.revision: {commit}"):
            find_model("someone/custom", revision, trust_remote_code=True)
    with pytest.raises(ModelError, match="not run unless asked"):
        find_model("someone/custom", commit)
    assert find_model(f"someone/custom@{commit}", trust_remote_code=True).revision == commit


def test_code_that_a_model_brings_is_never_run_unasked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder.parent / "modules"))
    sentinel = folder.parent / "ran"
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(sentinel)!r}).touch()\nclass Model: pass\nclass Config: pass\n"
    )
    config = json.loads((folder / "config.json").read_text())
    spoiled = {
        **config,
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    (folder / "config.json").write_text(json.dumps(spoiled))
    source = ModelSource(str(folder), None, folder)  # as if the first refusal were not there
    with pytest.raises(ModelError):
        read_shape(source)
    with pytest.raises(ModelError):
        HFBackend.load(source, dtype="float32", device="cpu", attention=None)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": ["evil.Model", "evil.Model"]}, "tokenizer_class": "EvilTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with suppress(ModelError):  # it may find a tokenizer of its own in tokenizer.json
        load_tokenizer(folder)
    assert not sentinel.exists()
    with pytest.raises(AttributeError):  # the control: asked for, the code runs (and is none that works)
        read_shape(ModelSource(str(folder), None, folder, trust_remote_code=True))
    assert sentinel.exists()


class _Evil:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.sentinel), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.pt", "model.pth", "training_args.bin"])
def test_a_pickle_beside_or_instead_of_the_weights_is_never_opened(folder: Path, name: str) -> None:
    sentinel, evil = folder.parent / "ran", pickle.dumps(_Evil(folder.parent / "ran"))
    pickle.loads(evil).close()  # noqa: S301 - the control: whoever unpickles it leaves the sentinel
    sentinel.unlink()
    (folder / name).write_bytes(evil)
    source = find_model(str(folder))
    HFBackend.load(source, dtype="float32", device="cpu", attention=None)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"which can run code when read\); save them with model.save_pretrained"):
        find_model(str(folder))
    with pytest.raises(ModelError, match="does not load as a decoder"):  # as if that refusal were not there
        HFBackend.load(source, dtype="float32", device="cpu", attention=None)
    assert not sentinel.exists()


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


def test_code_that_a_model_may_run_is_part_of_its_identity(folder: Path) -> None:
    plain = weights_identity(find_model(str(folder)))
    code = folder / "modeling_own.py"
    code.write_text("scale = 1\n")
    assert weights_identity(find_model(str(folder))) == plain  # the control: code that is not run is nothing to it
    first = weights_identity(find_model(str(folder), trust_remote_code=True))
    assert {name: value for name, value in first.items() if name != "code_sha256"} == plain
    code.write_text("scale = 2\n")
    assert weights_identity(find_model(str(folder), trust_remote_code=True))["code_sha256"] != first["code_sha256"]
