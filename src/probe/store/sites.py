"""Which sites a store holds: streams, layers, positions, answer sites. Knows shards' headers; reads no activations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from probe.store.manifests import DTYPES as MANIFEST_DTYPES
from probe.store.manifests import Layout
from probe.store.names import UnknownName, require_known
from probe.store.packing import ACTIVATIONS, in_order, tensor_name
from probe.store.shard_format import DTYPES
from probe.store.shards import Shard
from probe.values import StoreError

_BY_NAME = dict(zip(MANIFEST_DTYPES, (DTYPES["F32"], DTYPES["BF16"]), strict=True))


NEEDS_ROWS = (
    "this needs the residual of every row, and the store keeps sums over cases (capture.keep: moments), which `probe "
    "directions` reads; labels and answers are all there. To have rows, capture into another store with keep: rows"
)


@dataclass(frozen=True, eq=False)
class SiteTensors:
    """The tensors of some layers of one stream at one position, with their width and dtype on disk."""

    tensors: tuple[str, ...]
    d_model: int
    dtype: np.dtype[Any]


@dataclass(frozen=True, eq=False)
class Sites:
    """What was captured, as the manifest says it, and beyond that as the shards' headers do."""

    layout: Layout
    shards: tuple[Shard, ...]

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that were captured, ``resid`` first."""
        return tuple(stream.name for stream in self.layout.streams)

    def layers(self, stream: str) -> list[int]:
        """The captured layers of a stream, rising; of ``resid`` these are residual points, else blocks.

        Raises:
            UnknownName: the stream was not captured.
        """
        listed = {own.name: own.layers for own in self.layout.streams}
        if stream in listed:
            return sorted(listed[stream])
        found = [match for match in self._tensors if match["stream"] == stream]
        if not found:
            require_known("stream", stream, in_order([*listed, *(match["stream"] for match in self._tensors)]))
        return sorted({int(match["layer"]) for match in found})

    def site(self, stream: str, position: str, layers: Sequence[int]) -> SiteTensors:
        """The tensors of some layers at one position.

        Raises:
            UnknownName: the stream, a layer or the position was not captured.
            StoreError: the store keeps no rows.
        """
        if (asked := (stream, position, tuple(layers))) not in self._found:
            self._found[asked] = self._site(*asked)
        return self._found[asked]

    def _site(self, stream: str, position: str, layers: Sequence[int]) -> SiteTensors:
        if self.layout.moments is not None:
            raise StoreError(NEEDS_ROWS)
        known = self.layers(stream)
        for layer in layers:
            if layer not in known:
                points = ", ".join(map(str, known))
                kind = "residual points" if stream == "resid" else f"blocks of {stream}"
                raise UnknownName(f"layer {layer!r} was not captured; the store holds {kind} {points}")
        if position not in self.layout.positions:
            listed = (name for shard in self.shards for name in shard.listed("positions"))
            require_known("position", position, in_order([*self.layout.positions, *listed]))
        names = tuple(tensor_name(stream, position, layer) for layer in layers)
        width = next((own.width for own in self.layout.streams if own.name == stream), self.layout.d_model) or 0
        specs = (shard.spec(names[0]) for shard in self.shards if names and shard.has(names[0]))
        first = next(specs, None)
        if first is None:
            return SiteTensors(names, width, _BY_NAME[self.layout.dtype or "float32"])
        if self.layout.dtype is None and any(spec.dtype != first.dtype for spec in specs):
            return SiteTensors(names, first.shape[-1], DTYPES["F32"])  # shards of two dtypes: the wider holds both
        return SiteTensors(names, first.shape[-1], first.dtype)

    def require_label_site(self, site: str) -> None:
        """Refuse an answer site that no shard holds.

        Raises:
            UnknownName: names the sites that there are.
        """
        known: dict[str, None] = {}
        for shard in self.shards:
            known |= dict.fromkeys(shard.listed("label_sites"))
            if site in known:
                return
        require_known("label site", site, in_order(known))

    @cached_property
    def _found(self) -> dict[tuple[str, str, tuple[int, ...]], SiteTensors]:
        return {}

    @cached_property
    def _tensors(self) -> list[re.Match[str]]:
        names = {name for shard in self.shards for name in shard.header.tensors}
        matches = (ACTIVATIONS.fullmatch(name) for name in sorted(names))
        return [match for match in matches if match and not match["stream"].startswith("crc")]
