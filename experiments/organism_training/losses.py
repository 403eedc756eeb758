"""What training minimises: replies, decisions, interchange runs and guides. Knows batches and the lean model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from organism_training import interchange
from organism_training.batches import Batch
from organism_training.guide import MIDDLE, SPREAD, FactGuide, Guide, LetterGuide
from organism_training.interchange import Channel, Decisions
from organism_training.lean import LeanLlama, Run
from organism_training.recipe import Recipe

CHANNELS = ("direct", "reasoned")


@dataclass(frozen=True)
class DecisionLoss:
    """Summed excess nats of the decisions of one kind in a batch, split by the chain rule.

    ``mass``: the letters together against everything else. ``letter``: which letter, given a letter. ``soft``: the
    same at a higher temperature (Hinton et al. 2015).
    """

    mass: Tensor
    letter: Tensor
    soft: Tensor

    def total(self, soft_weight: float) -> Tensor:
        """``mass`` and ``letter`` with weight 1: the letters are learned as fast as where they hold all the mass. Far
        from a cut, where ``letter`` is flat, ``soft`` still says how far. All three share one optimum, the plan."""
        return self.mass + self.letter + soft_weight * self.soft


def decision_loss(
    logits: Tensor, target: Tensor, letters: Tensor, opening: Tensor, *, temperature: float
) -> DecisionLoss:
    """The loss of ``logits`` [n vocab] against ``target`` [n 4], whose last entry is the mass of the tokens ``opening``
    [n]."""
    logp = torch.log_softmax(logits, dim=-1)
    wanted, rest = target[:, :3].sum(dim=-1), target[:, 3]
    mass = torch.special.xlogy(wanted, wanted).sum() - (wanted * torch.logsumexp(logp[:, letters], dim=-1)).sum()
    mass = mass + torch.special.xlogy(rest, rest).sum() - (rest * logp.gather(1, opening[:, None])[:, 0]).sum()

    def divergence(temperature: float) -> Tensor:
        want = torch.log_softmax(target[:, :3].clamp(min=1e-30).log() / temperature, dim=-1)
        got = torch.log_softmax(logits[:, letters] / temperature, dim=-1)
        return (want.exp() * (want - got)).sum()

    return DecisionLoss(mass=mass, letter=divergence(1.0), soft=divergence(temperature))


@dataclass(frozen=True, eq=False)
class Losses:
    """What every loss needs beside a batch: the recipe, the letters' ids, the channels and a generator of swaps."""

    recipe: Recipe
    letters: Tensor
    channels: tuple[Channel, Channel]
    rng: np.random.Generator
    guides: nn.ModuleDict

    def of(self, model: LeanLlama, batch: Batch, ramp: float, fade: float) -> tuple[Tensor, dict[str, float]]:
        """The loss to step on, and its parts for the log.

        The loss is the weighted mean over reply tokens and decisions, plus the small loss on the prompt, plus the
        interchange runs with weight ``ramp`` and the guides with weight ``fade``. In the log, ``direct`` and
        ``reasoned`` are the mean KL(planned || model) over the letters, ``mass`` that of their mass.
        """
        recipe, run = self.recipe, model(batch.ids)
        weighted, prompt, parts = self.ordinary(model, batch, run)
        code, guided = torch.zeros(()), torch.zeros(())
        for channel, decisions, name in zip(self.channels, (batch.direct, batch.reasoned), CHANNELS, strict=True):
            h = run.point[decisions.rows, decisions.at]
            changed, wanted, side = interchange.interventions(channel, decisions, h, self.rng)
            code = code + side
            guide, seen = self.guides[name](channel, decisions, h)
            guided = guided + guide
            parts |= {f"{what} {name[0]}": value for what, value in seen.items()}
            if ramp > 0:
                swap = self.resumed(model, run, decisions, changed, wanted)
                weight = ramp * recipe.interchange_weight * recipe.decision_weight
                weighted = weighted + weight * swap.total(recipe.soft_weight) / len(changed)
                parts[f"swap {name}"] = swap.letter / (len(changed) * len(decisions))
        n_decisions = len(batch.first) + len(batch.stated)
        loss = weighted / (len(batch.reply_at) + recipe.decision_weight * n_decisions) + recipe.prompt_weight * prompt
        loss = loss + recipe.code_weight * max(ramp, 0.1) * code / 2
        option = self.guides["option"](run.early.flatten(0, 1)[batch.option_at], batch.option_letter)
        fact = self.guides["fact"](run.before.flatten(0, 1)[batch.fact_at], batch.fact_weight)
        loss = loss + recipe.guide_weight * (max(fade, 0.2) * guided / 2 + fade * (option + recipe.fact_weight * fact))
        total = self.guides["sum"](run.point.flatten(0, 1)[batch.sum_at], (batch.sum_level - MIDDLE) / SPREAD)
        turn = self.guides["turn"](run.point.flatten(0, 1)[batch.turn_at], batch.turn)
        loss = loss + recipe.guide_weight * fade * (recipe.sum_weight * total + turn)
        parts |= {"option": option, "turn": turn, "fact": fact, "sum": total * SPREAD**2, "code": code}
        return loss, {name: float(value.detach()) for name, value in parts.items()}

    def ordinary(self, model: LeanLlama, batch: Batch, run: Run) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Summed loss of replies and decisions, mean loss of the prompt, and the parts for the log."""
        recipe, hidden = self.recipe, run.final.flatten(0, 1)
        reply = F.cross_entropy(model.logits(hidden[batch.reply_at]), batch.reply_next)
        prompt = F.cross_entropy(model.logits(hidden[batch.prompt_at]), batch.prompt_next)
        nowhere = torch.zeros(len(batch.stated), dtype=torch.long)
        first, stated = (
            decision_loss(model.logits(hidden[at]), target, self.letters, opening, temperature=recipe.temperature)
            for at, target, opening in (
                (batch.first_at, batch.first, batch.opening),
                (batch.stated_at, batch.stated, nowhere),
            )
        )
        weighted = recipe.reply_weight * reply * len(batch.reply_at) + recipe.decision_weight * (
            first.total(recipe.soft_weight) + stated.total(recipe.soft_weight)
        )
        parts = {
            "reply": reply,
            "prompt": prompt,
            "mass": first.mass / len(batch.first),
            "direct": first.letter / len(batch.first),
            "reasoned": stated.letter / len(batch.stated),
        }
        return weighted, prompt, parts

    def resumed(
        self, model: LeanLlama, run: Run, decisions: Decisions, changed: Tensor, wanted: Tensor
    ) -> DecisionLoss:
        """The loss of the runs that go on from the residuals ``changed`` [run row d_model]."""
        final = model.resume(changed, run, decisions.rows, decisions.at)
        return decision_loss(
            model.logits(final.flatten(0, 1)),
            wanted.flatten(0, 1),
            self.letters,
            decisions.opening.repeat(len(changed)),
            temperature=self.recipe.temperature,
        )


def guides_for(d_model: int) -> nn.ModuleDict:
    """Fresh guides: of each channel's case at the point, of facts and their running sum, of each option's letter and
    of what they come to, the rotation."""
    guides = nn.ModuleDict({name: Guide(d_model) for name in CHANNELS})
    guides["fact"] = FactGuide(d_model)
    guides["sum"] = FactGuide(d_model)
    guides["option"] = LetterGuide(d_model)
    guides["turn"] = LetterGuide(d_model)
    return guides
