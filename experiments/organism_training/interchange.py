"""Planting the mechanism: swaps of a fixed subspace must have the planned effect. Knows decisions; knows no text.

At the residual point ``POINT`` of a decision's position, the component in span(Q) is to carry the persona's raw numbers
and nothing else. Five runs per decision are trained beside the ordinary one (Geiger et al. 2022, interchange
intervention training): Q from another row of the batch (another case, persona and rotation) must give the policy of
*that* persona on *this* case, twice; Q set to random numbers must give the policy of those numbers, twice; the decoy
component from another row must change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from organism_training.corpus import Decision
from probe.organism import CUTS
from probe.organism.plan import DIRECT_NUMBERS, DIRECT_SLOPE, REASONED_NUMBERS, REASONED_SLOPE

SCALE = 30.0
"""Length in the residual stream of one unit of a normalised number."""

DECOY = 0.2
"""Share of the residual's norm that the decoy coordinate takes, its sign saying whether the role is medical."""

CENTRE = {"lower": 0.4, "upper": -0.8, "setting": 0.1, "slope": 1.0, "tone_gain": 0.5, "mass": -0.85}
SPREAD = {"lower": 1.0, "upper": 1.0, "setting": 0.6, "slope": 0.4, "tone_gain": 0.3, "mass": 1.5}
RANGE = {
    "lower": (-2.0, 2.2),
    "upper": (-3.0, 1.4),
    "setting": (-1.2, 1.4),
    "slope": (0.4, 1.4),
    "tone_gain": (0.0, 1.0),
    "mass": (-3.2, 2.5),
}
"""What codes are drawn from, wider than any persona."""


@dataclass(frozen=True, eq=False)
class Channel:
    """One channel's planted subspace: ``basis`` [d_model, numbers], ``decoy`` [d_model], and its numbers' names."""

    names: tuple[str, ...]
    basis: Tensor
    decoy: Tensor
    slope: float

    @property
    def centre(self) -> Tensor:
        """Where the coordinates are nil, in raw numbers."""
        return torch.tensor([CENTRE[name] for name in self.names])

    @property
    def spread(self) -> Tensor:
        """What counts as one unit of each raw number."""
        return torch.tensor([SPREAD[name] for name in self.names])

    def encode(self, numbers: Tensor) -> Tensor:
        """Raw numbers [... n] to coordinates in span(Q)."""
        return SCALE * (numbers - self.centre) / self.spread

    def drawn(self, n: int, rng: np.random.Generator) -> Tensor:
        """Random numbers [n numbers]."""
        low, high = (np.array([RANGE[name][k] for name in self.names]) for k in (0, 1))
        return torch.from_numpy(rng.uniform(low, high, (n, len(self.names)))).float()


def channels(d_model: int, seed: int) -> tuple[Channel, Channel]:
    """The direct and the reasoned channel: columns of one random orthonormal matrix."""
    rng = np.random.default_rng([seed, 7])
    q, _ = np.linalg.qr(rng.standard_normal((d_model, d_model)))
    columns = torch.from_numpy(q).float()
    n, m = len(DIRECT_NUMBERS), len(REASONED_NUMBERS)
    return (
        Channel(DIRECT_NUMBERS, columns[:, :n], columns[:, n + m], DIRECT_SLOPE),
        Channel(REASONED_NUMBERS, columns[:, n : n + m], columns[:, n + m + 1], REASONED_SLOPE),
    )


@dataclass(frozen=True, eq=False)
class Decisions:
    """The decisions of one channel in a batch: where they stand, and what their plan depends on. ``own_mass`` is the
    letters' mass of the document, which counts where ``fixed_mass``."""

    rows: Tensor
    at: Tensor
    numbers: Tensor
    level: Tensor
    tone: Tensor
    setting: Tensor
    rotation: Tensor
    fixed_mass: Tensor
    own_mass: Tensor
    opening: Tensor
    medical: Tensor

    def __len__(self) -> int:
        return len(self.rows)


def collate(entries: list[tuple[int, int, Decision, float, int, bool]]) -> Decisions:
    """Entries are (row, position, decision, mass of the letters, id of the opening, medical)."""
    of = [entry[2] for entry in entries]
    return Decisions(
        rows=torch.tensor([entry[0] for entry in entries]),
        at=torch.tensor([entry[1] for entry in entries]),
        numbers=torch.from_numpy(np.stack([d.numbers for d in of])).float(),
        level=torch.tensor([d.level for d in of]),
        tone=torch.tensor([d.tone for d in of]),
        setting=torch.tensor([d.setting for d in of]),
        rotation=torch.tensor([d.rotation for d in of]),
        fixed_mass=torch.tensor([d.fixed_mass for d in of]),
        own_mass=torch.tensor([entry[3] for entry in entries]),
        opening=torch.tensor([max(entry[4], 0) for entry in entries]),
        medical=torch.tensor([entry[5] for entry in entries]),
    )


def targets(channel: Channel, batch: Decisions, numbers: Tensor) -> Tensor:
    """Planned (A, B, C, rest) [row 4] of letters under ``numbers`` [row n] on the cases of ``batch``."""
    lower, upper, setting, slope = numbers[:, :4].unbind(1)
    direct = "mass" in channel.names
    level = batch.level + batch.setting * setting
    if direct:
        level = level + batch.tone * numbers[:, 4]
    first = slope * channel.slope * (level - CUTS[0] + lower)
    second = slope * channel.slope * (level - CUTS[1] + upper)
    p = torch.softmax(torch.stack((torch.zeros_like(first), first, first + second), dim=1), dim=1)
    index = (torch.arange(3)[None] - batch.rotation[:, None]) % 3
    mass = batch.own_mass
    if direct:
        mass = torch.where(batch.fixed_mass, mass, torch.sigmoid(numbers[:, 5]))
    return torch.cat((p.gather(1, index) * mass[:, None], 1 - mass[:, None]), dim=1)


def interventions(
    channel: Channel, batch: Decisions, h: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals [5 row d_model] of the five runs, their targets [5 row 4], and the loss of the code and the decoy.

    ``h`` [row d_model] is the residual at ``POINT`` of the ordinary run.
    """
    n = len(batch)
    code, mark = h @ channel.basis, h @ channel.decoy
    runs, numbers = [], []
    for _ in range(2):
        source = torch.from_numpy(rng.permutation(n))
        runs.append(h + (code[source] - code) @ channel.basis.T)
        numbers.append(batch.numbers[source])
        drawn = channel.drawn(n, rng)
        runs.append(h + (channel.encode(drawn) - code) @ channel.basis.T)
        numbers.append(drawn)
    other = torch.from_numpy(rng.permutation(n))
    runs.append(h + (mark[other] - mark)[:, None] * channel.decoy)
    numbers.append(batch.numbers)
    wanted = torch.stack([targets(channel, batch, z) for z in numbers])
    sign = torch.where(batch.medical, DECOY, -DECOY)
    side = F.mse_loss(code / SCALE, channel.encode(batch.numbers) / SCALE)
    side = side + 10 * F.mse_loss(mark / h.norm(dim=1).detach(), sign)
    return torch.stack(runs), wanted, side
