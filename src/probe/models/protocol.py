"""What capture may ask of a model: token ids and masks in, residuals and logits out. Never strings."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.models.configuration import ModelShape


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a loaded model: its shape, and how and where it computes."""

    shape: ModelShape
    dtype: torch.dtype
    device: torch.device
    architecture: str
    attention: str


@dataclass(frozen=True, eq=False)
class Reads:
    """What one forward records: residual points ``layers`` at ``columns`` and, as fp32 means, over ``spans``.

    A span is ``[start, end)`` in columns; an empty one gives zeros and is the caller's to leave out.
    """

    layers: tuple[int, ...]
    columns: Int[Tensor, "batch column"]
    spans: Int[Tensor, "batch span 2"] | None = None


@dataclass(frozen=True, eq=False)
class Forward:
    """What one forward gave: next-token logits at the last column (fp32), the reads, and the cache to go on with."""

    logits: Float[Tensor, "batch vocab"]
    points: Float[Tensor, "layer batch column d_model"]
    means: Float[Tensor, "layer batch span d_model"] | None
    cache: Any


@runtime_checkable
class Backend(Protocol):
    """A decoder that can be read while it runs."""

    facts: ModelFacts

    def forward(
        self,
        ids: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch past_and_pos"],
        reads: Reads,
        cache: Any = None,
    ) -> Forward:
        """Run the model on new tokens after ``cache`` (which it consumes). ``mask`` spans past and new tokens."""
        ...

    def adding(self, layer: int, vector: Float[Tensor, " d_model"]) -> AbstractContextManager[None]:
        """While open, add ``vector`` to residual point ``layer`` at every position, before anything reads it."""
        ...
