"""Activations that another tool saved. Knows the names and formats of arrays; knows nothing of cells or stores.

An array is called ``resid.<position>.L<nn>``, where nn is the residual point, or ``resid_post.<position>.L<nn>`` and
``resid_pre.<position>.L<nn>``, where nn is the block: the output of block b is point b + 1, its input is point b.
``rows.<position>`` holds the line of the table that each entry belongs to, where they are not all lines in order.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from probe.values import STREAMS, ProbeError

NAMING = "resid.<position>.L<nn> (nn the residual point), resid_post.<position>.L<nn> (nn the block) or rows.<position>"
SUFFIXES = (".npy", ".safetensors", ".pt", ".pth")

_NAME = re.compile(r"(?P<stream>resid|resid_pre|resid_post)\.(?P<position>[\w-]+)\.L(?P<layer>\d{1,4})")
_ROWS = re.compile(r"rows\.(?P<position>[\w-]+)")
_BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, eq=False)
class SavedArray:
    """One array in a file, not yet read; ``source[start:stop]`` gives entries along its first axis."""

    name: str
    where: str
    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    source: Any = field(repr=False)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Entries ``[start, stop)``."""
        return np.asarray(self.source[start:stop])

    def take(self, entries: np.ndarray) -> np.ndarray:
        """Entries in the order asked; those that follow each other are read at once."""
        cuts = np.flatnonzero(np.diff(entries) != 1) + 1
        runs = np.split(entries, cuts) if entries.size else []
        parts = [self.read(int(run[0]), int(run[-1]) + 1) for run in runs]
        return np.concatenate(parts) if parts else self.read(0, 0)


@dataclass(frozen=True, eq=False)
class SavedActivations:
    """``resid[position][layer]``, each ``[entries, d_model]``, and ``rows[position]`` where given."""

    resid: Mapping[str, Mapping[int, SavedArray]]
    rows: Mapping[str, SavedArray]


def find_activations(paths: Sequence[Path], name_map: Path | None = None) -> SavedActivations:
    """The arrays in files and folders (not in folders inside these); of a ``name_map``, those that it lists.

    Raises:
        ProbeError: a file cannot be read, a name breaks the naming rule, or one array is there twice.
    """
    if not paths and name_map is None:
        raise ProbeError("an import needs arrays: name files or folders with --activations, or list them with --map")
    found = list(_mapped(name_map)) if name_map else [array for path in paths for array in _in_path(path)]
    resid: dict[str, dict[int, SavedArray]] = {}
    rows: dict[str, SavedArray] = {}
    for array in found:
        if match := _ROWS.fullmatch(array.name):
            if other := rows.get(match["position"]):
                raise ProbeError(f"an array is given once; {array.name} stands in {other.where} and in {array.where}")
            rows[match["position"]] = array
            continue
        position, layer = _site(array)
        layers = resid.setdefault(position, {})
        if layer in layers:
            raise ProbeError(
                f"residual point {layer} at {position} is given once; found {layers[layer].where} and {array.where}"
            )
        layers[layer] = array
    if not resid:
        names = ", ".join(map(str, [name_map] if name_map else paths))
        raise ProbeError(
            f"activations are arrays called {NAMING} in {', '.join(SUFFIXES)} files; found none in {names}"
        )
    return SavedActivations(resid, rows)


def _site(array: SavedArray) -> tuple[str, int]:
    match = _NAME.fullmatch(array.name)
    if match is None and array.name.split(".")[0] in STREAMS[1:]:
        raise ProbeError(
            f"residual points alone can be imported in this version; found {array.name!r} in {array.where}: move it "
            "away, or name the arrays that are wanted with --map"
        )
    if match is None:
        near = difflib.get_close_matches(array.name, ["resid.prompt_end.L00", "resid.answer.L00", "rows.answer"], n=1)
        hint = f" (as in {near[0]!r})" if near else ""
        raise ProbeError(
            f"an array is called {NAMING}{hint}; found {array.name!r} in {array.where}: rename it, move it away, or "
            "name the arrays with --map"
        )
    return match["position"], int(match["layer"]) + (match["stream"] == "resid_post")


