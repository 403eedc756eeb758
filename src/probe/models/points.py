"""Where in a forward pass something is read or edited. Knows names; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class HookPoint:
    """A stream and a layer of it.

    ``layer`` of stream ``resid`` is a residual point 0..L; of the other streams it is a block 0..L-1.
    """

    stream: str
    layer: int


def residual_points(layers: tuple[int, ...]) -> tuple[HookPoint, ...]:
    """The hook points of some residual points."""
    return tuple(HookPoint("resid", layer) for layer in layers)
