"""GGUF control vectors, as llama.cpp and repeng read them. Knows that format; knows no model and no direction.

Tensor ``direction.N`` (F32) is added to the output of block N. ``controlvector.layer_count`` counts the tensors, as
both tools write it, and is not the model's number of blocks. llama.cpp reads the tensors alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from probe.interop.layers import gguf_name, point_of_gguf
from probe.interop.vectors import ControlVector, read_origin, written_origin
from probe.values import ProbeError

ARCHITECTURE = "controlvector"
ORIGIN = "controlvector.persona_probe"
"""Key of our own: JSON of a control vector's origin, which other tools pass over."""

_DAMAGED = (ValueError, IndexError, KeyError, TypeError, UnicodeDecodeError, OverflowError)


def write_gguf(path: Path, vector: ControlVector, *, model_hint: str) -> None:
    """Write a control vector. ``model_hint`` says which model it is for; no loader checks it.

    Raises:
        ProbeError: the package ``gguf`` is not installed, or a point has no place in this format.
    """
    gguf = _library()
    named = vector.named(lambda point: gguf_name(point, vector.n_layers))
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(named))
    writer.add_string(ORIGIN, written_origin(vector))
    for name, array in named.items():
        writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path, *, n_layers: int | None = None) -> ControlVector:
    """A control vector file. ``n_layers`` is the number of the model's blocks, needed where the file does not say it.

    Raises:
        ProbeError: the package ``gguf`` is not installed, the file is no control vector, a tensor is not F32 with one
            axis, or the model's number of blocks is not known.
    """
    gguf = _library()
    try:
        reader = gguf.GGUFReader(path)
        architecture = _text(reader, "general.architecture")
        told = _text(reader, ORIGIN)
        tensors = [(str(one.name), one.tensor_type, np.array(one.data)) for one in reader.tensors]
    except (*_DAMAGED, OSError) as error:
        raise ProbeError(f"{path} cannot be read as a GGUF file: {error}") from error
    if architecture != ARCHITECTURE:
        raise ProbeError(
            f"a control vector's general.architecture is {ARCHITECTURE!r}; {path} says {architecture or 'nothing'!r}"
        )
    blocks, origin = read_origin(told, path, n_layers)
    vectors: dict[int, np.ndarray] = {}
    for name, kind, array in tensors:
        if kind != gguf.GGMLQuantizationType.F32 or array.ndim != 1:
            raise ProbeError(f"a control vector's tensors are F32 with one axis; {name} of {path} is not; convert it")
        vectors[point_of_gguf(name, blocks)] = array
    return ControlVector(blocks, vectors, origin)


def _text(reader: Any, key: str) -> str:
    field = reader.get_field(key)
    return "" if field is None else str(field.contents())


def _library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ProbeError('gguf is not installed; run: pip install "persona-probe[gguf]"') from error
    return gguf
