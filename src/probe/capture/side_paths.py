"""What is read beside a row's own course: forks of its cache. Knows tokens and rows; knows no schedule, no parser."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture.batching import PassInput
from probe.capture.forks import Fork, ForkRead
from probe.capture.label_reads import read_labels
from probe.capture.raw_rows import RawRow
from probe.capture.replays import Replays
from probe.capture.slots import Slots
from probe.models.points import HookPoint
from probe.models.protocol import ModelFacts, Reads
from probe.values import AbsentSite

_NOTHING = (0,)
"""Fed for a row that has no such fork; any token would do, for nothing is read."""


class SidePaths:
    """Reads the forks of rows that stand in some slots."""

    def __init__(self, slots: Slots | Replays, points: tuple[HookPoint, ...], facts: ModelFacts) -> None:
        self._slots = slots
        self._points = points
        self._context = facts.shape.context
        self._device = facts.device

    def after_prompt(self, first: int, raws: Sequence[RawRow], logits: Float[Tensor, "row vocab"]) -> None:
        """Read the ``prompt_end`` forks of rows that have just entered, one of each row at a time.

        ``logits`` are those after the prompts.
        """
        rows = self._slots.rows[first : first + len(raws)]
        forks = [[fork for fork in row.forks if fork.at == "prompt_end"] for row in rows]
        for turn in range(max(map(len, forks))):
            own = [self._fitting(rows[i], raws[i], forks[i][turn : turn + 1]) for i in range(len(rows))]
            chunks = [_NOTHING if fork is None else fork.token_ids or _NOTHING for fork in own]
            with self._slots.side_path(first, first + len(rows)):
                found = self._read(first, chunks, [0 if f is None else len(f.token_ids) for f in own], logits, 0)
            for i, fork in enumerate(own):
                if fork is not None and fork.token_ids:
                    raws[i].forks[fork.name] = _with_labels(found[i], fork)
                elif fork is not None:  # an empty fork reads the end of the prompt itself
                    here = (np.zeros(0, np.float32), raws[i].at("prompt_end"), logits[i])
                    raws[i].forks[fork.name] = _with_labels(here, fork)

    def after_reasoning(self, slot: int, raw: RawRow) -> None:
        """Read the ``reasoning_end`` forks of a row that has ended and still stands in its slot."""
        row = self._slots.rows[slot]
        forks = [fork for fork in row.forks if fork.at == "reasoning_end"]
        place = row.reasoning_end(raw.tokens) if forks and row.reasoning_end is not None else None
        if place is None:
            return
        kept = row.length + place.n_kept
        # The last kept token is fed once more: its logits say how likely the first token of the fork is.
        last = (*row.token_ids, *raw.tokens)[kept - 1]
        for fork in forks:
            chunk = (last, *place.token_ids, *fork.token_ids)
            if not self._slots.can_go_back or (self._context is not None and kept - 1 + len(chunk) > self._context):
                raw.forks[fork.name] = AbsentSite.UNAVAILABLE
                continue
            with self._slots.side_path(slot, slot + 1):
                offset = kept - 1 - self._slots.fed(slot)
                found = self._read(slot, [chunk], [len(chunk)], None, offset)[0]
            raw.forks[fork.name] = _with_labels(found, fork)

    def _fitting(self, row: PassInput, raw: RawRow, forks: list[Fork]) -> Fork | None:
        if not forks:
            return None
        if self._context is not None and row.length + len(forks[0].token_ids) > self._context:
            raw.forks[forks[0].name] = AbsentSite.UNAVAILABLE
            return None
        return forks[0]

    def _read(
        self, first: int, chunks: Sequence[Sequence[int]], lengths: list[int], before: Tensor | None, offset: int
    ) -> list[tuple[np.ndarray, dict[str, Tensor], Tensor]]:
        """Of each chunk: log-probabilities of its tokens (without ``before``, all but the first), values, logits."""
        ends = [max(length - 1, 0) for length in lengths]
        every = torch.arange(max(map(len, chunks)), device=self._device).expand(len(chunks), -1)
        reads = Reads(self._points, torch.tensor(ends, device=self._device)[:, None], logits_at=every)
        forward = self._slots.aside(first, chunks, reads, offset=offset)
        found = []
        for i, chunk in enumerate(chunks):
            after = forward.logits[i]
            logp = token_logp(after if before is None else torch.cat([before[i, None], after]), chunk[before is None :])
            values = {stream: value[:, i, 0].clone() for stream, value in forward.values.items()}
            found.append((logp, values, after[ends[i]]))
        return found


def token_logp(logits: Float[Tensor, "row vocab"], tokens: Sequence[int]) -> Float[np.ndarray, " token"]:
    """The log-probability of each token under its row of logits: full softmax in fp32, nats."""
    at = torch.tensor(list(tokens), dtype=torch.long, device=logits.device)[:, None]
    found: np.ndarray = logits[: len(tokens)].float().log_softmax(-1).gather(1, at)[:, 0].cpu().numpy()
    return found


def _with_labels(found: tuple[np.ndarray, dict[str, Tensor], Tensor], fork: Fork) -> ForkRead:
    logp, values, logits = found
    read = None if fork.labels is None else read_labels(logits[None], [fork.labels])[0]
    return ForkRead(logp, values, read)
