"""A safetensors file whose name is the hash of its header. Knows bytes and checksums; knows nothing of cells."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from probe.store.checksums import crc32
from probe.values import CorruptShard, canonical_json, sha256_of

MAX_HEADER_BYTES = 64 * 2**20
DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
}
_TENSOR_KEYS = {"dtype", "shape", "data_offsets"}
_CODES = {dtype: code for code, dtype in DTYPES.items()}

REMEDY = "`probe store repair` moves it out of the store, and the same command captures exactly its rows again"


class TensorSpec(NamedTuple):
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


def encode(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], known: Mapping[str, str] | None = None
) -> Encoded:
    """Lay out tensors without holes, widest dtype first so that each is aligned, and hash each into the header.

    The header holds every tensor's sha256, so that the file's name commits to every byte of its content. ``known``
    are digests that the caller has computed already.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    known = known or {}
    digests = {name: known.get(name) or hashlib.sha256(as_bytes(arrays[name])).hexdigest() for name in order}
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


def parse_header(text: bytes, size: int) -> Header:
    """Check a header against the size of its file; hostile lengths, offsets and shapes cost no memory.

    Raises:
        ValueError: it is not the header of a whole safetensors file of the dtypes that a store uses.
        RecursionError: it is nested too deeply.
    """
    header = json.loads(text.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    metadata, tensors = _checked(header, end := 8 + len(text))
    for start, stop, name in sorted((spec.start, spec.stop, name) for name, spec in tensors.items()):
        if start != end:
            raise ValueError(f"tensor {name!r} begins at byte {start} of the file, not {end}")
        end = stop
    if size != end:
        raise ValueError(f"its size {size} is not {end}, which its header says")
    return Header(header_name(text), metadata, tensors)


def header_name(text: bytes) -> str:
    """The name that a header gives its file: 32 hex digits of the sha256 of its JSON without the padding."""
    return hashlib.sha256(text.rstrip(b" ")).hexdigest()[:32]


def row_crcs(array: np.ndarray) -> np.ndarray:
    """crc32 of each entry along the first axis, int64."""
    return np.fromiter(map(crc32, row_bytes(array)), np.int64, len(array))


def ragged_crcs(flat: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """crc32 of each run ``flat[offsets[i]:offsets[i + 1]]``, int64."""
    runs = (as_bytes(flat[start:stop]) for start, stop in itertools.pairwise(offsets.tolist()))
    return np.fromiter(map(crc32, runs), np.int64, len(offsets) - 1)


def row_bytes(array: np.ndarray) -> Iterator[memoryview]:
    """The bytes of each entry along the first axis, without a copy."""
    content, width = as_bytes(array), array.itemsize * math.prod(array.shape[1:])
    return (content[row * width : (row + 1) * width] for row in range(len(array)))


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def damage(name: str, found: str, where: str) -> CorruptShard:
    """The sentence for a damaged file."""
    return CorruptShard(f"{name} is damaged: {found}; {REMEDY} ({where})")


def _checked(header: Any, base: int) -> tuple[dict[str, str], dict[str, TensorSpec]]:
    if not isinstance(header, dict):
        raise ValueError("it is not a mapping")
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ is not a mapping of strings")
    return metadata, {name: _spec(name, entry, base) for name, entry in header.items() if name != "__metadata__"}


def _spec(name: str, entry: Any, base: int) -> TensorSpec:
    if not isinstance(entry, dict) or entry.keys() != _TENSOR_KEYS:
        raise ValueError(f"tensor {name!r} has other keys than dtype, shape and data_offsets")
    code, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None or not _naturals(shape) or not _naturals(span) or len(span) != 2:
        raise ValueError(f"tensor {name!r} has no valid dtype, shape or data_offsets")
    start, stop = span
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"tensor {name!r} has bytes {span} for shape {shape}")
    return TensorSpec(dtype, tuple(shape), base + start, base + stop)


def _naturals(value: Any) -> bool:
    """Whether it is a list of one to eight integers that are not negative; true and false are none."""
    return type(value) is list and 0 < len(value) <= 8 and {*map(type, value)} == {int} and min(value) >= 0


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key stands twice")
    return mapping


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
