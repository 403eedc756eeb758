"""Teacher forcing: an answer that is fed, not generated. Knows tokens and slots; knows no parser and no store."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from probe.capture.batching import PassSettings
from probe.capture.label_reads import read_labels
from probe.capture.raw_rows import LetterStep, RawRow
from probe.capture.replays import Replays
from probe.capture.side_paths import token_logp
from probe.capture.slots import Slots
from probe.models.protocol import Forward, ModelFacts, Reads
from probe.prompts import LetterVocabulary

_LOGITS = 2**26
"""The most logits of a forward that are held at once: 256 MiB in fp32."""


class TeacherForcing:
    """Feeds given answers after their prompts, and reads what a row that generated them would have read."""

    def __init__(
        self, slots: Slots | Replays, settings: PassSettings, vocabulary: LetterVocabulary, facts: ModelFacts
    ) -> None:
        self._slots = slots
        self._settings = settings
        self._vocabulary = vocabulary
        self._lettered = frozenset(vocabulary.token_ids)
        self._facts = facts

    def feed(self, first: int, raws: Sequence[RawRow], logits: Float[Tensor, "row vocab"]) -> None:
        """Feed the answers of rows that have just entered, in pieces; rows without one are left alone.

        ``logits`` are those after the prompts. Call it inside a side path of the slots. A row whose answer does not fit
        into the context has stopped there.
        """
        answers = [self._cut(self._slots.rows[first + i].given, raw, first + i) for i, raw in enumerate(raws)]
        longest = max(map(len, answers))
        width = max(1, min(longest, _LOGITS // (len(raws) * self._facts.shape.vocab)))
        logps: list[list[float]] = [[] for _ in raws]
        sums: list[dict[str, Tensor]] = [{} for _ in raws]
        before = logits
        for start in range(0, longest, width):
            pieces = [answer[start : start + width] for answer in answers]
            forward = self._slots.aside(
                first, [piece or (0,) for piece in pieces], self._reads(answers, start, width), offset=start
            )
            for i, piece in enumerate(pieces):
                logps[i].extend(token_logp(torch.cat([before[i, None], forward.logits[i]]), piece).tolist())
                self._take_steps(raws[i], answers[i], start, i, forward)
                for stream, mean in forward.means.items():
                    if piece:
                        sums[i][stream] = sums[i].get(stream, 0) + mean[:, i, 0] * len(piece)
            before = forward.logits[:, -1]
        for i, raw in enumerate(raws):
            if self._slots.rows[first + i].given is not None:
                raw.given_logp = torch.tensor(logps[i])
                raw.values |= {(stream, "response_mean"): sums[i][stream] / len(answers[i]) for stream in sums[i]}

    def _cut(self, given: tuple[int, ...] | None, raw: RawRow, slot: int) -> tuple[int, ...]:
        if given is None:
            return ()
        context = self._facts.shape.context
        room = len(given) if context is None else context - self._slots.fed(slot)
        raw.tokens = list(given[:room])
        raw.stop = "given" if room >= len(given) else "context"
        return tuple(raw.tokens)

    def _lettered_in(self, answer: tuple[int, ...], start: int, width: int) -> list[int]:
        """Tokens of one piece after which a token with a letter stands."""
        return [k for k in range(start, min(start + width, len(answer) - 1)) if answer[k + 1] in self._lettered]

    def _reads(self, answers: Sequence[tuple[int, ...]], start: int, width: int) -> Reads:
        width = min(width, max(map(len, answers)) - start)
        lettered = [[k - start for k in self._lettered_in(answer, start, width)] for answer in answers]
        most = max(1, *map(len, lettered))
        device = self._facts.device
        columns = torch.tensor([[*own, *[0] * (most - len(own))] for own in lettered], device=device)
        spans = None
        if "response_mean" in self._settings.positions:
            ends = [min(max(len(answer) - start, 0), width) for answer in answers]
            spans = torch.tensor([[[0, end]] for end in ends], device=device)
        every = torch.arange(width, device=device).expand(len(answers), -1)
        return Reads(self._settings.answer_points, columns, spans, every)

    def _take_steps(self, raw: RawRow, answer: tuple[int, ...], start: int, row: int, forward: Forward) -> None:
        found = self._lettered_in(answer, start, forward.logits.shape[1])
        if not found:
            return
        labels = [self._vocabulary.counterparts(answer[k + 1]) for k in found]
        reads = read_labels(forward.logits[row, [k - start for k in found]], labels)
        for column, (k, read) in enumerate(zip(found, reads, strict=True)):
            values = {stream: value[:, row, column].clone() for stream, value in forward.values.items()}
            raw.keep(LetterStep(k + 1, values, read, self._vocabulary.is_word(answer[k + 1])))
