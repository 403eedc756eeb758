"""Single forwards of a backend against the reference. Knows the protocol and the reference; knows no schedule.

Each scene feeds the same prompts in another way and gives one :class:`Deviation` for each row, stream and layer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probe.models.edits import Edit
from probe.models.points import HookPoint
from probe.models.protocol import Backend, Forward, Reads
from tests.capture.architectures import backend, prompts
from tests.capture.reference import EditFunction, States, states_of

SITE_LIMIT = 1e-5
LOGP_LIMIT = 1e-4
N_FED = 5


@dataclass(frozen=True)
class Deviation:
    """How far one site, or one next-token distribution, is off, over ``n`` positions; ``limit`` is what is allowed.

    Of a site: the largest ``max|a - b| / max|b|`` of its positions. Of logits: the largest difference of a
    log-probability.
    """

    scene: str
    what: str
    off: float
    limit: float
    n: int = 1

    @property
    def ok(self) -> bool:
        return self.off <= self.limit


def off_by(got: Tensor, wanted: Tensor) -> float:
    """The largest ``max|a - b| / max|b|`` over the leading axes."""
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    assert bool(wanted.abs().amax(-1).min() > 0), "the reference is zero: nothing would be compared"
    return float(((got.float() - wanted).abs().amax(-1) / wanted.abs().amax(-1)).max())


def logp_off_by(logits: Tensor, wanted: Tensor) -> float:
    """The largest difference of a log-probability above e^-30."""
    a, b = logits.float().log_softmax(-1), wanted.log_softmax(-1)
    return float(torch.where(b > -30, (a - b).abs(), 0.0).max())


def all_points(model: Backend) -> tuple[HookPoint, ...]:
    """Every hook point that the backend has."""
    n_layers = model.facts.shape.n_layers
    return tuple(
        HookPoint(stream, layer) for stream in model.facts.widths for layer in range(n_layers + (stream == "resid"))
    )


def padded(rows: Sequence[Sequence[int]], pad_id: int, side: str) -> tuple[Tensor, Tensor, list[slice]]:
    """Ids, mask, and where each row's tokens stand."""
    width = max(map(len, rows))
    ids, mask, places = torch.full((len(rows), width), pad_id), torch.zeros((len(rows), width), dtype=torch.long), []
    for i, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        places.append(slice(start, start + len(row)))
        ids[i, places[i]] = torch.tensor(row)
        mask[i, places[i]] = 1
    return ids, mask, places


def everywhere(model: Backend, ids: Tensor) -> Reads:
    """All points and the logits at all columns."""
    columns = torch.arange(ids.shape[1]).expand(ids.shape).contiguous()
    return Reads(all_points(model), columns, logits_at=columns)


def against(scene: str, got: Forward, row: int, columns: slice, wanted: States, tokens: slice) -> Iterator[Deviation]:
    """One row's columns of a forward against some tokens of the reference."""
    for stream, values in got.values.items():
        for layer, value in enumerate(values):
            reference = wanted.values[stream, layer][tokens]
            yield Deviation(
                scene,
                f"{stream} {layer}, row {row}",
                off_by(value[row, columns], reference),
                SITE_LIMIT,
                len(reference),
            )
    reference = wanted.logits[tokens]
    off = logp_off_by(got.logits[row, columns], reference)
    yield Deviation(scene, f"log-probabilities, row {row}", off, LOGP_LIMIT, len(reference))


def single(name: str, kind: str) -> Iterator[Deviation]:
    """One row, no padding; its logits once more where only the last column's are asked for."""
    model = backend(name, kind)
    for i, prompt in enumerate(prompts(name)[:2]):
        ids = torch.tensor([prompt])
        got = model.forward(ids, torch.ones_like(ids), everywhere(model, ids))
        wanted = states_of(name, prompt)
        yield from against("single", got, 0, slice(None), wanted, slice(None))
        last = model.forward(ids, torch.ones_like(ids), Reads(all_points(model)[:1], torch.tensor([[i]])))
        off = logp_off_by(last.logits[0, 0], wanted.logits[-1])
        yield Deviation("single", "log-probabilities, last column", off, LOGP_LIMIT)


def padding(name: str, kind: str, side: str) -> Iterator[Deviation]:
    """Rows of unequal lengths in one forward; pads are a token that occurs elsewhere as itself."""
    model = backend(name, kind)
    rows = prompts(name)
    pad_id = rows[0][3]
    ids, mask, places = padded(rows, pad_id, side)
    got = model.forward(ids, mask, everywhere(model, ids))
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        yield from against(f"{side} pad", got, i, place, states_of(name, row), slice(None))


