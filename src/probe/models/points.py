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


def points_of(streams: tuple[str, ...], layers: tuple[int, ...], n_layers: int) -> tuple[HookPoint, ...]:
    """The hook points of some streams.

    ``layers`` are residual points, in their order; of the other streams they are the blocks of these numbers, rising,
    as far as there are such blocks.
    """
    blocks = tuple(layer for layer in sorted(layers) if layer < n_layers)
    return tuple(HookPoint(stream, layer) for stream in streams for layer in (layers if stream == "resid" else blocks))


def residual_points(layers: tuple[int, ...]) -> tuple[HookPoint, ...]:
    """The hook points of some residual points."""
    return tuple(HookPoint("resid", layer) for layer in layers)
