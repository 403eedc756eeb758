"""Whether a loaded backend reads and edits what it says: a few short forwards. Knows the protocol; knows no backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from probe.models.edits import Edit
from probe.models.points import HookPoint, residual_points
from probe.models.protocol import Backend, Forward, Reads
from probe.values import ModelError

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
_COARSE, _COARSE_IN_OTHER_SHAPES = 2e-2, 6e-2
"""For coarser dtypes: forwards of one shape, and of two (bf16 moves residuals by 1-2 % between batches)."""
_LENGTH = 8
_CONTINUED = 2
_PAD = 3


def check_backend(backend: Backend, reference: Any = None) -> None:
    """Check a model before anything is captured from it.

    ``reference`` is the transformers model that the backend runs, which is asked the same through
    ``output_hidden_states``; None where it is out of reach (a remote one), which leaves out that comparison.

    1. Residual point k is ``hidden_states[k]`` for k < L, and the logits are the model's. Models that list their states
       from the first block on (Mamba) are compared one further.
    2. Streams add up: point b + ``attn_out`` = ``resid_mid``, and that plus ``mlp_out`` = point b + 1.
    3. An edit of each stream, and of point L, is seen there, changes what lies above, and nothing below; other rows of
       the batch stay as they are.
    4. Point L is all that the logits depend on: with another text's residual there, they are that text's.
    5. Without edits the logits are, bit for bit, what they were before.
    6. Left-padded beside a longer row, and continued from the cache of such a batch, the same is read.

    Raises:
        ModelError: a check fails; the sentence says which, and by how much. Such a model is not read at all.
    """
    check = _Check(backend)
    plain = check.plain()
    if reference is not None:
        check.same_as(reference, plain)
    check.streams_add_up(plain)
    check.edits_act(plain)
    check.undone(plain)
    check.padding_shifts_nothing(plain)
    check.cache_continues(plain)


@dataclass(frozen=True, eq=False)
class _Row:
    """One row of the edited batch: where its edit is, of which kind, and with which vector."""

    point: HookPoint
    kind: str
    vector: Tensor


class _Check:
    """Short forwards of one backend, compared. Row 0 has a text of its own; the others share one."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        facts = backend.facts
        self._facts, self._last = facts, facts.shape.n_layers
        self._tolerance = _TOLERANCE.get(facts.dtype, _COARSE)
        self._loose = _TOLERANCE.get(facts.dtype, _COARSE_IN_OTHER_SHAPES)
        self._generator = torch.Generator().manual_seed(0)
        blocks = range(self._last)
        inner = tuple(stream for stream in facts.widths if stream != "resid")
        self._edited = (
            HookPoint("resid", self._last // 2),
            HookPoint("resid", self._last),
            *(HookPoint(stream, self._last // 2) for stream in inner),
        )
        n_rows = 2 + len(self._edited) + 1
        texts = torch.randint(0, facts.shape.vocab, (2, _LENGTH), generator=self._generator).to(facts.device)
        self._ids: Int[Tensor, "batch pos"] = texts[[0, *[1] * (n_rows - 1)]]
        self._mask = torch.ones_like(self._ids)
        self._points = residual_points(tuple(range(self._last + 1))) + tuple(
            HookPoint(stream, block) for stream in inner for block in blocks
        )

    def plain(self) -> Forward:
        """The batch without edits, read everywhere."""
        found = self._forward(self._ids, self._mask)
        if not all(bool(value.isfinite().all()) for value in (found.logits, *found.values.values())):
            raise self._refusal(f"activations or logits of {_LENGTH} random tokens are not finite in {self._dtype}")
        return found

    @property
    def _dtype(self) -> str:
        return str(self._facts.dtype).removeprefix("torch.")

    def _forward(self, ids: Tensor, mask: Tensor, cache: Any = None, edits: tuple[Edit, ...] = ()) -> Forward:
        columns = torch.arange(ids.shape[1], device=ids.device).expand(*ids.shape)
        reads = Reads(self._points, columns, logits_at=columns)
        return self._backend.forward(ids, mask, reads, cache=cache, edits=edits)

    def same_as(self, model: Any, plain: Forward) -> None:
        """1: residual points and logits against the model's own report of them."""
        with torch.inference_mode():
            output = model(input_ids=self._ids, attention_mask=self._mask, output_hidden_states=True, use_cache=False)
        resid, states = plain.values["resid"], output.hidden_states
        if len(states) < self._last:
            raise self._refusal(f"it reports {len(states)} hidden states for {self._last} blocks")
        off = [self._off(resid[k], states[k]) for k in range(self._last)]
        if max(off) > self._tolerance and not self._one_further(model, resid, states):
            k = next(k for k, value in enumerate(off) if value > self._tolerance)
            raise self._refusal(f"residual point {k} is not hidden_states[{k}] but off by {off[k]:.1g} of it")
        if (far := self._off(plain.logits, output.logits)) > self._tolerance:
            raise self._refusal(f"its logits are off by {far:.1g} from those of a plain forward")

    def _one_further(self, model: Any, resid: Tensor, states: Sequence[Tensor]) -> bool:
        """Whether the model lists states from the first block on, and point 0 is the embedding itself."""
        with torch.inference_mode():
            embedded = model.get_input_embeddings()(self._ids).to(resid.device)
        off = [self._off(resid[k + 1], states[k]) for k in range(self._last - 1)]
        return max([self._off(resid[0], embedded), *off]) <= self._tolerance

    def streams_add_up(self, plain: Forward) -> None:
        """2: what the blocks add is what is read as added."""
        values = plain.values
        if not {"attn_out", "mlp_out"} <= set(values):
            return
        resid = values["resid"].float()
        mid = resid[:-1] + values["attn_out"].float()
        for name, found, expected in (
            ("resid_mid", values.get("resid_mid", mid), mid),
            ("the next residual point", resid[1:], mid + values["mlp_out"].float()),
        ):
            for block in range(self._last):
                if (far := self._off(found[block], expected[block])) > self._tolerance:
                    raise self._refusal(f"what block {block} adds does not make {name}: it is off by {far:.1g}")

    def edits_act(self, plain: Forward) -> None:
        """3 and 4: a row for each stream to which noise is added, and one whose last point is another text's."""
        rows = [self._noisy(plain, point) for point in self._edited]
        last = HookPoint("resid", self._last)
        rows.append(_Row(last, "patch", plain.values["resid"][-1, 0, -1].float()))
        edited = self._forward(self._ids, self._mask, edits=tuple(self._edit(k, row) for k, row in enumerate(rows, 2)))
        for k in (0, 1):
            if (far := self._off(edited.logits[k], plain.logits[k])) > self._tolerance:
                raise self._refusal(f"an edit of one row changes another row's logits by {far:.1g}")
        for k, row in enumerate(rows[:-1], 2):
            self._acts(plain, edited, k, row)
        far = self._off(edited.logits[-1, -1], plain.logits[0, -1])
        if far > self._tolerance:
            raise self._refusal(f"with another text's last residual its logits are not that text's: off by {far:.1g}")

    def _noisy(self, plain: Forward, point: HookPoint) -> _Row:
        size = plain.values[point.stream].float().std().clamp(min=1e-3)
        noise = torch.randn(self._facts.widths[point.stream], generator=self._generator)
        return _Row(point, "add", noise.to(size.device) * size)

    def _edit(self, at: int, row: _Row) -> Edit:
        """The edit of one row, at its last token; for the others its vector stands idle."""
        where = torch.zeros_like(self._ids, dtype=torch.bool)
        where[at, -1] = True
        return Edit(row.point, row.kind, where, vector=row.vector.expand(len(self._ids), -1))

    def _acts(self, plain: Forward, edited: Forward, k: int, row: _Row) -> None:
        stream, layer = row.point.stream, row.point.layer
        what = f"an edit of {stream} {layer}"
        before, after = plain.values, edited.values
        own = self._points_of(stream).index(row.point)
        seen = after[stream][own, k, -1].float() - before[stream][own, k, -1].float()
        scale = before[stream][own, k, -1].float().abs().max() + row.vector.abs().max()
        if (far := float((seen - row.vector).abs().max() / scale)) > self._tolerance:
            raise self._refusal(f"{what} is not read where it was made: it is off by {far:.1g}")
        below = layer if stream == "resid" else layer + 1
        for name, values in before.items():
            until = below if name == "resid" else layer
            if (far := self._off(after[name][:until, k], values[:until, k])) > self._tolerance:
                raise self._refusal(f"{what} changes {name} below it by {far:.1g}")
        if (far := self._off(after["resid"][:, k, :-1], before["resid"][:, k, :-1])) > self._tolerance:
            raise self._refusal(f"{what} at the last token changes earlier tokens by {far:.1g}")
        above = after["resid"][below + 1 :, k, -1] if stream == "resid" else after["resid"][below:, k, -1]
        unmoved = before["resid"][-len(above) :, k, -1] if len(above) else above
        still = [torch.equal(now, then) for now, then in zip(above, unmoved, strict=True)]
        if any(still) or torch.equal(edited.logits[k, -1], plain.logits[k, -1]):
            raise self._refusal(f"{what} does not change what lies above it")

    def _points_of(self, stream: str) -> list[HookPoint]:
        return [point for point in self._points if point.stream == stream]

    def undone(self, plain: Forward) -> None:
        """5: no trace of an edit; to rounding where forwards differ anyway (some devices sum in no fixed order)."""
        again = self._forward(self._ids, self._mask)
        if torch.equal(again.logits, plain.logits):
            return
        far = self._off(again.logits, plain.logits)
        steady = torch.equal(self._forward(self._ids, self._mask).logits, again.logits)
        if steady or far > self._tolerance:
            raise self._refusal(f"after edits were undone the logits are not what they were, but off by {far:.1g}")

    def padding_shifts_nothing(self, plain: Forward) -> None:
        """6: a short row, padded on the left to the length of the other."""
        found = self._padded(_LENGTH)
        short = _LENGTH - _PAD
        far = max(
            self._off(found.logits[1, _PAD:], plain.logits[1, :short]),
            self._off(found.values["resid"][:, 1, _PAD:], plain.values["resid"][:, 1, :short]),
        )
        if far > self._loose:
            raise self._refusal(f"padding on the left changes what is read by {far:.1g}")

    def _padded(self, length: int) -> Forward:
        """The first tokens of rows 0 and 1, and fewer of row 1, which is padded."""
        ids, mask = self._ids[:2, :length].clone(), self._mask[:2, :length].clone()
        ids[1, _PAD:], ids[1, :_PAD] = self._ids[1, : length - _PAD], self._facts.shape.pad_id
        mask[1, :_PAD] = 0
        return self._forward(ids, mask)

    def cache_continues(self, plain: Forward) -> None:
        """6: both rows go on from the cache of such a padded batch, one token at a time."""
        if self._facts.caching == "none":
            return
        start = _LENGTH - _CONTINUED
        cache = self._padded(start).cache
        mask = self._mask[:2].clone()
        mask[1, :_PAD] = 0
        for at in range(start, _LENGTH):
            ids = torch.stack([self._ids[0, at], self._ids[1, at - _PAD]])[:, None]
            one = self._forward(ids, mask[:, : at + 1], cache)
            cache = one.cache
            for row, column in ((0, at), (1, at - _PAD)):
                far = max(
                    self._off(one.logits[row, 0], plain.logits[row, column]),
                    self._off(one.values["resid"][:, row, 0], plain.values["resid"][:, row, column]),
                )
                if far > self._loose:
                    raise self._refusal(f"continued from a cache, token {column} is read otherwise: off by {far:.1g}")

    def _off(self, a: Tensor, b: Tensor) -> float:
        """max|a - b| / max|b|; nil of nothing, infinite where shapes differ or a number is not one."""
        if a.shape != b.shape:
            return float("inf")
        if not a.numel():
            return 0.0
        far = float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-6))
        return far if far == far else float("inf")

    def _refusal(self, found: str) -> ModelError:
        facts = self._facts
        remedy = "nothing is captured from it; report it with its config.json"
        if facts.backend != "hf":
            remedy = "use --backend hf"
        elif facts.dtype not in _TOLERANCE:
            remedy = "load it with --dtype float32"
        return ModelError(
            f"{facts.architecture} cannot be read rightly through backend {facts.backend!r}: {found}; {remedy}"
        )
