"""One batch, one pass: prefill, then decoding from its cache. Knows tokens and sites; knows no parser and no store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.capture.batching import PassInput, PassSettings, left_padded, new_token_caps, prefill_reads
from probe.capture.label_reads import read_labels
from probe.capture.sampling import Chooser
from probe.models.points import residual_points
from probe.models.protocol import Backend, Forward, Reads
from probe.prompts import LetterVocabulary
from probe.values import LabelRead

KEPT_STEPS = 8
"""How many steps whose token holds a label letter are kept per row, for the ``answer`` site: the newest ones, articles
giving way first. The first token needs no place: its site is ``prompt_end``."""


@dataclass(frozen=True, eq=False)
class LetterStep:
    """A decoding step whose token holds a label letter: its index among the generated tokens, what was read at the
    position before it, and whether the token may as well be a word (the article)."""

    index: int
    resid: Float[Tensor, "layer d_model"]
    read: LabelRead
    word: bool = False


@dataclass(eq=False)
class RawRow:
    """What one row's pass gave, still being filled while the batch decodes.

    ``stop`` is ``end`` (the model ended its turn), ``length`` (new-token cap) or ``context``. ``tokens`` leave out the
    end token. ``letter_steps`` are the newest of ``n_letter_steps``.
    """

    prompt_read: LabelRead
    resid: dict[str, Float[Tensor, "layer d_model"]]
    cap: tuple[int, str]
    tokens: list[int] = field(default_factory=list)
    stop: str = ""
    letter_steps: list[LetterStep] = field(default_factory=list)
    n_letter_steps: int = 0

    def take(self, token: int, ends: frozenset[int]) -> bool:
        """Append a chosen token unless it ends the answer; returns whether it was appended."""
        if token in ends:
            self.stop = "end"
            return False
        self.tokens.append(token)
        if len(self.tokens) >= self.cap[0]:
            self.stop = self.cap[1]
        return True


def run_pass(
    backend: Backend, rows: Sequence[PassInput], settings: PassSettings, vocabulary: LetterVocabulary
) -> list[RawRow]:
    """Prefill the rows together, left-padded, read their sites, and go on from the same cache, one token at a time.

    What is read (label log-probabilities, entropy) is of the model's own logits, whatever temperature tokens are drawn
    at. A drawn row's tokens depend on its own logits and key alone, not on the batch.
    """
    facts, shape = backend.facts, backend.facts.shape
    ids, mask, pads = left_padded([row.token_ids for row in rows], shape.pad_id, facts.device)
    first = backend.forward(ids, mask, prefill_reads(rows, pads, ids.shape[1], settings, facts.device))
    raw = _after_prefill(rows, first, settings, shape.context)
    chooser = Chooser(settings.sampling, [row.key for row in rows])
    _decode(backend, raw, first, mask, settings, vocabulary, chooser)
    return raw


def _after_prefill(
    rows: Sequence[PassInput], first: Forward, settings: PassSettings, context: int | None
) -> list[RawRow]:
    reads = read_labels(first.logits[:, 0], [row.labels for row in rows])
    caps = new_token_caps(rows, settings.max_new_tokens, context)
    raw = []
    for i, row in enumerate(rows):
        resid: dict[str, Tensor] = {}
        # prompt_end is always kept here: it is also the answer site of a row that opens with its letter.
        resid["prompt_end"] = first.values["resid"][:, i, 0]
        if "persona_end" in settings.positions and row.persona_end is not None:
            resid["persona_end"] = first.values["resid"][:, i, 1]
        if "case_mean" in settings.positions and row.case_tokens is not None:
            resid["case_mean"] = first.means["resid"][:, i, 0]
        raw.append(RawRow(prompt_read=reads[i], resid=resid, cap=caps[i], stop="" if caps[i][0] > 0 else caps[i][1]))
    return raw


def _decode(
    backend: Backend,
    raw: list[RawRow],
    current: Forward,
    mask: Int[Tensor, "batch pos"],
    settings: PassSettings,
    vocabulary: LetterVocabulary,
    chooser: Chooser,
) -> None:
    """Fill the rows with their continuation, until each has ended or met its cap."""
    facts, shape = backend.facts, backend.facts.shape
    ends = frozenset(shape.end_ids)
    lettered = torch.zeros(shape.vocab, dtype=torch.bool)
    lettered[[i for i in vocabulary.token_ids if i < shape.vocab]] = True
    newest = Reads(residual_points(settings.layers), torch.zeros((len(raw), 1), dtype=torch.long, device=facts.device))
    mean = _ResponseMean(len(raw)) if "response_mean" in settings.positions else None
    while not all(row.stop for row in raw):
        chosen = chooser.choose(current.logits[:, 0])
        running = torch.tensor([not row.stop for row in raw])
        later = torch.tensor([bool(row.tokens) for row in raw])
        _keep_letter_steps(raw, running & later & lettered[chosen], chosen, current, vocabulary)
        appended = [not row.stop and row.take(int(token), ends) for row, token in zip(raw, chosen, strict=True)]
        if all(row.stop for row in raw) and mean is None:
            break
        # The cache took the mask's columns so far; the rows that have ended go on unread until the batch has.
        mask = torch.cat([mask, mask.new_ones((len(raw), 1))], dim=1)
        current = backend.forward(chosen[:, None].to(facts.device), mask, newest, cache=current.cache)
        if mean is not None:
            mean.add(current.values["resid"][:, :, 0], torch.tensor(appended))
    if mean is not None:
        mean.give(raw)


def _keep_letter_steps(
    raw: list[RawRow],
    hit: Bool[Tensor, " batch"],
    chosen: Int[Tensor, " batch"],
    current: Forward,
    vocabulary: LetterVocabulary,
) -> None:
    rows = hit.nonzero()[:, 0].tolist()
    if not rows:
        return
    reads = read_labels(current.logits[rows, 0], [vocabulary.counterparts(int(chosen[i])) for i in rows])
    for i, read in zip(rows, reads, strict=True):
        row, word = raw[i], vocabulary.is_word(int(chosen[i]))
        row.letter_steps.append(LetterStep(len(row.tokens), current.values["resid"][:, i, 0].clone(), read, word))
        row.n_letter_steps += 1
        if len(row.letter_steps) > KEPT_STEPS:
            words = [at for at, step in enumerate(row.letter_steps) if step.word]
            del row.letter_steps[words[0] if words else 0]


class _ResponseMean:
    """The running fp32 mean of the residual over each row's generated tokens."""

    def __init__(self, n_rows: int) -> None:
        self._sums: Tensor | None = None
        self._counts = torch.zeros(n_rows, dtype=torch.long)

    def add(self, points: Float[Tensor, "layer batch d_model"], counts: Bool[Tensor, " batch"]) -> None:
        taken = points.float() * counts.to(points.device)[None, :, None]
        self._sums = taken if self._sums is None else self._sums + taken
        self._counts += counts

    def give(self, raw: list[RawRow]) -> None:
        for i, row in enumerate(raw):
            if self._sums is not None and self._counts[i]:
                row.resid["response_mean"] = self._sums[:, i] / int(self._counts[i])
