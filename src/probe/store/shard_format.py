"""A safetensors file whose name is the hash of its header. Knows bytes and checksums; knows nothing of cells."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from probe.values import CorruptShard, canonical_json, sha256_of

MAX_HEADER_BYTES = 64 * 2**20
DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}

REMEDY = "move it out of the store and run the same command again: exactly its rows are captured anew"


@dataclass(frozen=True)
class TensorSpec:
    """Dtype, shape and the bytes ``[start, stop)`` of one tensor, counted from the beginning of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry along the first axis."""
        return self.dtype.itemsize * math.prod(self.shape[1:])


@dataclass(frozen=True, eq=False)
class Header:
    """A parsed and validated header; ``name`` is the hash of its canonical JSON."""

    name: str
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorSpec]


@dataclass(frozen=True, eq=False)
class Encoded:
    """A file ready to be written: its name without suffix, and its parts in order."""

    name: str
    parts: tuple[bytes | memoryview, ...]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(map(len, self.parts))


def encode(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Encoded:
    """Lay out tensors without holes, widest dtype first so that each is aligned, and hash each into the header.

    The header holds every tensor's sha256, so that the file's name commits to every byte of its content.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    digests = {name: hashlib.sha256(as_bytes(arrays[name])).hexdigest() for name in order}
    header: dict[str, Any] = {"__metadata__": {**metadata, "sha256": canonical_json(digests)}}
    offset = 0
    for name in order:
        array = arrays[name]
        span = [offset, offset + array.nbytes]
        header[name] = {"dtype": _CODES[array.dtype], "shape": list(array.shape), "data_offsets": span}
        offset = span[1]
    text = canonical_json(header).encode("utf-8", "strict")
    text += b" " * (-len(text) % 8)
    parts: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
    parts += [as_bytes(arrays[name]) for name in order]
    return Encoded(sha256_of(header)[:32], tuple(parts))


def read_header(path: Path) -> Header:
    """Parse and check a header, reading nothing else; hostile lengths, offsets and shapes cost no memory.

    Raises:
        CorruptShard: the file is not a whole safetensors file of the dtypes that a store uses.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise corrupt(path, f"its header claims {length} bytes and the file has {size}")
            text = file.read(length)
    except OSError as error:
        raise corrupt(path, f"it cannot be read ({error.strerror})") from error
    try:
        header = json.loads(text.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        metadata, tensors = _checked(header)
    except (ValueError, RecursionError) as error:
        raise corrupt(path, f"its header is not valid ({str(error)[:200]})") from error
    end = 0
    for name, spec in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if spec.start != end:
            raise corrupt(path, f"tensor {name!r} begins at byte {spec.start} of the data, not {end}")
        end = spec.stop
    if size != 8 + length + end:
        raise corrupt(path, f"its size {size} is not {8 + length + end}, which its header says")
    base = 8 + length
    placed = {n: TensorSpec(t.dtype, t.shape, base + t.start, base + t.stop) for n, t in tensors.items()}
    return Header(sha256_of(header)[:32], metadata, placed)


def row_crcs(array: np.ndarray) -> np.ndarray:
    """crc32 of each entry along the first axis, int64."""
    return np.fromiter(map(zlib.crc32, row_bytes(array)), np.int64, len(array))


def ragged_crcs(flat: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """crc32 of each run ``flat[offsets[i]:offsets[i + 1]]``, int64."""
    runs = (as_bytes(flat[start:stop]) for start, stop in itertools.pairwise(offsets.tolist()))
    return np.fromiter(map(zlib.crc32, runs), np.int64, len(offsets) - 1)


def row_bytes(array: np.ndarray) -> Iterator[memoryview]:
    """The bytes of each entry along the first axis, without a copy."""
    content, width = as_bytes(array), array.itemsize * math.prod(array.shape[1:])
    return (content[row * width : (row + 1) * width] for row in range(len(array)))


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def corrupt(path: Path, found: str) -> CorruptShard:
    """The sentence for a damaged file."""
    return CorruptShard(f"{path.name} is damaged: {found}; {REMEDY} ({path})")


def _checked(header: Any) -> tuple[dict[str, str], dict[str, TensorSpec]]:
    if not isinstance(header, dict):
        raise ValueError("it is not a mapping")
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ is not a mapping of strings")
    return metadata, {name: _spec(name, entry) for name, entry in header.items() if name != "__metadata__"}


def _spec(name: str, entry: Any) -> TensorSpec:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} has other keys than dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    shape, span = entry["shape"], entry["data_offsets"]
    if dtype is None or not _naturals(shape) or not shape or not _naturals(span) or len(span) != 2:
        raise ValueError(f"tensor {name!r} has no valid dtype, shape or data_offsets")
    if span[1] - span[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"tensor {name!r} has bytes {span} for shape {shape}")
    return TensorSpec(dtype, tuple(shape), span[0], span[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 8 and all(type(n) is int and 0 <= n < 2**62 for n in value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key stands twice")
    return mapping


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
