"""The one mapping between residual points and other tools' layers. Knows names and off-by-ones; knows no model.

A residual point is 0..L for L blocks: 0 the embedding, k the output of block k-1, L before the final norm.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from probe.values import ProbeError

_HOOK = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")
_DIRECTION = re.compile(r"direction\.(\d+)")
_BLOCK = re.compile(r"(?:[A-Za-z_]\w*\.)+(\d+)")


def hook_name(point: int, n_layers: int) -> str:
    """The TransformerLens name of a residual point: ``blocks.k.hook_resid_pre``, and for the last one ``..._post``.

    Raises:
        ProbeError: the model has no such point.
    """
    _require(point, n_layers)
    if point == n_layers:
        return f"blocks.{n_layers - 1}.hook_resid_post"
    return f"blocks.{point}.hook_resid_pre"


def point_of_hook(name: str, n_layers: int) -> int:
    """The residual point of ``blocks.k.hook_resid_pre`` (k) or ``blocks.k.hook_resid_post`` (k + 1).

    Raises:
        ProbeError: the name is not of the residual stream, or the model has no such block.
    """
    match = _HOOK.fullmatch(name)
    if match is None or int(match[1]) >= n_layers:
        raise ProbeError(
            f"a residual hook is blocks.0 to blocks.{n_layers - 1} with .hook_resid_pre or .hook_resid_post; "
            f"found {name!r}"
        )
    return int(match[1]) + (match[2] == "post")


def hidden_states_index(point: int, n_layers: int) -> int:
    """The index of a residual point in transformers' ``hidden_states``.

    Raises:
        ProbeError: the last point, for ``hidden_states[-1]`` stands after the final norm; or no such point.
    """
    _require(point, n_layers)
    if point == n_layers:
        raise ProbeError(
            f"residual point {point} has no index in hidden_states: the last entry there stands after the final norm"
        )
    return point


def point_after_block(block: int, n_layers: int) -> int:
    """The residual point that a block writes: where a control vector for block N is added (llama.cpp, repeng)."""
    _require(block + 1, n_layers)
    return block + 1


def block_before(point: int, n_layers: int) -> int:
    """The 0-based block whose output a residual point is.

    Raises:
        ProbeError: point 0, the embedding, which no block writes; or no such point.
    """
    _require(point, n_layers)
    if point == 0:
        raise ProbeError("residual point 0 is the embedding; no block writes it")
    return point - 1


def gguf_name(point: int, n_layers: int) -> str:
    """``direction.N`` of a GGUF control vector: added to the output of block N = point - 1 (llama.cpp, repeng).

    Raises:
        ProbeError: point 0 or 1, for the embedding has no name there and llama.cpp refuses ``direction.0``; or no such
            point.
    """
    if block_before(point, n_layers) == 0:
        raise ProbeError(
            "residual point 1 is the output of block 0, and llama.cpp refuses a control vector for block 0 "
            "(direction.0); choose a later point"
        )
    return f"direction.{point - 1}"


def point_of_gguf(name: str, n_layers: int) -> int:
    """The residual point where ``direction.N`` is added: N + 1.

    Raises:
        ProbeError: another name, ``direction.0``, or a model without that block.
    """
    match = _DIRECTION.fullmatch(name)
    if match is None or not 0 < int(match[1]) < n_layers:
        raise ProbeError(
            f"a control vector for {n_layers} blocks has tensors direction.1 to direction.{n_layers - 1}, each added "
            f"to the output of the block of that number; found {name!r}"
        )
    return point_after_block(int(match[1]), n_layers)


def persona_vectors_row(point: int, n_layers: int) -> int:
    """The row of a persona_vectors tensor ``[n_layers + 1, d_model]``: the index in ``hidden_states``, so the point.

    Its tools add row k to the output of block k - 1, which is point k too.

    Raises:
        ProbeError: the last point, for the last row stands after the final norm; or no such point.
    """
    return hidden_states_index(point, n_layers)


def point_of_row(row: int, n_layers: int) -> int:
    """The residual point of a row of a persona_vectors tensor.

    Raises:
        ProbeError: the last row, which stands after the final norm and is no residual point; or no such row.
    """
    _require(row, n_layers)
    return hidden_states_index(row, n_layers)


def hookpoint(point: int, blocks: Sequence[str]) -> str:
    """The module whose output a residual point is, for lm-eval's steered model: ``layers.3``, ``h.3``, ...

    ``blocks`` are the names of the model's blocks in order, as its ``base_model`` names them.

    Raises:
        ProbeError: point 0, the embedding, which no block writes; or no such point.
    """
    return blocks[block_before(point, len(blocks))]


def point_of_hookpoint(name: str, n_layers: int) -> int:
    """The residual point that a hook on the output of a block writes: ``layers.3`` is point 4.

    Raises:
        ProbeError: the name is not that of a whole block (``layers.3.mlp``), or the model has no such block.
    """
    match = _BLOCK.fullmatch(name)
    if match is None or int(match[1]) >= n_layers:
        raise ProbeError(
            f"a hookpoint on the residual stream is a whole block, as in layers.0 to layers.{n_layers - 1}; "
            f"found {name!r}"
        )
    return point_after_block(int(match[1]), n_layers)


def _require(point: int, n_layers: int) -> None:
    if not 0 <= point <= n_layers:
        raise ProbeError(f"a model of {n_layers} blocks has residual points 0 to {n_layers}; found {point}")
