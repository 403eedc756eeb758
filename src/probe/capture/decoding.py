"""One pass over many rows: prompts enter, answers are decoded, rows that have ended make room. Knows no parser.

As many rows as the batch has decode together, each at its own place in its answer. A row that has ended leaves at once
and a waiting one takes its place, so the time is that of all tokens and not of the longest answer of each batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture.batching import PassInput, PassSettings, new_token_cap
from probe.capture.label_reads import read_labels
from probe.capture.prefixes import Cluster, share_prefixes, unshared
from probe.capture.raw_rows import LetterStep, RawRow
from probe.capture.replays import Replays
from probe.capture.sampling import choose_tokens, row_generator
from probe.capture.side_paths import SidePaths
from probe.capture.slots import NO_PREFIX, Prefix, Slots
from probe.capture.teacher_forcing import TeacherForcing
from probe.capture.waiting import Waiting
from probe.models.caches import CacheLayout
from probe.models.protocol import Backend, Forward, Reads
from probe.prompts import LetterVocabulary


def run_pass(
    backend: Backend,
    rows: Sequence[PassInput],
    settings: PassSettings,
    vocabulary: LetterVocabulary,
    *,
    batch_size: int | None = None,
) -> list[RawRow]:
    """Run the rows, ``batch_size`` of them at a time (by default all), and give them in their order.

    What is read (label log-probabilities, entropy) is of the model's own logits, whatever temperature tokens are drawn
    at. A drawn row's tokens depend on its own logits and key alone, not on the batch.
    """
    found = dict(stream_pass(backend, rows, settings, vocabulary, batch_size=batch_size))
    return [found[i] for i in range(len(rows))]


def stream_pass(
    backend: Backend,
    rows: Sequence[PassInput],
    settings: PassSettings,
    vocabulary: LetterVocabulary,
    *,
    batch_size: int | None = None,
) -> Iterator[tuple[int, RawRow]]:
    """:func:`run_pass`, row by row as each ends: its index and what it gave."""
    if rows:
        yield from _Pass(backend, rows, settings, vocabulary, min(batch_size or len(rows), len(rows))).run()


@dataclass(eq=False)
class _Running:
    """A row that stands in a slot: its index, what it gave so far, its randomness, and the token that it is fed next
    (None: it is fed no more)."""

    index: int
    raw: RawRow
    stream: np.random.Generator | None
    token: int | None = None


class _Pass:
    """The schedule of one pass; the i-th running row is the i-th of the slots."""

    def __init__(
        self,
        backend: Backend,
        rows: Sequence[PassInput],
        settings: PassSettings,
        vocabulary: LetterVocabulary,
        n_slots: int,
    ) -> None:
        facts = backend.facts
        self._rows, self._settings, self._vocabulary, self._shape = rows, settings, vocabulary, facts.shape
        self._slots = _open_slots(backend, rows, settings, n_slots)
        clusters = share_prefixes(rows, settings) if self._slots.shares else [unshared(rows)]
        self._waiting = Waiting(rows, clusters, facts.device.type, equal=self._slots.equal_lengths)
        self._sides = SidePaths(self._slots, settings.points, facts)
        self._given = TeacherForcing(self._slots, settings, vocabulary, facts)
        self._means = _ResponseMeans() if "response_mean" in settings.positions else None
        self._ends = frozenset(facts.shape.end_ids)
        self._lettered = frozenset(vocabulary.token_ids)
        self._read_in_answers = settings.answer_points
        self._running: list[_Running] = []
        self._prefix: tuple[Cluster | None, Prefix] = (None, NO_PREFIX)
        self._enough = max(1, n_slots // 8)

    def run(self) -> Iterator[tuple[int, RawRow]]:
        """Until no row waits and none runs."""
        while self._waiting or self._running:
            while self._waiting and self._slots.free >= min(self._enough, len(self._waiting)):
                self._enter()
                yield from self._leave()
            if self._running:
                forward = self._slots.step([each.token or 0 for each in self._running], self._read_in_answers)
                if self._means is not None:
                    self._means.add(forward)
                self._choose(0, forward.logits[:, 0], forward)
                yield from self._leave()

    def _enter(self) -> None:
        """Feed the next group of prompts, read its sites and forks, feed given answers, and choose first tokens."""
        group = self._waiting.take(self._slots.free)
        rows = [self._rows[index] for index in group.rows]
        first, prefix = len(self._running), self._prefix_of(group.cluster, rows[0])
        forward = self._slots.enter(rows, prefix)
        if not self._waiting.has_more_of(group.cluster):
            self._prefix = (None, NO_PREFIX)
        self._slots.expect(self._waiting.longest)
        logits = forward.logits[:, 0]
        raws = self._after_prompt(rows, forward, prefix)
        streams = [row_generator(*row.key) if self._settings.sampling else None for row in rows]
        self._running.extend(_Running(*each) for each in zip(group.rows, raws, streams, strict=True))
        if any(row.forks for row in rows):
            self._sides.after_prompt(first, raws, logits)
        if any(row.given is not None for row in rows):
            with self._slots.side_path(first, first + len(rows)):
                self._given.feed(first, raws, logits)
        self._choose(first, logits, None)

    def _prefix_of(self, cluster: Cluster, row: PassInput) -> Prefix:
        """The cluster's shared tokens, run when its first group enters and held until its last one has."""
        if self._prefix[0] is not cluster:
            self._prefix = (cluster, self._slots.prefix(row, cluster.n_prefix) if cluster.n_prefix else NO_PREFIX)
        return self._prefix[1]

    def _after_prompt(self, rows: Sequence[PassInput], forward: Forward, prefix: Prefix) -> list[RawRow]:
        reads = read_labels(forward.logits[:, 0], [row.labels for row in rows])
        raws = []
        for i, (row, read) in enumerate(zip(rows, reads, strict=True)):
            # prompt_end is always kept here: it is also the answer site of a row that opens with its letter.
            # Copies: a view would hold what was read of the whole group for as long as its slowest row runs.
            values = {(stream, "prompt_end"): value[:, i, 0].clone() for stream, value in forward.values.items()}
            if "persona_end" in self._settings.positions and row.persona_end is not None:
                shared = row.persona_end < prefix.n_tokens
                here = forward.values.items()
                own = prefix.persona_end if shared else {stream: value[:, i, 1].clone() for stream, value in here}
                values |= {(stream, "persona_end"): value for stream, value in own.items()}
            if "case_mean" in self._settings.positions and row.case_tokens is not None:
                values |= {(stream, "case_mean"): mean[:, i, 0].clone() for stream, mean in forward.means.items()}
            cap = new_token_cap(row, self._settings.max_new_tokens, self._shape.context)
            raws.append(RawRow(read, values, cap, stop="" if cap[0] > 0 else cap[1]))
        return raws

    def _choose(self, first: int, logits: Float[Tensor, "row vocab"], forward: Forward | None) -> None:
        """Choose the next token of the running rows from ``first`` on; keep the steps whose token holds a letter.

        ``forward`` is the step that gave the logits, None after a prompt: what was read there is its own site.
        """
        running = self._running[first:]
        chosen = choose_tokens(logits, self._settings.sampling, [each.stream for each in running])
        hits = []
        for i, (each, token) in enumerate(zip(running, chosen, strict=True)):
            each.token = None
            if not each.raw.stop:
                index = len(each.raw.tokens)
                if each.raw.take(token, self._ends):
                    if forward is not None and token in self._lettered:
                        hits.append((i, token, index))
                    # Where it was the last one, it is fed only if its activations enter a mean.
                    each.token = token if self._means is not None or not each.raw.stop else None
        if hits and forward is not None:
            labels = [self._vocabulary.counterparts(token) for _, token, _ in hits]
            reads = read_labels(logits[[i for i, _, _ in hits]], labels)
            for (i, token, index), read in zip(hits, reads, strict=True):
                values = {stream: value[:, i, 0].clone() for stream, value in forward.values.items()}
                running[i].raw.keep(LetterStep(index, values, read, self._vocabulary.is_word(token)))

    def _leave(self) -> Iterator[tuple[int, RawRow]]:
        """Let the rows go that are fed no more, once what follows their reasoning is read."""
        gone = [slot for slot, each in enumerate(self._running) if each.token is None]
        if not gone:
            return
        ended = [self._running[slot] for slot in gone]
        for slot, each in zip(gone, ended, strict=True):
            self._sides.after_reasoning(slot, each.raw)
            if self._means is not None and each.raw.given_logp is None:
                self._means.give(slot, each.raw)
        order = self._slots.leave(gone)
        self._running = [self._running[slot] for slot in order]
        if self._means is not None:
            self._means.reorder(order)
        for each in ended:
            yield each.index, each.raw