def span_means(name: str, kind: str) -> Iterator[Deviation]:
    """Means over spans of a left-padded batch, one of them a single token, one the whole row."""
    model = backend(name, kind)
    rows = prompts(name)
    ids, mask, places = padded(rows, 0, "left")
    spans = [[(p.start + 2, p.start + 9), (p.start + 4, p.start + 5), (p.start, p.stop)] for p in places]
    columns = torch.full((len(rows), 1), ids.shape[1] - 1)
    got = model.forward(ids, mask, Reads(all_points(model), columns, torch.tensor(spans)))
    for i, row in enumerate(rows):
        wanted = states_of(name, row).values
        for stream, means in got.means.items():
            for layer, mean in enumerate(means):
                own = wanted[stream, layer]
                reference = torch.stack([own[2:9].mean(0), own[4], own.mean(0)])
                yield Deviation("span means", f"{stream} {layer}, row {i}", off_by(mean[i], reference), SITE_LIMIT, 3)


def cached(name: str, kind: str) -> Iterator[Deviation]:
    """A left-padded batch, then more tokens from its cache: in a chunk of two, then one at a time."""
    model = backend(name, kind)
    rows = prompts(name)
    more = [row[:N_FED] for row in reversed(rows)]
    ids, mask, _ = padded(rows, 0, "left")
    got = model.forward(ids, mask, everywhere(model, ids))
    fed = torch.tensor(more)
    chunks = [(0, 2), *((k, k + 1) for k in range(2, N_FED))]
    if model.facts.caching == "recurrent":  # a state that is there already is continued token by token
        chunks = [(k, k + 1) for k in range(N_FED)]
    wanted = [states_of(name, (*row, *new)) for row, new in zip(rows, more, strict=True)]
    for first, last in chunks:
        new = fed[:, first:last]
        mask = torch.cat([mask, torch.ones_like(new)], dim=1)
        got = model.forward(new, mask, everywhere(model, new), cache=got.cache)
        for i, row in enumerate(rows):
            tokens = slice(len(row) + first, len(row) + last)
            yield from against("cached", got, i, slice(None), wanted[i], tokens)


@dataclass(frozen=True, eq=False)
class Planned:
    """One operator at one point for one row, at some tokens; as the package's edit, and as a function of our own."""

    point: HookPoint
    kind: str
    tokens: tuple[int, ...]
    vector: Tensor
    basis: Tensor
    coordinates: Tensor

    def function(self) -> EditFunction:
        def edited(x: Tensor) -> Tensor:
            rows = [self._new(row) if token in self.tokens else row for token, row in enumerate(x)]
            return torch.stack(rows)

        return edited

    def _new(self, row: Tensor) -> Tensor:
        if self.kind == "add":
            return row + self.vector
        if self.kind == "patch":
            return self.vector.to(row)
        for k, direction in enumerate(self.basis.to(row)):  # orthonormal: one direction after the other
            wanted = self.coordinates[k].to(row) if self.kind in ("set", "cap") else torch.zeros_like(row[0])
            if self.kind == "cap":
                wanted = torch.minimum(wanted, row @ direction)
            row = row + (wanted - row @ direction) * direction
        return row


def planned(name: str, point: HookPoint, kind: str, row: int, tokens: Sequence[int], wanted: States) -> Planned:
    """An operator of the size of what it acts on."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {point} {kind} {row}".encode()))
    own = wanted.values[point.stream, point.layer]
    width, size = own.shape[-1], float(own.std())
    basis = torch.linalg.qr(torch.randn(width, 2, generator=generator)).Q.T.contiguous()
    vector, coordinates = (size * torch.randn(n, generator=generator) for n in (width, 2))
    if kind == "cap":  # a bound that nothing reaches would be no edit
        coordinates = coordinates - 4 * size
    return Planned(point, kind, tuple(tokens), vector, basis, coordinates)


def stacked(plans: Sequence[Planned], places: Sequence[slice], width: int) -> Edit:
    """The plans of a batch's rows, which share point and operator, as one edit."""
    where = torch.zeros((len(plans), width), dtype=torch.bool)
    for i, (plan, place) in enumerate(zip(plans, places, strict=True)):
        where[i, [place.start + token for token in plan.tokens]] = True
    vector, basis, coordinates = (
        torch.stack([getattr(plan, part) for plan in plans]) for part in ("vector", "basis", "coordinates")
    )
    takes_vector = plans[0].kind in ("add", "patch")
    return Edit(
        plans[0].point,
        plans[0].kind,
        where,
        vector if takes_vector else None,
        None if takes_vector else basis,
        coordinates if plans[0].kind in ("set", "cap") else None,
    )


