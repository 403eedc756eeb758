"""Control vectors as the arrays that other tools' tensor files hold. Knows their layout; opens no torch file.

Plain safetensors: a tensor for each point under the name of TransformerLens' hook, so that the name says where it is
added. persona_vectors: one tensor ``[n_layers + 1, d_model]``, row k for ``hidden_states[k]``. lm-eval's steered model:
an entry for each hooked block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from probe.interop.layers import (
    hook_name,
    hookpoint,
    persona_vectors_row,
    point_of_hook,
    point_of_hookpoint,
    point_of_row,
)
from probe.interop.vectors import ControlVector, read_origin, written_origin
from probe.values import ProbeError

ORIGIN = "persona-probe-control-vector"
"""Key of our own in a file's metadata: JSON of the model's depth and the vector's origin."""


def write_safetensors(path: Path, vector: ControlVector) -> None:
    """One float32 tensor for each residual point, named ``blocks.k.hook_resid_pre`` (the last: ``..._post``)."""
    named = vector.named(lambda point: hook_name(point, vector.n_layers))
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in named.items()}
    save_file(arrays, path, metadata={ORIGIN: written_origin(vector)})


def read_safetensors(path: Path, *, n_layers: int | None = None) -> ControlVector:
    """A safetensors file whose tensors have the names of TransformerLens' residual hooks, ours or anybody's.

    ``n_layers`` is the number of the model's blocks, needed where the file does not say it.

    Raises:
        ProbeError: it cannot be read, a tensor has another name or more than one axis, or two are at one point; or the
            model's number of blocks is not known.
    """
    try:
        with safe_open(path, framework="numpy") as opened:
            told = (opened.metadata() or {}).get(ORIGIN, "")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ProbeError(f"{path} cannot be read as a safetensors file of vectors: {error}") from error
    blocks, origin = read_origin(told, path, n_layers)
    vectors: dict[int, np.ndarray] = {}
    for name, array in tensors.items():
        point = point_of_hook(name, blocks)
        if array.ndim != 1 or point in vectors:
            raise ProbeError(f"{path} must hold one vector for a residual point; {name} is of shape {array.shape}")
        vectors[point] = array.astype(np.float32)
    return ControlVector(blocks, vectors, origin)


def rows_of(vector: ControlVector) -> Float[np.ndarray, "row d_model"]:
    """The rows of a persona_vectors tensor.

    Rows without a vector are NaN: adding one breaks the model where everybody sees it, as zeros would not.

    Raises:
        ProbeError: a vector at the last point, which has no row.
    """
    named = vector.named(lambda point: persona_vectors_row(point, vector.n_layers))
    rows = np.full((vector.n_layers + 1, vector.d_model), np.nan, np.float32)
    for row, array in named.items():
        rows[row] = array
    return rows


def vector_of_rows(rows: Float[np.ndarray, "row d_model"]) -> tuple[ControlVector, dict[int, str]]:
    """A persona_vectors tensor as a control vector, and the rows that it leaves out, with the reason.

    The last row stands after the final norm. A row of zeros (the embedding of one last token is the same everywhere),
    or one that is not finite, holds no direction.

    Raises:
        ProbeError: the tensor has not two axes, fewer than two rows, or no row that holds a direction.
    """
    if rows.ndim != 2 or len(rows) < 2:
        raise ProbeError(f"a persona_vectors tensor is [n_layers + 1, d_model]; found shape {tuple(rows.shape)}")
    n_layers = len(rows) - 1
    vectors: dict[int, np.ndarray] = {}
    left: dict[int, str] = {}
    for row, array in enumerate(rows):
        if not np.isfinite(array).all() or not array.any():
            left[row] = f"row {row} holds no direction ({'zeros' if np.isfinite(array).all() else 'not finite'})"
            continue
        try:
            vectors[point_of_row(row, n_layers)] = array.astype(np.float32)
        except ProbeError as error:
            left[row] = str(error)
    return ControlVector(n_layers, vectors), left


def steering_of(vector: ControlVector, blocks: Sequence[str], *, coefficient: float = 1.0) -> dict[str, dict[str, Any]]:
    """lm-eval's steering: by hookpoint what is added there, ``coefficient`` times the vector.

    ``blocks`` are the names of the model's blocks below its ``base_model``. All keys are written that any version of
    lm-eval needs. Versions whose steered model knows no ``head_index`` add the last vector of a file at every hookpoint
    of it: give those one point a file.

    Raises:
        ProbeError: ``blocks`` is not as long as the model is deep, or a vector is at the embedding.
    """
    if len(blocks) != vector.n_layers:
        raise ProbeError(f"the vectors are of a model of {vector.n_layers} blocks, and the model has {len(blocks)}")
    named = vector.named(lambda point: hookpoint(point, blocks))
    return {
        name: {
            "steering_vector": np.ascontiguousarray(array, np.float32),
            "steering_coefficient": float(coefficient),
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        for name, array in named.items()
    }


def vector_of_steering(steering: Mapping[str, Mapping[str, Any]], n_layers: int) -> ControlVector:
    """lm-eval's steering as a control vector: what it adds, coefficient times vector.

    Raises:
        ProbeError: an entry does something else than add one vector to the output of a whole block.
    """
    vectors: dict[int, np.ndarray] = {}
    for name, entry in steering.items():
        action, head, bias = entry.get("action"), entry.get("head_index"), entry.get("bias")
        if action != "add" or head is not None or bias is not None:
            raise ProbeError(
                f"only steering that adds a vector to a whole block is a direction; {name} has action {action!r}"
                f"{'' if head is None else f', head {head}'}{'' if bias is None else ', a bias'}"
            )
        array = np.asarray(entry["steering_vector"], np.float32)
        if array.ndim != 1:
            raise ProbeError(f"a steering vector has one axis; that of {name} is of shape {array.shape}")
        point = point_of_hookpoint(name, n_layers)
        if point in vectors:
            raise ProbeError(f"two hookpoints of the file name the block before residual point {point}")
        vectors[point] = array * np.float32(entry.get("steering_coefficient", 1.0))
    return ControlVector(n_layers, vectors)