class _ResponseMeans:
    """Running fp32 means over the generated tokens of the running rows."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, forward: Forward) -> None:
        """One more fed token of every running row; rows that are new stand last."""
        for stream, value in forward.values.items():
            here = value[:, :, 0].float()
            self._sums[stream] = here + _widened(self._sums[stream], here.shape[1]) if stream in self._sums else here

    def reorder(self, order: list[int]) -> None:
        """Follow the slots: row i was row ``order[i]``; the newest rows may have no sum yet."""
        for stream, sums in self._sums.items():
            self._sums[stream] = _widened(sums, max(order, default=-1) + 1)[:, order]

    def give(self, slot: int, raw: RawRow) -> None:
        """The means of a row over all its tokens; it has none without a token."""
        if raw.tokens:
            raw.values |= {
                (stream, "response_mean"): value[:, slot] / len(raw.tokens) for stream, value in self._sums.items()
            }


def _widened(sums: Float[Tensor, "layer row width"], n_rows: int) -> Float[Tensor, "layer more width"]:
    """Zeros for the rows that have no sum yet."""
    return torch.nn.functional.pad(sums, (0, 0, 0, max(n_rows - sums.shape[1], 0)))


def _open_slots(backend: Backend, rows: Sequence[PassInput], settings: PassSettings, n_slots: int) -> Slots | Replays:
    """A cache of the model's own forms, which one token tells; or none, where rows of it cannot be aligned."""
    if backend.facts.caching != "none":
        ids = torch.tensor([rows[0].token_ids[:1]], device=backend.facts.device)
        told = backend.forward(ids, torch.ones_like(ids), Reads((), torch.zeros_like(ids)))
        layout = CacheLayout(told.cache)
        if layout.layers is not None:
            longest = max(row.length for row in rows)
            return Slots(backend, layout, n_rows=n_slots, longest=longest, settings=settings)
    return Replays(backend, n_rows=n_slots, settings=settings)
