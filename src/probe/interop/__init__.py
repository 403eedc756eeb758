"""Our captures in other tools' words. Knows names and off-by-ones; knows no model and no file of ours."""

from probe.interop.layers import (
    block_before,
    hidden_states_index,
    hook_name,
    point_after_block,
    point_of_hook,
)

__all__ = ["block_before", "hidden_states_index", "hook_name", "point_after_block", "point_of_hook"]
