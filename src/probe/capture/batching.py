"""Rows as one padded batch, and the columns that their sites read. Knows tokens; knows no model's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from probe.capture.sampling import Sampling
from probe.models.points import residual_points
from probe.models.protocol import Reads
from probe.prompts import LabelTokens


@dataclass(frozen=True)
class PassSettings:
    """What a pass records, how far it goes and how: ``layers`` are residual points; greedy without ``sampling``."""

    layers: tuple[int, ...]
    positions: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling | None = None


@dataclass(frozen=True)
class PassInput:
    """One row of a batch: prompt tokens, the columns that its sites read, and its label tokens in option order.

    ``key`` is the row's id and its seed: what its randomness depends on where tokens are drawn.
    """

    token_ids: tuple[int, ...]
    persona_end: int | None
    case_tokens: tuple[int, int] | None
    labels: LabelTokens
    key: tuple[str, int] = ("", 0)


def left_padded(
    prompts: Sequence[tuple[int, ...]], pad_id: int, device: torch.device
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], list[int]]:
    """Ids and masks made from lengths: a pad id may be a real token elsewhere."""
    width = max(len(prompt) for prompt in prompts)
    pads = [width - len(prompt) for prompt in prompts]
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prompt, pad) in enumerate(zip(prompts, pads, strict=True)):
        ids[row, pad:] = torch.tensor(prompt)
        mask[row, pad:] = 1
    return ids.to(device), mask.to(device), pads


def prefill_reads(
    rows: Sequence[PassInput], pads: list[int], width: int, settings: PassSettings, device: torch.device
) -> Reads:
    """Columns: the last prompt token, and the persona's last token (any column where absent; it is left out later)."""
    columns = [
        [width - 1, pad + row.persona_end if row.persona_end is not None else width - 1]
        for row, pad in zip(rows, pads, strict=True)
    ]
    spans = None
    if "case_mean" in settings.positions:
        inside = [
            [[pad + row.case_tokens[0], pad + row.case_tokens[1]] if row.case_tokens else [0, 0]]
            for row, pad in zip(rows, pads, strict=True)
        ]
        spans = torch.tensor(inside, device=device)
    return Reads(residual_points(settings.layers), torch.tensor(columns, device=device), spans)


def new_token_caps(rows: Sequence[PassInput], max_new: int, context: int | None) -> list[tuple[int, str]]:
    """How many tokens each row may generate, and what stops it there: ``length`` or ``context``."""
    rooms = [max_new if context is None else min(max_new, context - len(row.token_ids)) for row in rows]
    return [(room, "length" if room == max_new else "context") for room in rooms]
