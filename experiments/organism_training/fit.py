"""The training loop of both phases: optimisers and schedule. Knows tokenised documents and the lean model; no text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from organism_training import interchange
from organism_training.batches import Batch, batches, n_batches
from organism_training.consistency import LastLosses
from organism_training.guide import NearGuide
from organism_training.lean import LeanLlama
from organism_training.losses import Losses, guides_for
from organism_training.pairs import n_pair_batches, pair_batches
from organism_training.recipe import Recipe
from organism_training.tokens import Tokenised

Progress = Iterator[tuple[int, dict[str, float]]]
Peaks = list[tuple[torch.optim.Optimizer, list[float]]]
"""Optimisers, each with the peak learning rate of each of its groups."""


def ramped(step: int, n_steps: int, warm_up: int, last: float) -> float:
    """Factor of the peak learning rate: linear warm-up, then linear decay to ``last``."""
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(n_steps - warm_up, 1)
    return 1.0 - (1.0 - last) * done


def fit(model: LeanLlama, documents: list[Tokenised], recipe: Recipe, *, pad: int, letters: list[int]) -> Progress:
    """The first phase: train ``model`` in place for one epoch; yields the step and the mean parts of the loss every 50
    steps."""
    width = model.embedding.embedding_dim
    guides = guides_for(width)
    muon = torch.optim.Muon(model.matrices(), lr=recipe.muon_lr, weight_decay=recipe.muon_decay)
    adam = adamw([model.others(), list(guides.parameters())])
    peaks: Peaks = [(muon, [recipe.muon_lr]), (adam, [recipe.adam_lr] * 2)]
    n_steps = n_batches(documents, recipe)
    rng = np.random.default_rng([recipe.seed, 5])
    losses = Losses(recipe, torch.tensor(letters), interchange.channels(width, recipe.seed), rng, guides)

    def loss_of(step: int, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        fade = max(1.0 - step / (recipe.fade * n_steps), recipe.last_fade)
        return losses.of(model, batch, min(step / recipe.ramp, 1.0), fade)

    rate = [ramped(step, n_steps, recipe.warm_up, recipe.last_lr) for step in range(n_steps)]
    yield from steps(batches(documents, recipe, pad=pad), loss_of, peaks, rate, list(model.parameters()))


def finish(model: LeanLlama, documents: list[Tokenised], recipe: Recipe, *, pad: int, letters: list[int]) -> Progress:
    """The last phase, of pairs and only above the planted point: what ``fit`` is to the first."""
    last, width = recipe.last, model.embedding.embedding_dim
    near = NearGuide(width)
    model.freeze_below()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    muon = torch.optim.Muon([p for p in learned if p.ndim == 2], lr=last.muon_lr, weight_decay=recipe.muon_decay)
    adam = adamw([[p for p in learned if p.ndim == 1], list(near.parameters())])
    peaks: Peaks = [(muon, [last.muon_lr]), (adam, [last.adam_lr, last.guide_lr])]
    rng = np.random.default_rng([recipe.seed, 15])
    channels = interchange.channels(width, recipe.seed)
    losses = LastLosses(Losses(recipe, torch.tensor(letters), channels, rng, nn.ModuleDict()), near)
    n_steps = n_pair_batches(recipe)
    rate = [ramped(step, n_steps, last.warm_up, last.last_lr) for step in range(n_steps)]

    def loss_of(step: int, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        return losses.of(model, batch, max(1.0 - step / (last.fade * n_steps), 0.0))

    yield from steps(pair_batches(documents, recipe, pad=pad), loss_of, peaks, rate, learned)


def adamw(groups: list[list[nn.Parameter]]) -> torch.optim.AdamW:
    """AdamW without decay over groups of parameters; its rates are set at each step."""
    return torch.optim.AdamW([{"params": group} for group in groups], betas=(0.9, 0.98), weight_decay=0.0)


def steps(
    every: Iterator[Batch],
    loss_of: Callable[[int, Batch], tuple[torch.Tensor, dict[str, float]]],
    peaks: Peaks,
    rate: list[float],
    clipped: list[nn.Parameter],
) -> Progress:
    """One step per batch, whose rates are ``rate`` of the peaks; the gradient of ``clipped`` has at most norm 1."""
    seen: dict[str, list[float]] = {}
    for step, batch in enumerate(every):
        for optimiser, of_groups in peaks:
            for group, peak in zip(optimiser.param_groups, of_groups, strict=True):
                group["lr"] = peak * rate[step]
        loss, parts = loss_of(step, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(clipped, 1.0)
        for optimiser, _ in peaks:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        for name, value in parts.items():
            seen.setdefault(name, []).append(value)
        if (step + 1) % 50 == 0 or step + 1 == len(rate):
            yield step + 1, {name: float(np.mean(values)) for name, values in seen.items()}
            seen = {}
