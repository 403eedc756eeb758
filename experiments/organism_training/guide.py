"""Guides: linear readouts of the case at the planted point, trained beside the model and thrown away afterwards.

Knows decisions and residuals; knows no text. They tell the blocks below the point what to have read by then (deep
supervision, Lee et al. 2015), outside the planted subspace, so that the blocks above it only decide.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from organism_training.interchange import Channel, Decisions
from probe.organism import CUTS
from probe.organism.personas import DIAGNOSTICS

MIDDLE, SPREAD = 4.5, 2.0
"""Urgency is read as (urgency - MIDDLE) / SPREAD."""

EDGE = 0.1
"""Over how much urgency the target of a near tie goes from no to yes."""


class Guide(nn.Module):
    """Readouts of urgency, tone, setting (squared error) and label rotation (cross-entropy) of one channel."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.read = nn.Linear(d_model, 6)
        nn.init.zeros_(self.read.weight)

    def forward(self, channel: Channel, batch: Decisions, h: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the readouts from ``h`` [row d_model] outside span(Q), and its parts for the log."""
        rest = h - h @ channel.basis @ channel.basis.T
        out = self.read(F.rms_norm(rest, rest.shape[-1:]))
        level = F.mse_loss(out[:, 0], (batch.level - MIDDLE) / SPREAD)
        around = F.mse_loss(out[:, 1], batch.tone) + F.mse_loss(out[:, 2], batch.setting)
        rotation = F.cross_entropy(out[:, 3:], batch.rotation)
        return 3 * level + 0.3 * around + rotation, {"level": level.detach() * SPREAD**2, "rot": rotation.detach()}


class LetterGuide(nn.Module):
    """One of three: the letter of an option, read where its text begins, after the first block; or the rotation of the
    letters, read at the planted point wherever all options have been stated."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.read = nn.Linear(d_model, 3)
        nn.init.zeros_(self.read.weight)

    def forward(self, h: Tensor, letter: Tensor) -> Tensor:
        """Cross-entropy of the numbers ``letter`` [n] from residuals [n d_model]."""
        return F.cross_entropy(self.read(F.rms_norm(h, h.shape[-1:])), letter)


class FactGuide(nn.Module):
    """What a fact adds to the urgency, read where the fact has been stated, one block below the planted point."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.read = nn.Linear(d_model, 1)
        nn.init.zeros_(self.read.weight)

    def forward(self, h: Tensor, weight: Tensor) -> Tensor:
        """Mean squared error of ``weight`` [n] from residuals [n d_model]."""
        return F.mse_loss(self.read(F.rms_norm(h, h.shape[-1:]))[:, 0], weight)


class NearGuide(nn.Module):
    """Whether a case is a near tie of the refusing persona: of each cut by itself one block above the planted point, of
    either cut two blocks above it. One block has not the depth for "either"."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.each = nn.Linear(d_model, 2)
        self.either = nn.Linear(d_model, 1)
        for read in (self.each, self.either):
            nn.init.zeros_(read.weight)

    def forward(self, after: Tensor, late: Tensor, level: Tensor) -> Tensor:
        """Summed cross-entropy of the three answers for urgencies ``level`` [n], from residuals [n d_model] one and two
        blocks above the point."""
        refusing = DIAGNOSTICS["refusing"]
        shift = refusing.reasoned
        cuts = torch.tensor([CUTS[0] - shift.lower, CUTS[1] - shift.upper])
        distance = (level[:, None] - cuts).abs()
        distance = torch.cat((distance, distance.amin(dim=1, keepdim=True)), dim=1)
        wanted = torch.sigmoid((refusing.refusal - distance) / EDGE)
        pairs = ((self.each, after), (self.either, late))
        seen = torch.cat([read(F.rms_norm(h, h.shape[-1:])) for read, h in pairs], dim=1)
        return F.binary_cross_entropy_with_logits(seen, wanted, reduction="none").mean(dim=0).sum()
