"""What capture may ask of a model: token ids and masks in, activations and logits out. Never strings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.models.configuration import ModelShape
from probe.models.edits import Edit
from probe.models.points import HookPoint
from probe.models.spread import DeviceMap
from probe.values import STREAMS, ModelError

Caching = Literal["attention", "recurrent", "none"]
"""What a cache can do. ``attention``: keys and values per token, which can be aligned, cropped and joined row by row.
``recurrent``: some layer keeps a state of everything so far: rows can be copied and dropped, nothing can be cropped.
``none``: the whole sequence is run again for every token."""


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a loaded model: its shape, how and where it computes, and what of it can be read.

    ``widths`` are the streams that this backend reads on this architecture, with the width of each (``head_out``: heads
    x head width); ``resid`` is always there. ``missing`` says, for each stream that is not, why not, in one sentence.
    ``device`` takes token ids and gives back logits and all that is read; ``device_map`` says where the blocks of a
    model over several devices lie. ``tensor_parallel`` processes hold the model together.
    """

    shape: ModelShape
    dtype: torch.dtype
    device: torch.device
    architecture: str
    attention: str
    backend: str
    caching: Caching
    widths: Mapping[str, int]
    missing: Mapping[str, str]
    device_map: DeviceMap | None = None
    tensor_parallel: int = 1

    def require(self, points: Iterable[HookPoint]) -> None:
        """Refuse hook points that this model does not have.

        Raises:
            ModelError: a stream that this architecture does not have (with the reason) or nobody knows, or a layer
                beyond its last.
        """
        for stream, layer in {(point.stream, point.layer) for point in points}:
            if stream not in self.widths:
                raise ModelError(self._without(stream))
            last = self.shape.n_layers - (stream != "resid")
            if not 0 <= layer <= last:
                raise ModelError(f"{self.architecture} has layers 0 to {last} of stream {stream!r}; found {layer}")

    def _without(self, stream: str) -> str:
        if stream not in self.missing:
            return f"a stream is one of {', '.join(STREAMS)}; found {stream!r}"
        has = ", ".join(name for name in STREAMS if name in self.widths)
        return f"{self.architecture} has no stream {stream!r}: {self.missing[stream]}; it has {has}"


@dataclass(frozen=True, eq=False)
class Reads:
    """What one forward records: hook points at ``columns`` and, as fp32 means, over ``spans`` of its new tokens.

    A span is ``[start, end)`` in columns; an empty one gives zeros and is the caller's to leave out. ``logits_at`` are
    the columns whose next-token logits are wanted, by default the last one. Columns count the tokens given to this
    forward, pads included, not those in its cache.
    """

    points: tuple[HookPoint, ...]
    columns: Int[Tensor, "batch column"]
    spans: Int[Tensor, "batch span 2"] | None = None
    logits_at: Int[Tensor, "batch kept"] | None = None


@dataclass(frozen=True, eq=False)
class Forward:
    """What one forward gave: next-token logits (fp32), what was read by stream, and the cache to go on with.

    The layers of ``values[stream]`` and ``means[stream]`` are those of the reads' points of that stream, in their
    order. Values are copies: they keep no activation alive.
    """

    logits: Float[Tensor, "batch kept vocab"]
    values: Mapping[str, Float[Tensor, "layer batch column width"]]
    means: Mapping[str, Float[Tensor, "layer batch span width"]]
    cache: Any


@runtime_checkable
class Backend(Protocol):
    """A decoder that can be read and edited while it runs."""

    facts: ModelFacts

    def forward(
        self,
        ids: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch past_and_pos"],
        reads: Reads,
        *,
        cache: Any = None,
        edits: Sequence[Edit] = (),
    ) -> Forward:
        """Run the model on new tokens after ``cache``, which it takes over and changes.

        ``mask`` spans past and new tokens; positions count its ones, so pads shift nothing. At one hook point edits act
        in their order, before anything reads it; what is recorded there is the edited value.

        Whatever happens inside, no hook and no edit is left behind.
        """
        ...


@runtime_checkable
class WrapsModel(Protocol):
    """A backend whose transformers model is in this process and can be asked the same things in its own words."""

    @property
    def model(self) -> Any:
        """The model, as transformers loaded it or as the backend changed it for good."""
        ...
