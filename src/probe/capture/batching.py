"""What a pass is asked: rows of tokens with their sites, and which of a forward's columns they read. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from probe.capture.forks import Fork, ReasoningEnd
from probe.capture.sampling import Sampling
from probe.models.points import HookPoint
from probe.models.protocol import Reads
from probe.prompts import LabelTokens
from probe.values import Intervention


@dataclass(frozen=True)
class PassSettings:
    """What a pass records, how far it goes and how: greedy without ``sampling``.

    ``points`` are read at every site; ``positions`` are the sites.
    """

    points: tuple[HookPoint, ...]
    positions: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling | None = None

    @property
    def answer_points(self) -> tuple[HookPoint, ...]:
        """What is read while an answer is fed: nothing where no site lies in one."""
        return self.points if {"answer", "response_mean"} & set(self.positions) else ()


@dataclass(frozen=True)
class PassInput:
    """One row of a pass: prompt tokens, the places that its sites read, and its label tokens in option order.

    ``key`` is the row's id and its seed: what its randomness depends on where tokens are drawn. ``forks`` are read
    beside the row's course, and ``reasoning_end`` says where those at the end of its reasoning begin. ``given`` are the
    tokens of an answer that is fed in place of a generated one. ``max_new_tokens`` stands before that of the settings.
    ``interventions`` act in their order; ``persona_tokens`` is the ``[start, end)`` of the persona's text.
    """

    token_ids: tuple[int, ...]
    persona_end: int | None
    case_tokens: tuple[int, int] | None
    labels: LabelTokens
    key: tuple[str, int] = ("", 0)
    forks: tuple[Fork, ...] = ()
    reasoning_end: ReasoningEnd | None = None
    given: tuple[int, ...] | None = None
    max_new_tokens: int | None = None
    interventions: tuple[Intervention, ...] = ()
    persona_tokens: tuple[int, int] | None = None

    @property
    def length(self) -> int:
        """Prompt tokens."""
        return len(self.token_ids)


def left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], list[int]]:
    """Ids and masks made from lengths: a pad id may be a real token elsewhere."""
    width = max(len(prompt) for prompt in prompts)
    pads = [width - len(prompt) for prompt in prompts]
    ids = torch.tensor([[pad_id] * pad + list(prompt) for prompt, pad in zip(prompts, pads, strict=True)])
    mask = mask_of(pads, width, torch.device("cpu"))
    return ids.to(device), mask.to(device), pads


def filled(chunks: Sequence[Sequence[int]], pad_id: int) -> list[list[int]]:
    """Chunks of tokens as one block: shorter ones are filled up behind."""
    width = max(len(chunk) for chunk in chunks)
    return [[*chunk, *[pad_id] * (width - len(chunk))] for chunk in chunks]


def mask_of(pads: Sequence[int], width: int, device: torch.device) -> Int[Tensor, "batch pos"]:
    """1 from each row's first token on."""
    return (torch.arange(width, device=device) >= torch.tensor(pads, device=device)[:, None]).long()


def prompt_reads(
    rows: Sequence[PassInput], width: int, settings: PassSettings, n_prefix: int, device: torch.device
) -> Reads:
    """What is read while the last ``width`` prompt tokens of each row are fed.

    Columns: the last prompt token, and the persona's last token unless it lies in the prefix (any column where absent;
    it is left out later).
    """
    columns = []
    for row in rows:
        end = row.persona_end
        absent = end is None or end < n_prefix or "persona_end" not in settings.positions
        columns.append([width - 1, width - 1 if absent or end is None else width - row.length + end])
    spans = None
    if "case_mean" in settings.positions:
        cases = [
            [width - row.length + place for place in row.case_tokens] if row.case_tokens else [0, 0] for row in rows
        ]
        spans = torch.tensor(cases, device=device)[:, None]
    return Reads(settings.points, torch.tensor(columns, device=device), spans)


def newest_reads(n_rows: int, points: tuple[HookPoint, ...], device: torch.device) -> Reads:
    """What is read while one token of each row is fed."""
    return Reads(points, torch.zeros((n_rows, 1), dtype=torch.long, device=device))


def new_token_cap(row: PassInput, max_new: int, context: int | None) -> tuple[int, str]:
    """How many tokens a row may have after its prompt, and what stops it there: ``length`` or ``context``."""
    wanted = max_new if row.max_new_tokens is None else row.max_new_tokens
    room = wanted if context is None else min(wanted, context - row.length)
    return room, "length" if room == wanted else "context"