def _mapped(name_map: Path) -> Iterator[SavedArray]:
    """Arrays by a YAML or JSON mapping ``name: file`` or ``name: {file: ..., key: ...}``, relative to that file."""
    import yaml

    try:
        listed = yaml.safe_load(name_map.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ProbeError(f"there is no file {name_map}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ProbeError(f"{name_map} is no YAML or JSON file: {str(error).splitlines()[0]}") from error
    if not isinstance(listed, dict) or not listed:
        raise ProbeError(f"{name_map} is a mapping of names to files, as in 'resid.prompt_end.L07: layer7.npy'")
    opened: dict[Path, dict[str, SavedArray]] = {}
    for name, entry in listed.items():
        told = entry if isinstance(entry, dict) else {"file": entry}
        if not told.keys() <= {"file", "key"} or not isinstance(told.get("file"), str):
            raise ProbeError(
                f"{name_map}: {name!r} has a file, and a key where the file holds several; found {entry!r}"
            )
        file = name_map.parent / told["file"]
        if file not in opened:
            opened[file] = {array.name: array for array in _in_file(file)}
        arrays = opened[file]
        key = str(told.get("key", next(iter(arrays), "")))
        if key not in arrays or ("key" not in told and len(arrays) > 1):
            raise ProbeError(
                f"{name_map}: {name!r} names one array of {file}, which holds {', '.join(list(arrays)[:6])}"
            )
        array = arrays[key]
        yield SavedArray(str(name), array.where, array.file, array.shape, array.dtype, array.source)


def _in_path(path: Path) -> Iterator[SavedArray]:
    if path.is_dir():
        for file in sorted(file for file in path.iterdir() if file.suffix in SUFFIXES):
            yield from _in_file(file)
    else:
        yield from _in_file(path)


def _in_file(file: Path) -> Iterator[SavedArray]:
    if not file.is_file():
        raise ProbeError(f"there is no file {file}")
    readers = {".npy": _npy, ".safetensors": _safetensors, ".pt": _torch_file, ".pth": _torch_file}
    if file.suffix not in readers:
        raise ProbeError(f"activations are read from {', '.join(SUFFIXES)}; found {file}")
    return readers[file.suffix](file)


def _npy(file: Path) -> Iterator[SavedArray]:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ProbeError(f"{file} is no array of numbers in numpy's format: {error}") from error
    if array.dtype.kind == "V":
        raise ProbeError(
            f"{file} has numpy dtype {array.dtype.str}, which says no number format (np.save does so to bfloat16); "
            "save it as safetensors, or as float32"
        )
    yield SavedArray(file.stem, str(file), file, array.shape, array.dtype, array)


def _safetensors(file: Path) -> Iterator[SavedArray]:
    from safetensors import SafetensorError, safe_open

    try:
        opened: Any = safe_open(file, framework="numpy")
        slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ProbeError(f"{file} is no whole safetensors file: {error}") from error
    dtypes = {"F32": "f4", "F64": "f8", "F16": "f2", "I32": "i4", "I64": "i8"}
    for key, part in slices.items():
        code, shape = part.get_dtype(), tuple(part.get_shape())
        dtype = _BF16 if code == "BF16" else np.dtype(dtypes.get(code, "V1"))
        if dtype.kind == "V" and code != "BF16":
            raise ProbeError(f"{file}: tensor {key!r} has dtype {code}; activations are floating-point numbers")
        name = file.stem if len(slices) == 1 and not _known(key) else key
        yield SavedArray(name, f"{file} ({key})", file, shape, dtype, part)


def _torch_file(file: Path) -> Iterator[SavedArray]:
    """A tensor, or a mapping of names to tensors; nothing else is unpickled."""
    from _pickle import UnpicklingError  # what torch raises where a file asks for more than weights

    import torch

    try:
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise ProbeError(
            f"{file} holds more than tensors, and what could run code is never unpickled; save a mapping of names to "
            "tensors, or safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ProbeError(f"{file} is no file of torch.save: {str(error).splitlines()[0]}") from error
    tensors = saved if isinstance(saved, dict) else {file.stem: saved}
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise ProbeError(f"{file} holds a tensor or a mapping of names to tensors; found {key!r}: {type(tensor)}")
        bits = tensor.detach()
        is_bf16 = bits.dtype == torch.bfloat16
        try:
            array = bits.view(torch.int16).numpy().view(_BF16) if is_bf16 else bits.numpy()
        except (TypeError, RuntimeError) as error:
            raise ProbeError(
                f"{file} holds {key!r} as {bits.dtype}, {bits.layout}; save it as a dense tensor of float32 or bfloat16"
            ) from error
        name = file.stem if len(tensors) == 1 and not _known(key) else key
        where = str(file) if saved is tensor else f"{file} ({key})"
        yield SavedArray(name, where, file, array.shape, array.dtype, array)


def _known(name: str) -> bool:
    return bool(_NAME.fullmatch(name) or _ROWS.fullmatch(name))
