"""One residual point at one position, not yet read. Knows where its rows stand; reads them when an array is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from probe.store.tables import Row, by_shard

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Residuals:
    """Lazy ``[rows, d_model]`` in units of the residual stream.

    ``kept`` holds the place of each row in the view that it was asked of: ``view.table().iloc[r.kept]`` are its cells.
    ``entries`` holds the place of each row in its shard's tensor; where it is -1 the site is absent, and the row NaN.
    """

    rows: tuple[Row, ...]
    kept: np.ndarray
    entries: np.ndarray
    tensor: str
    d_model: int
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width."""
        return len(self.rows), self.d_model

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.rows)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("residuals are read from disk: an array of them is always a new one")
        return self.numpy("float32" if dtype is None else dtype)

    def numpy(self, dtype: DTypeLike = "float32") -> np.ndarray:
        """Read and check the rows. bfloat16 becomes float32 without loss; ``dtype=r.dtype`` keeps what is stored.

        Raises:
            CorruptShard: a row's bytes are not those that were committed.
        """
        wanted = np.dtype(dtype)
        out = np.empty(self.shape, wanted)
        out[self.entries < 0] = np.nan
        for shard, slots, _ in by_shard(self.rows):
            entries = self.entries[slots]
            present = entries >= 0
            if present.any():
                out[slots[present]] = shard.take(self.tensor, entries[present])
        return out

    def torch(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The rows as a tensor, in the stored dtype unless another is asked."""
        import torch

        stored = self.numpy(self.dtype)
        if self.dtype == np.float32:
            tensor = torch.from_numpy(stored)
        else:  # torch knows no ml_dtypes: hand over the bits
            tensor = torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16)
        return tensor.to(device=device, dtype=dtype)
