"""Vectors and results in other tools' words. Knows names, off-by-ones and formats; knows no model and no store."""

from probe.interop.layers import (
    block_before,
    gguf_name,
    hidden_states_index,
    hook_name,
    hookpoint,
    persona_vectors_row,
    point_after_block,
    point_of_gguf,
    point_of_hook,
    point_of_hookpoint,
    point_of_row,
)
from probe.interop.vectors import ControlVector, control_vector, directions_of

__all__ = [
    "ControlVector",
    "block_before",
    "control_vector",
    "directions_of",
    "gguf_name",
    "hidden_states_index",
    "hook_name",
    "hookpoint",
    "persona_vectors_row",
    "point_after_block",
    "point_of_gguf",
    "point_of_hook",
    "point_of_hookpoint",
    "point_of_row",
]
