"""Activations at one position, not yet read. Knows where their rows stand; reads them when an array is asked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from probe.store.columns import Targets
from probe.store.locations import Locations, Piece, Row
from probe.store.places import LocalPlace
from probe.store.shard_format import DTYPES, as_bytes
from probe.store.shards import REQUESTS
from probe.values import ProbeError

if TYPE_CHECKING:
    import torch
    import xarray

CHUNK = 2**22
"""Bytes that are read at once, and then checked while they are still in the processor's cache."""

AHEAD = 2**26
"""Bytes that the disk is told of before they are read."""

_BF16, _F32 = DTYPES["BF16"], DTYPES["F32"]


@dataclass(frozen=True, eq=False)
class Residuals:
    """Lazy ``[rows, d_model]`` in units of the residual stream.

    ``kept`` holds the place of each row in the view that it was asked of: ``view.table().iloc[r.kept]`` are its cells.
    Where ``entries`` knows no place of a row, the site is absent, and the row NaN. ``dtype`` is that on disk.
    """

    rows: tuple[Row, ...]
    kept: np.ndarray
    entries: Locations
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

    @property
    def coords(self) -> dict[str, np.ndarray]:
        """``row_id persona case stratum condition`` of each row, as arrays of strings."""
        cells = [row.planned.cell for row in self.rows]
        return {
            "row_id": np.array([cell.row_id for cell in cells], object),
            "persona": np.array([cell.persona for cell in cells], object),
            "case": np.array([cell.case for cell in cells], object),
            "stratum": np.array([str(row.case.get("stratum", "")) for row in self.rows], object),
            "condition": np.array([cell.condition.name for cell in cells], object),
        }

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Residuals({self.tensor}, {self.shape[0]} x {self.d_model}, {self.dtype}, not read)"

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("residuals are read from disk: an array of them is always a new one")
        return self.numpy("float32" if dtype is None else dtype)

    def take(self, places: np.ndarray) -> Residuals:
        """Those of some rows, by their places here, in the order given; still lazy."""
        rows = tuple(self.rows[place] for place in places)
        return Residuals(rows, self.kept[places], self.entries.take(places), self.tensor, self.d_model, self.dtype)

    def numpy(self, dtype: DTypeLike = "float32", *, raw: bool = False) -> np.ndarray:
        """Read and check the rows, float32 unless another dtype is asked; from bfloat16 that is without loss.

        With ``raw`` they come in the dtype on disk; bfloat16 is then that of ``ml_dtypes``.

        Raises:
            CorruptShard: a row's bytes are not those that were committed.
            ProbeError: ``dtype`` is no floating type, or a value overflows it.
        """
        return read_entries(self.entries, [self.tensor], self.d_model, self.dtype if raw else dtype)[:, 0]

    def torch(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The rows as a tensor, in the dtype on disk unless another is asked.

        Raises:
            CorruptShard: a row's bytes are not those that were committed.
            ProbeError: a value overflows ``dtype``.
        """
        import torch

        stored = self.numpy(raw=True)
        if self.dtype == np.float32:
            tensor = torch.from_numpy(stored)
        else:  # torch knows no ml_dtypes: hand over the bits
            tensor = torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16)
        moved = tensor.to(device=device, dtype=dtype)
        if moved.dtype == torch.float16 and bool((moved.isinf() & ~tensor.isinf().to(moved.device)).any()):
            raise _overflow("float16")
        return moved

    def xarray(self) -> xarray.DataArray:
        """The rows, read, as a labelled array: dims ``row`` and ``d``, ``coords`` along ``row``.

        Raises:
            ProbeError: the optional package xarray is not installed.
            CorruptShard: a row's bytes are not those that were committed.
        """
        try:
            import xarray
        except ImportError as error:
            raise ProbeError('xarray is not installed; run: pip install "persona-probe[export]"') from error
        coords = {name: ("row", values) for name, values in self.coords.items()}
        return xarray.DataArray(self.numpy(), dims=("row", "d"), coords=coords, name=self.tensor)


def read_entries(entries: Locations, tensors: Sequence[str], d_model: int, dtype: DTypeLike) -> np.ndarray:
    """Entries of several tensors, ``[rows, tensors, d_model]``; rows without a place are NaN.

    Bytes are read where they belong if they need no conversion, else in chunks, so that no second copy is held.

    Raises:
        CorruptShard: an entry's bytes are not those that were committed.
        ProbeError: ``dtype`` is no floating type, or a value overflows it.
    """
    wanted = np.dtype(dtype)
    if wanted != _BF16 and wanted.kind != "f":
        raise ProbeError(f"activations are read as floating-point numbers; found dtype {wanted.name!r}")
    out = np.empty((len(entries), len(tensors), d_model), wanted)
    if (absent := entries.places < 0).any():
        out[absent] = np.nan
    if not out.size:
        return out
    names, step = tuple(tensors), 4 * d_model * len(tensors)
    local = all(isinstance(piece.shard.file.place, LocalPlace) for piece in entries.pieces)
    pieces = _announced(entries.pieces, names, out[:1].nbytes) if local else entries.pieces
    parts = (part for piece in pieces for part in _parts(piece, step))
    if local:
        for part in parts:
            _read(part, names, out)
    else:  # each part is a round trip
        with ThreadPoolExecutor(REQUESTS) as pool:
            for _ in pool.map(lambda part: _read(part, names, out), parts):
                pass
    return out


def _announced(pieces: Sequence[Piece], tensors: tuple[str, ...], row_bytes: int) -> Iterator[Piece]:
    """The pieces, in time announced to the disk, which brings those of many shards sooner together than in turn."""
    if len(pieces) == 1:
        yield from pieces
        return
    told = ahead = 0
    for at, piece in enumerate(pieces):
        while told < len(pieces) and (told <= at or ahead < AHEAD):
            pieces[told].shard.columns(tensors).announce(pieces[told].places)
            ahead += len(pieces[told].places) * row_bytes
            told += 1
        yield piece
        ahead -= len(piece.places) * row_bytes


def _read(part: Piece, tensors: tuple[str, ...], out: np.ndarray) -> None:
    """Read some rows of one shard into their places in ``out``, in its dtype."""
    (shard, slots, entries), n_tensors, d_model = part, len(tensors), out.shape[2]
    columns = shard.columns(tensors)
    stored, shape = columns.kind or (None, ())
    if stored is None or shape != (d_model,):
        raise shard.file.corrupt(f"{tensors[0]!r} has not the dtype and width {d_model} of the others")
    if stored == out.dtype and (n_tensors == 1 or len(slots) == 1):  # straight into their places
        firsts, strides = np.arange(n_tensors) * columns.widths, n_tensors * columns.widths
        targets = Targets([as_bytes(out)] * n_tensors, firsts, strides, slots)
        columns.read(entries, targets)
        return
    block = np.empty((n_tensors, len(slots), d_model), stored)
    columns.read(entries, Targets.of([*block]))
    follow = slots[-1] - slots[0] + 1 == len(slots) and bool((np.diff(slots) == 1).all())
    place, by_row = slice(slots[0], slots[-1] + 1) if follow else slots, block.swapaxes(0, 1)
    if follow and stored == _BF16 and out.dtype == _F32:
        np.left_shift(by_row.view(np.uint16), 16, out=out[place].view(np.uint32), dtype=np.uint32)
    else:
        out[place] = cast(by_row, out.dtype)


def cast(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """An array in another floating dtype; bfloat16 to float32 is exact: it is the upper half of its bits.

    Raises:
        ProbeError: a finite value becomes infinite: massive activations leave float16 at 65504.
    """
    if array.dtype == dtype:
        return array
    if array.dtype == _BF16:
        array = np.left_shift(array.view(np.uint16), 16, dtype=np.uint32).view(_F32)
    if dtype.itemsize >= 4:
        return array.astype(dtype, copy=False)
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    if (np.isinf(narrow) & np.isfinite(array)).any():
        raise _overflow(dtype.name)
    return narrow


def _parts(piece: Piece, row_bytes: int) -> Iterator[Piece]:
    """A piece in parts of about ``CHUNK`` bytes."""
    step = max(1, CHUNK // max(1, row_bytes))
    if len(piece.slots) <= step:
        yield piece
        return
    for first in range(0, len(piece.slots), step):
        yield Piece(piece.shard, piece.slots[first : first + step], piece.places[first : first + step])


def _overflow(dtype: str) -> ProbeError:
    return ProbeError(f"activations overflow {dtype}: finite values would become infinite; ask for float32 or bfloat16")