OPERATORS = ("add", "ablate", "set", "patch", "cap")


def edit_points(model: Backend, *, every: bool) -> list[tuple[tuple[HookPoint, str], ...]]:
    """What is edited together: each operator on the residual, the first and the last point among them, and each other
    stream once, operators in turn; two at one point, where order counts; ``every``: all operators on all points."""
    points = all_points(model)
    if every:
        return [((point, kind),) for point in points for kind in OPERATORS]
    last = model.facts.shape.n_layers
    alone = [(HookPoint("resid", layer), kind) for layer, kind in zip((0, last, 1, 2, 1), OPERATORS, strict=True)]
    streams = [stream for stream in model.facts.widths if stream != "resid"]
    alone += [(HookPoint(stream, k % last), OPERATORS[k % 5]) for k, stream in enumerate(streams)]
    together = ((HookPoint("resid", 1), "patch"), (HookPoint("resid", 1), "add"), (HookPoint("resid", 2), "ablate"))
    return [*((one,) for one in alone), together, tuple(reversed(together))]


def edited(name: str, kind: str, *, every: bool = False) -> Iterator[Deviation]:
    """Edits in a left-padded batch: each row another vector, other tokens, and one row none."""
    model = backend(name, kind)
    rows = prompts(name)[:3]
    ids, mask, places = padded(rows, 0, "left")
    plain = [states_of(name, row) for row in rows]
    tokens = [(0, 5, len(rows[0]) - 1), (), tuple(range(len(rows[2])))]
    for together in edit_points(model, every=every):
        plans = [
            [planned(name, point, operator, i, tokens[i], plain[i]) for i in range(len(rows))]
            for point, operator in together
        ]
        edits = [stacked(each, places, ids.shape[1]) for each in plans]
        got = model.forward(ids, mask, everywhere(model, ids), edits=edits)
        scene = "edit " + " + ".join(f"{operator} {point.stream}" for point, operator in together)
        for i, (row, place) in enumerate(zip(rows, places, strict=True)):
            functions: dict[tuple[str, int], list[EditFunction]] = {}
            for each in plans:
                functions.setdefault((each[i].point.stream, each[i].point.layer), []).append(each[i].function())
            wanted = states_of(name, row, functions)
            found = list(against(scene, got, i, place, wanted, slice(None)))
            if not all(each.ok for each in found):
                exact = states_of(name, row, functions, exact=True)
                found = list(
                    judged_by_the_truth(found, against(scene, got, i, place, exact, slice(None)), wanted, exact)
                )
            yield from found
            if tokens[i]:
                # The control: an edit that did nothing, or acted at a neighbouring token, would be noticed.
                assert off_by(wanted.values["resid", model.facts.shape.n_layers], plain[i].values["resid", 3]) > 1e-3
        again = model.forward(ids, mask, everywhere(model, ids))
        yield Deviation(scene, "after it", logp_off_by(again.logits[0, places[0]], plain[0].logits), LOGP_LIMIT)


def judged_by_the_truth(
    found: Sequence[Deviation], from_exact: Iterator[Deviation], wanted: States, exact: States
) -> Iterator[Deviation]:
    """What is beyond its limit is judged in double precision: it may be off by the limit more than plain transformers.

    An edit can make a model amplify rounding (a gate near 0 in a recurrent block), in the reference as in what is held
    against it.
    """
    for each, truth in zip(found, from_exact, strict=True):
        if each.ok or not each.what.startswith(tuple(stream for stream, _ in wanted.values)):
            yield each
            continue
        stream, layer = each.what.split(",")[0].split()
        own = off_by(wanted.values[stream, int(layer)], exact.values[stream, int(layer)])
        yield replace(truth, limit=each.limit + own)


def every_edit(name: str, kind: str) -> Iterator[Deviation]:
    """Each operator at each hook point of each stream."""
    yield from edited(name, kind, every=True)


SCENES: dict[str, Callable[[str, str], Iterator[Deviation]]] = {
    "single": single,
    "left pad": lambda name, kind: padding(name, kind, "left"),
    "right pad": lambda name, kind: padding(name, kind, "right"),
    "span means": span_means,
    "cached": cached,
    "edited": edited,
}
