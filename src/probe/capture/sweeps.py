"""Many edits of the same rows, label reads only. Knows rows, arms and distributions; knows no study and no direction.

Nothing is generated: each arm is read at the last token of its row. Arms are many (strengths, directions, controls), so
what they share is computed once where the model allows it; what is computed in which batch moves last bits only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture.batching import PassInput
from probe.capture.label_reads import read_labels
from probe.capture.sweep_full import FullForwards, Outcome
from probe.capture.sweep_items import Item, Operator, item_of
from probe.capture.sweep_resumed import ResumedForwards
from probe.models.hf import HFBackend
from probe.models.points import HookPoint
from probe.models.protocol import Backend
from probe.values import KVPatch, LabelRead, ProbeError, SweepRead


def sweep(
    backend: Backend,
    rows: Sequence[PassInput],
    arms: Sequence[Sequence[tuple[Operator, ...]]],
    *,
    points: tuple[HookPoint, ...] = (),
    against: Sequence[Sequence[int]] = (),
    batch_size: int = 64,
    resume: bool = True,
) -> Iterator[SweepRead]:
    """Read labels at the last token of each row under each of its arms, and of the row unedited.

    ``arms[r]`` are those of ``rows[r]``. At one hook point the patches of an arm act before its interventions, those of
    the whole width before those of columns, and else in the order in which they come. The last token is that of the
    prompt, or of what is ``given`` after it. ``points`` are read there too. ``against[r]`` names rows to whose unedited
    next-token distribution the divergence of row r and of its arms is told. ``batch_size`` bounds the rows, and the
    arms of one row, that are fed together; arms of a last token alone are fed by the hundred.

    Reads come row by row, of each first the unedited one, then its arms in their order. Where the model allows it, arms
    are computed from the layer and the token at which they begin; with ``resume`` False each is a whole forward.

    Raises:
        ProbeError: lists of different lengths, a row with interventions of its own, labels that are not one token each,
            or an operator that does not fit its row or the model.
    """
    _require_rows(rows, arms, against)
    named = {(each.stream, each.layer) for own in arms for arm in own for each in arm if not isinstance(each, KVPatch)}
    backend.facts.require((*points, *(HookPoint(*place) for place in named)))
    items = [
        [item_of(r, a, row, operators, backend.facts) for a, operators in enumerate(own)]
        for r, (row, own) in enumerate(zip(rows, arms, strict=True))
    ]
    runner: FullForwards | ResumedForwards = FullForwards(backend, rows, points, batch_size)
    if resume and isinstance(backend, HFBackend) and backend.resumer is not None:
        runner = ResumedForwards(backend, backend.resumer, rows, points, batch_size)
    yield from _Sweep(runner, rows, items, against, batch_size).run()


@dataclass(frozen=True, eq=False)
class _Unedited:
    """A row as it is: log-probabilities over the vocabulary, and over its labels and all other tokens."""

    logp: Float[Tensor, " vocab"]
    labels: Float[Tensor, " label_and_other"]


class _Sweep:
    def __init__(
        self,
        runner: FullForwards | ResumedForwards,
        rows: Sequence[PassInput],
        items: Sequence[Sequence[Item]],
        against: Sequence[Sequence[int]],
        batch_size: int,
    ) -> None:
        self._runner, self._rows, self._items, self._batch_size = runner, rows, items, batch_size
        self._against = against or [()] * len(rows)
        self._last_use = {k: r for r, others in enumerate(self._against) for k in others}
        self._unedited: dict[int, _Unedited] = {}
        self._n_labels = max((len(row.labels.ids) for row in rows), default=0)

    def run(self) -> Iterator[SweepRead]:
        at_once = self._runner.rows_at_once([item for own in self._items for item in own])
        for first in range(0, len(self._rows), at_once):
            here = list(range(first, min(first + at_once, len(self._rows))))
            yield from self._chunk(here)
            self._unedited = {k: own for k, own in self._unedited.items() if self._last_use.get(k, -1) > here[-1]}

    def _chunk(self, here: list[int]) -> Iterator[SweepRead]:
        """The reads of some neighbouring rows."""
        others = dict.fromkeys(k for r in here for k in self._against[r] if k not in here and k not in self._unedited)
        for first in range(0, len(others), self._batch_size):
            some = list(others)[first : first + self._batch_size]
            self._keep(some, self._runner.unedited(some, []))
        items = [item for r in here for item in self._items[r]]
        plain = self._runner.unedited(here, items)
        self._keep(here, plain)
        found = {(each.row, each.arm): each for each in self._reads([(r, None) for r in here], plain)}
        for batch, outcome in self._runner.edited(items):
            found |= {(each.row, each.arm): each for each in self._reads([(i.row, i.arm) for i in batch], outcome)}
        for r in here:
            for arm in (None, *range(len(self._items[r]))):
                yield found[r, arm]

    def _keep(self, rows: Sequence[int], outcome: Outcome) -> None:
        logp = outcome.logits.log_softmax(-1)
        over = self._over_labels(rows, logp, read_labels(outcome.logits, [self._rows[r].labels for r in rows]))
        self._unedited |= {r: _Unedited(logp[i], over[i]) for i, r in enumerate(rows)}

    def _over_labels(
        self, rows: Sequence[int], logp: Float[Tensor, "row vocab"], reads: Sequence[LabelRead]
    ) -> Float[Tensor, "row label_and_other"]:
        """Log-probabilities of each row's labels and of all other tokens together; -inf where a row has fewer labels.

        The other tokens are summed by themselves: what one less the labels leaves is rounding where they have all.
        """
        at = [(i, token) for i, r in enumerate(rows) for ids in self._rows[r].labels.ids for token in ids]
        others = logp.clone()
        others[tuple(torch.tensor(at, device=logp.device).T)] = -torch.inf
        labels = np.full((len(rows), self._n_labels), -np.inf, np.float32)
        for own, read in zip(labels, reads, strict=True):
            own[: len(read.logp)] = read.logp
        return torch.cat([torch.from_numpy(labels).to(logp), others.logsumexp(-1, keepdim=True)], dim=-1)

    def _reads(self, names: Sequence[tuple[int, int | None]], outcome: Outcome) -> Iterator[SweepRead]:
        rows = [row for row, _ in names]
        logp = outcome.logits.log_softmax(-1)
        labels = read_labels(outcome.logits, [self._rows[r].labels for r in rows])
        references = [[self._unedited[k] for k in (r, *self._against[r])] for r in rows]
        kl = _divergences(logp, [[each.logp for each in own] for own in references])
        over = self._over_labels(rows, logp, labels)
        kl_labels = _divergences(over, [[each.labels for each in own] for own in references])
        values = {point: value.float().cpu().numpy() for point, value in outcome.values.items()}
        for i, (row, arm) in enumerate(names):
            own, own_labels = (kl[i][0], kl_labels[i][0]) if arm is not None else (0.0, 0.0)
            here = {point: value[i] for point, value in values.items()}
            yield SweepRead(row, arm, labels[i], own, own_labels, tuple(kl[i][1:]), tuple(kl_labels[i][1:]), here)


def _divergences(logp: Float[Tensor, "row outcome"], references: Sequence[Sequence[Tensor]]) -> list[list[float]]:
    """KL(row || reference) of each row to each of its references, in nats; what a row has none of adds nothing."""
    p = logp.exp()
    found = torch.zeros(len(references), max(map(len, references), default=0), device=logp.device)
    for turn in range(found.shape[1]):  # at most as many outcomes at a time as the rows have
        at = [i for i, own in enumerate(references) if turn < len(own)]
        wanted = torch.stack([references[i][turn] for i in at])
        whole = len(at) == len(references)
        mine, own_logp = (p, logp) if whole else (p[at], logp[at])
        found[at, turn] = torch.where(mine > 0, mine * (own_logp - wanted), 0.0).sum(-1).clamp(min=0)
    return [values[: len(own)] for values, own in zip(found.tolist(), references, strict=True)]


def _require_rows(
    rows: Sequence[PassInput], arms: Sequence[Sequence[tuple[Operator, ...]]], against: Sequence[Sequence[int]]
) -> None:
    if len(arms) != len(rows) or (against and len(against) != len(rows)):
        raise ProbeError(
            f"a sweep has one list of arms, and of rows to compare with, for each row; found {len(rows)} rows, "
            f"{len(arms)} lists of arms, {len(against)} of rows to compare with"
        )
    for number, row in enumerate(rows):
        if row.interventions:
            raise ProbeError(f"the rows of a sweep are unedited, and row {number} has interventions; make them an arm")
        if row.labels.spelled or not all(row.labels.ids):
            raise ProbeError(
                f"a sweep reads labels of one token each, and row {number} has labels of several; name other letters"
            )
    for number, others in enumerate(against):
        for k in others:
            if not 0 <= k < len(rows) or len(rows[k].labels.ids) != len(rows[number].labels.ids):
                raise ProbeError(f"row {number} is compared with row {k}, which is none or has other labels")
