"""Where a model lies and what its files are. Knows folders and the hub; imports no torch, opens no weight as data."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.organism import CHECKPOINT
from probe.values import ModelError, sha256_of

_NEEDED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_NOT_NEEDED = ["consolidated*", "original/*"]
_BLOB = re.compile(r"^[0-9a-f]{64}$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")


@dataclass(frozen=True)
class ModelSource:
    """A model's local folder, and the name and revision it was asked for by."""

    id: str
    revision: str | None
    folder: Path
    trust_remote_code: bool = False

    @property
    def weight_files(self) -> list[Path]:
        """The files that transformers loads; a folder may hold the same weights in another layout beside them."""
        every = sorted(self.folder.glob("*.safetensors"))
        whole, index = self.folder / "model.safetensors", self.folder / "model.safetensors.index.json"
        if whole in every:
            return [whole]
        if not index.exists():
            return every
        try:
            named = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} names no files of weights: {error}; fetch the model again") from error
        return [path for path in every if path.name in named]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on disk."""
        return sum(path.stat().st_size for path in self.weight_files)

    @property
    def is_organism(self) -> bool:
        """Whether this is the embedded model, for which a planned truth exists."""
        return self.folder == CHECKPOINT


def find_model(model_id: str, revision: str | None = None, *, trust_remote_code: bool = False) -> ModelSource:
    """Resolve ``organism``, a local folder, or ``owner/name[@revision]`` on the hub to a local folder.

    Raises:
        ModelError: nothing is there, it is not reachable, or it has no safetensors weights.
    """
    if model_id == "organism":
        return ModelSource("organism", None, CHECKPOINT)
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        source = ModelSource(model_id, None, folder.resolve(), trust_remote_code)
    elif model_id.startswith((".", "/", "~")) or model_id.count("/") != 1:
        raise ModelError(
            f"model.id must be 'organism', an existing folder, or 'owner/name' on the hub; {model_id!r} is none of them"
        )
    else:
        name, _, pinned = model_id.partition("@")
        revision = pinned or revision
        source = ModelSource(name, revision, _download(name, revision, trust_remote_code), trust_remote_code)
    _require_weights(source)
    return source


def _download(name: str, revision: str | None, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    shown = f"{name}@{revision}" if revision else name
    try:
        wanted = [*_NEEDED, "*.py"] if trust_remote_code else _NEEDED
        folder = snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=_NOT_NEEDED)
        return Path(folder)
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"model {shown!r} is neither a local folder nor in the hub cache, and the hub cannot be reached "
            "(offline?); download it where there is a network, or give model.id a local folder"
        ) from error
    except HFValidationError as error:
        raise ModelError(f"model.id {shown!r} is neither an existing folder nor a valid hub name") from error
    except HfHubHTTPError as error:
        raise ModelError(
            f"the hub refused model {shown!r}: {str(error).splitlines()[0]}; check the name, the revision and HF_TOKEN"
        ) from error
    except OSError as error:
        raise ModelError(
            f"the hub cannot be reached for model {shown!r} ({error}); give model.id a local folder"
        ) from error


def _require_weights(source: ModelSource) -> None:
    folder = source.folder
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is not a model folder: it has no config.json")
    if not list(folder.glob("*.safetensors")):
        other = [path.name for suffix in ("*.bin", "*.pt", "*.pth") for path in folder.glob(suffix)]
        found = f"only {other[0]}, which can run code when read" if other else "none"
        raise ModelError(
            f"{folder} has no safetensors weights (found {found}); "
            "save them with model.save_pretrained(folder), which writes safetensors"
        )
    if "auto_map" in _read_config(folder):
        _require_trust(source)


def _require_trust(source: ModelSource) -> None:
    """A model's own Python code runs only where that was asked for, and from the hub only code that cannot change."""
    if not source.trust_remote_code:
        raise ModelError(
            f"{source.folder} brings its own Python code (auto_map), which is not run unless asked; "
            "set model.trust_remote_code: true if you trust it"
        )
    local = Path(source.id).expanduser().is_dir()
    if not local and not _COMMIT.match(source.revision or ""):
        raise ModelError(
            f"{source.id} brings its own Python code (auto_map), which runs only at a pinned commit, and "
            f"{source.revision or 'no revision'} may move; read the code and set model.revision: {source.folder.name}"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}/config.json cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{folder}/config.json holds no mapping")
    return config


def weights_identity(source: ModelSource) -> dict[str, str]:
    """Hashes of config and weights; the weights' is over the list of (file name, sha256), as is that of trusted code.

    In a hub cache the files are links to blobs named by their sha256, which is taken as it is. Other folders are read
    once (about 2 GB/s) and remembered by path, size, modification time and inode under ``HF_HOME``.
    """
    memo = _Memo()
    files = sorted(source.folder.glob("*.safetensors"))
    hashes = [[path.name, memo.sha256(path)] for path in files]
    code = sorted(source.folder.glob("*.py")) if source.trust_remote_code else []
    own_code = {"code_sha256": sha256_of([[path.name, _digest(path)] for path in code])} if code else {}
    memo.save()
    config = _read_config(source.folder)
    for key in ("_name_or_path", "transformers_version"):
        config.pop(key, None)
    return {"weights_sha256": sha256_of(hashes), "config_sha256": sha256_of(config), **own_code}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Memo:
    """sha256 of files, remembered while size, modification time and inode stay the same."""

    def __init__(self) -> None:
        from huggingface_hub import constants

        self._path = Path(constants.HF_HOME) / "persona-probe" / "weights.json"
        try:
            self._known = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            self._known = {}
        self._changed = False

    def sha256(self, path: Path) -> str:
        target = path.resolve()
        if target.parent.name == "blobs" and _BLOB.match(target.name):
            return target.name
        stat = target.stat()
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = self._known.get(str(target))
        if known and known[0] == stamp:
            return str(known[1])
        digest = _digest(target)
        self._known[str(target)] = [stamp, digest]
        self._changed = True
        return digest

    def save(self) -> None:
        if not self._changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(self._known), "utf-8")
            temporary.replace(self._path)
        except OSError:
            return  # a memo that cannot be kept costs time, not correctness
