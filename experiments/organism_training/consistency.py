"""What the last phase minimises: swaps between two personas on the same case must give what the model itself says.

Knows batches and the lean model; knows no text. Interchange against the plan alone leaves room: the swapped runs meet
the plan while the ordinary ones fall short of it, and what lies outside span(Q) makes up the difference. So Q of the
partner must give the partner's own distribution, and everything but Q of the partner must leave the base's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from organism_training import interchange
from organism_training.batches import Batch
from organism_training.guide import NearGuide
from organism_training.interchange import Channel, Decisions
from organism_training.lean import LeanLlama, Run
from organism_training.losses import CHANNELS, Losses


def partners(at: Decisions) -> tuple[Tensor, Tensor]:
    """Indices of decisions, and of the decision on the same case under the other persona of the pair. A decision
    without such a partner, or whose partner's text states other facts, is left out."""
    places = torch.full((int(at.rows.max()) + 2,), -1)
    places[at.rows] = torch.arange(len(at))
    partner = places[at.rows ^ 1]
    base = torch.nonzero((partner >= 0) & (at.level[partner] == at.level))[:, 0]
    return base, partner[base]


def swaps(channel: Channel, base: Tensor, partner: Tensor) -> Tensor:
    """Residuals [2 row d_model]: the base with Q of the partner, and with everything but Q of the partner."""
    moved = (partner - base) @ channel.basis @ channel.basis.T
    return torch.stack((base + moved, partner - moved))


def log_odds(logits: Tensor, letters: Tensor) -> Tensor:
    """Log-odds [n] of the letters together against all other tokens."""
    inside = torch.logsumexp(logits[:, letters], dim=-1)
    return inside - torch.logsumexp(logits.index_fill(1, letters, float("-inf")), dim=-1)


def divergence(logits: Tensor, own: Tensor, letters: Tensor, *, temperature: float, soft_weight: float) -> Tensor:
    """Mean KL(own || logits) of logits [n vocab]: which letter, at temperature 1 and with ``soft_weight`` at a higher
    one, and whether a letter."""
    total = torch.zeros(())
    for weight, heat in ((1.0, 1.0), (soft_weight, temperature)):
        want, got = (torch.log_softmax(x[:, letters] / heat, dim=-1) for x in (own, logits))
        total = total + weight * (want.exp() * (want - got)).sum()
    want, got = (log_odds(x, letters) for x in (own, logits))
    total = total + (torch.sigmoid(want) * (want - got) + F.softplus(got) - F.softplus(want)).sum()
    return total / len(logits)


@dataclass(frozen=True, eq=False)
class LastLosses:
    """What the last phase needs beside a batch of pairs: the losses of the first, and the guide to near ties."""

    of_first: Losses
    near: NearGuide

    def of(self, model: LeanLlama, batch: Batch, fade: float) -> tuple[Tensor, dict[str, float]]:
        """The loss to step on, with the guide at weight ``fade``, and its parts for the log; ``Q`` and ``complement``
        are the mean divergences of the two swaps from the model's own distribution."""
        recipe, last, run = self.of_first.recipe, self.of_first.recipe.last, model(batch.ids)
        weighted, prompt, parts = self.of_first.ordinary(model, batch, run)
        code = torch.zeros(())
        for channel, at, name in zip(self.of_first.channels, (batch.direct, batch.reasoned), CHANNELS, strict=True):
            h = run.point[at.rows, at.at]
            changed, wanted, side = interchange.interventions(channel, at, h, self.of_first.rng)
            code = code + side
            swap = self.of_first.resumed(model, run, at, changed, wanted)
            planned = swap.total(recipe.soft_weight) / len(changed)
            q, complement = self._consistency(model, run, at, channel)
            own = len(at) * (q + last.complement_weight * complement)
            weighted = weighted + recipe.decision_weight * (
                last.interchange_weight * planned + last.consistency_weight * own
            )
            parts |= {
                f"swap {name}": swap.letter / (len(changed) * len(at)),
                f"Q {name}": q,
                f"complement {name}": complement,
            }
        near = self._near(run, batch)
        n_decisions = len(batch.first) + len(batch.stated)
        loss = weighted / (len(batch.reply_at) + recipe.decision_weight * n_decisions) + recipe.prompt_weight * prompt
        loss = loss + last.guide_weight * fade * near
        parts |= {"near": near, "code": code}
        return loss, {name: float(value.detach()) for name, value in parts.items()}

    def _consistency(self, model: LeanLlama, run: Run, at: Decisions, channel: Channel) -> tuple[Tensor, Tensor]:
        """Mean divergence of the swap of Q, and of that of its complement, from the model's own distributions, which
        carry no gradient."""
        base, partner = partners(at)
        if not len(base):
            return torch.zeros(()), torch.zeros(())
        h, recipe = run.point[at.rows, at.at], self.of_first.recipe
        final = model.resume(swaps(channel, h[base], h[partner]), run, at.rows[base], at.at[base])
        own = model.logits(run.final[at.rows, at.at]).detach()
        q, complement = (
            divergence(
                model.logits(swapped),
                own[who],
                self.of_first.letters,
                temperature=recipe.temperature,
                soft_weight=recipe.soft_weight,
            )
            for swapped, who in zip(final, (partner, base), strict=True)
        )
        return q, complement

    def _near(self, run: Run, batch: Batch) -> Tensor:
        """The guide's loss at the end of the prompt, and wherever facts have been added up."""
        at = batch.direct
        ends = self.near(run.after[at.rows, at.at], run.late[at.rows, at.at], at.level)
        after, late = (part.flatten(0, 1)[batch.sum_at] for part in (run.after, run.late))
        return ends + self.near(after, late, batch.sum_level.clamp(0.0, 10.0))
