"""What a persona does inside: directions and shifts of the residual stream. Knows arrays and cases; knows no model."""

from probe.mechanism.shift import (
    PairedResiduals,
    Read,
    ShiftSize,
    pair_residuals,
    persona_direction,
    shift_by_layer,
    shift_size,
    sign_flip_floor,
    squared_norm_of_mean,
)

__all__ = [
    "PairedResiduals",
    "Read",
    "ShiftSize",
    "pair_residuals",
    "persona_direction",
    "shift_by_layer",
    "shift_size",
    "sign_flip_floor",
    "squared_norm_of_mean",
]
