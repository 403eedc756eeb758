"""What a persona does inside: directions and shifts of the residual stream. Knows arrays and cases; knows no model."""

from probe.mechanism.activations import Activations, SiteRows, in_memory
from probe.mechanism.geometry.shift import (
    PairedResiduals,
    Read,
    ShiftSize,
    pair_residuals,
    shift_by_layer,
    shift_size,
    sign_flip_floor,
    squared_norm_of_mean,
)
from probe.mechanism.splits import families_of, fold_of, part_of, require_apart

__all__ = [
    "Activations",
    "PairedResiduals",
    "Read",
    "ShiftSize",
    "SiteRows",
    "families_of",
    "fold_of",
    "in_memory",
    "pair_residuals",
    "part_of",
    "require_apart",
    "shift_by_layer",
    "shift_size",
    "sign_flip_floor",
    "squared_norm_of_mean",
]
