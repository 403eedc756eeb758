"""The one mapping between residual points and other tools' layers. Knows names and off-by-ones; knows no model.

A residual point is 0..L for L blocks: 0 the embedding, k the output of block k-1, L before the final norm.
"""

from __future__ import annotations

import re

from probe.values import ProbeError

_HOOK = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


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


def _require(point: int, n_layers: int) -> None:
    if not 0 <= point <= n_layers:
        raise ProbeError(f"a model of {n_layers} blocks has residual points 0 to {n_layers}; found {point}")
