"""Interventions as tensor operators on one hook point, row by row. Knows tensors; knows no position rule and no model.

Each operator is written in the batch's own form: every row has its own vector, and ``where`` says at which tokens of
this forward it acts, so that rows with and without an edit, or with other doses of one, share a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.models.points import HookPoint


@dataclass(frozen=True, eq=False)
class Edit:
    """``x <- new(x)`` where ``where`` holds, and bit for bit ``x`` elsewhere.

    ``add``: ``new(x) = x + vector``, ``relative``: ``x + |x| vector``. ``patch``: ``new(x) = vector``. The others act
    within the span of the orthonormal rows of ``basis``: ``new(x) = x + (wanted - x basis^T) basis``, where ``wanted``
    are the ``coordinates`` (``set``), 0 (``ablate``), or the smaller of coordinates and ``x basis^T`` (``cap``). A row
    of the batch whose span is smaller has rows of zeros there. With a ``gate`` it acts only where ``x gate > above``; a
    row without one has zeros there, above -inf. ``values`` in place of a vector gives ``patch`` another one for each
    token; ``columns`` ``[start, end)`` keeps an edit to some of the width, as the outputs of one head.
    The operator is computed in fp32 and its result rounded to the stream's dtype.
    """

    point: HookPoint
    kind: str
    where: Bool[Tensor, "batch pos"]
    vector: Float[Tensor, "batch width"] | None = None
    basis: Float[Tensor, "batch k width"] | None = None
    coordinates: Float[Tensor, "batch k"] | None = None
    relative: bool = False
    gate: Float[Tensor, "batch width"] | None = None
    above: Float[Tensor, " batch"] | None = None
    values: Float[Tensor, "batch pos width"] | None = None
    columns: tuple[int, int] | None = None

    def __call__(self, hidden: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        """The edited activations; ``hidden`` itself is not changed."""
        if self.where.device != hidden.device:
            return self.on(hidden.device)(hidden)
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        where = self.where[:, :, None]
        if self.gate is not None and self.above is not None:
            where = where & (wide @ self.gate.to(wide.dtype)[:, :, None] > self.above.to(wide.dtype)[:, None, None])
        if self.columns is not None:
            where = where & self.inside
        return torch.where(where, self._new(wide).to(hidden.dtype), hidden)

    def on(self, device: torch.device) -> Edit:
        """The same edit with its arrays on a device: of a model over several, a block's own."""
        if self.where.device == device:
            return self
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: each.to(device) for name, each in own.items() if isinstance(each, Tensor)}
        return replace(self, **moved)

    @property
    def inside(self) -> Bool[Tensor, " width"]:
        """Which of the width the columns are; only where there are columns."""
        assert self.columns is not None and self.values is not None
        at = torch.arange(self.values.shape[-1], device=self.values.device)
        return (self.columns[0] <= at) & (at < self.columns[1])

    def _new(self, x: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos width"]:
        if self.values is not None:
            return self.values.to(x.dtype)
        if self.kind in ("add", "patch"):
            assert self.vector is not None
            vector = self.vector.to(x.dtype)[:, None, :]
            if self.kind == "patch":
                return vector.expand_as(x)
            return x + (x.norm(dim=-1, keepdim=True) * vector if self.relative else vector)
        assert self.kind in ("ablate", "set", "cap") and self.basis is not None
        basis = self.basis.to(x.dtype)
        inside = x @ basis.transpose(1, 2)
        wanted = torch.zeros_like(inside) if self.coordinates is None else self.coordinates.to(x.dtype)[:, None, :]
        return x + ((torch.minimum(inside, wanted) if self.kind == "cap" else wanted) - inside) @ basis
