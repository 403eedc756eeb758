"""The same forwards through two backends, compared. Knows the protocol; knows no backend by name."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from probe.models.edits import Edit
from probe.models.points import HookPoint
from probe.models.protocol import Backend, Forward, Reads

LIMIT = 1e-5
"""max|a - b| <= LIMIT max|b|, for each hook point."""
LENGTHS = (11, 7)


def off(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max|b|."""
    assert a.shape == b.shape, (a.shape, b.shape)
    assert float(b.abs().max()) > 0
    return float((a - b).abs().max() / b.abs().max())


def points_of(backend: Backend) -> tuple[HookPoint, ...]:
    """Every hook point that a backend has."""
    blocks = backend.facts.shape.n_layers
    return tuple(HookPoint(name, layer) for name in backend.facts.widths for layer in range(blocks + (name == "resid")))


def batch(side: str) -> tuple[Tensor, Tensor, Tensor]:
    """Two rows of unequal length, padded on one side: ids, mask, and the columns of the shorter row's own tokens."""
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(10, 600, (2, LENGTHS[0]), generator=generator)
    mask = torch.ones_like(ids)
    pads = LENGTHS[0] - LENGTHS[1]
    columns = torch.arange(LENGTHS[0])
    empty = columns[:pads] if side == "left" else columns[LENGTHS[1] :]
    own = columns[pads:] if side == "left" else columns[: LENGTHS[1]]
    ids[1, empty], mask[1, empty] = 0, 0
    return ids, mask, own.expand(2, -1)


def forward(
    backend: Backend, points: tuple[HookPoint, ...], side: str = "left", edits: tuple[Edit, ...] = ()
) -> Forward:
    """All the given points at the columns that both rows have, with means over spans and logits at those columns."""
    ids, mask, columns = batch(side)
    first = int(columns[0, 0])
    spans = torch.tensor([[[first, first + 3]], [[first + 1, first + 7]]])
    return backend.forward(ids, mask, Reads(points, columns, spans, columns), edits=edits)


def differences(a: Forward, b: Forward) -> dict[str, float]:
    """How far each hook point, each mean and the logits of ``a`` are from those of ``b``."""
    assert set(a.values) == set(b.values)
    assert set(a.means) == set(b.means)
    found = {"logits": off(a.logits, b.logits)}
    for words, ours, theirs in (("", a.values, b.values), ("mean of ", a.means, b.means)):
        for stream in ours:
            for layer, (one, two) in enumerate(zip(ours[stream], theirs[stream], strict=True)):
                found[f"{words}{stream} {layer}"] = off(one, two)
    return found


def decoded(backend: Backend, points: tuple[HookPoint, ...], n_steps: int = 3) -> Iterator[Forward]:
    """A left-padded prefill and what follows it from its cache, one given token at a time."""
    ids, mask, _ = batch("left")
    newest = torch.zeros((2, 1), dtype=torch.long)
    got = backend.forward(ids, mask, Reads(points, newest + ids.shape[1] - 1))
    yield got
    for step in range(n_steps):
        mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
        got = backend.forward(newest + 20 + step, mask, Reads(points, newest), cache=got.cache)
        yield got


def edits_at(point: HookPoint, width: int) -> Iterator[Edit]:
    """One edit of each operator at one point: row 0 at two tokens, row 1 at another one, each with its own vector."""
    generator = torch.Generator().manual_seed(13)
    where = torch.zeros((2, LENGTHS[0]), dtype=torch.bool)
    where[0, 5:7] = where[1, 8] = True
    vector = torch.randn(2, width, generator=generator)
    basis = torch.linalg.qr(torch.randn(2, width, 2, generator=generator)).Q.transpose(1, 2)
    yield Edit(point, "add", where, vector=vector)
    yield Edit(point, "patch", where, vector=vector)
    yield Edit(point, "ablate", where, basis=basis)
    yield Edit(point, "set", where, basis=basis, coordinates=torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
