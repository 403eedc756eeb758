"""Interventions as tensor operators on one hook point, row by row. Knows tensors; knows no position rule and no model.

Each operator is written in the batch's own form: every row has its own vector, and ``where`` says at which tokens of
this forward it acts, so that rows with and without an edit, or with other doses of one, share a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.models.points import HookPoint


@dataclass(frozen=True, eq=False)
class Edit:
    """``x <- new(x)`` where ``where`` holds, and bit for bit ``x`` elsewhere.

    ``add``: ``new(x) = x + vector``. ``patch``: ``new(x) = vector``. ``ablate`` and ``set`` act within the span of the
    orthonormal rows of ``basis``: ``new(x) = x + (coordinates - x basis^T) basis``, with coordinates 0 for ``ablate``.
    A row of the batch whose span is smaller has rows of zeros there.
    The operator is computed in fp32 and its result rounded to the stream's dtype.
    """

    point: HookPoint
    kind: str
    where: Bool[Tensor, "batch pos"]
    vector: Float[Tensor, "batch width"] | None = None
    basis: Float[Tensor, "batch k width"] | None = None
    coordinates: Float[Tensor, "batch k"] | None = None

    def __call__(self, hidden: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        """The edited activations; ``hidden`` itself is not changed."""
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return torch.where(self.where[:, :, None], self._new(wide).to(hidden.dtype), hidden)

    def _new(self, x: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        if self.kind in ("add", "patch"):
            assert self.vector is not None
            vector = self.vector.to(x.dtype)[:, None, :]
            return x + vector if self.kind == "add" else vector.expand_as(x)
        assert self.kind in ("ablate", "set") and self.basis is not None
        basis = self.basis.to(x.dtype)
        inside = x @ basis.transpose(1, 2)
        wanted = torch.zeros_like(inside) if self.coordinates is None else self.coordinates.to(x.dtype)[:, None, :]
        return x + (wanted - inside) @ basis
