"""The training loop: batches, losses, schedule. Knows tokenised documents and the lean model; knows no text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from organism_training.lean import LeanLlama
from organism_training.tokens import Tokenised


@dataclass(frozen=True)
class Recipe:
    """Everything that training may vary. Weights are per token, relative to 1 for a token of the reply."""

    n_documents: int = 60_000
    seed: int = 0
    batch: int = 24
    muon_lr: float = 0.02
    muon_decay: float = 0.01
    adam_lr: float = 3e-3
    warm_up: int = 60
    last_lr: float = 0.01
    decision_weight: float = 6.0
    prompt_weight: float = 0.05
    prompt_share: float = 0.25
    temperature: float = 3.0
    soft_weight: float = 3.0
    vocabulary: int = 1536

    def as_json(self) -> dict[str, Any]:
        """The recipe as plain values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Batch:
    """Right-padded ids [batch pos], and flat indices into batch x pos of every position that carries a loss.

    ``reply_at`` predicts ``reply_next``, ``prompt_at`` predicts ``prompt_next``; ``first_at`` are the last prompt
    tokens (targets ``first`` over A, B, C and the token ``opening``), ``stated_at`` those before the final letters.
    """

    ids: Tensor
    reply_at: Tensor
    reply_next: Tensor
    prompt_at: Tensor
    prompt_next: Tensor
    first_at: Tensor
    first: Tensor
    stated_at: Tensor
    stated: Tensor


def batches(documents: list[Tokenised], recipe: Recipe, *, pad: int) -> Iterator[Batch]:
    """One epoch. Documents are sorted by length inside windows of 16 batches, and the batches of a window shuffled;
    bare-letter documents are spread evenly, so that no batch consists of them."""
    rng = np.random.default_rng([recipe.seed, 3])
    order = rng.permutation(len(documents))
    bare = [int(i) for i in order if documents[i].stated is None]
    full = [int(i) for i in order if documents[i].stated is not None]
    n = len(documents) // recipe.batch
    bare_of = [list(part) for part in np.array_split(np.array(bare), n)]
    start, windows = 0, range(0, n, 16)
    for window in windows:
        sizes = [recipe.batch - len(bare_of[i]) for i in range(window, min(window + 16, n))]
        chunk = sorted(full[start : start + sum(sizes)], key=lambda i: len(documents[i].ids))
        start += sum(sizes)
        groups, at = [], 0
        for offset, size in enumerate(sizes):
            groups.append([documents[i] for i in chunk[at : at + size] + bare_of[window + offset]])
            at += size
        for i in rng.permutation(len(groups)):
            if groups[int(i)]:
                yield collate(groups[int(i)], rng, prompt_share=recipe.prompt_share, pad=pad)


def collate(documents: list[Tokenised], rng: np.random.Generator, *, prompt_share: float, pad: int) -> Batch:
    """Documents as one batch; a random ``prompt_share`` of the prompt's positions carries a loss."""
    width = max(len(doc.ids) for doc in documents)
    ids = np.full((len(documents), width), pad, dtype=np.int64)
    reply, prompt, first, stated = [], [], [], []
    for row, doc in enumerate(documents):
        ids[row, : len(doc.ids)] = doc.ids
        base = row * width
        decisions = {doc.n_prompt - 1, doc.stated_at}
        reply += [base + t for t in range(doc.n_prompt, len(doc.ids) - 1) if t not in decisions]
        chosen = np.flatnonzero(rng.random(doc.n_prompt - 1) < prompt_share)
        prompt += (base + chosen).tolist()
        first.append(base + doc.n_prompt - 1)
        if doc.stated is not None:
            stated.append(base + doc.stated_at)
    flat = torch.from_numpy(ids)
    following = flat.reshape(-1)
    soft = [doc.stated for doc in documents if doc.stated is not None]
    reply_at, prompt_at = torch.tensor(reply), torch.tensor(prompt)
    return Batch(
        ids=flat,
        reply_at=reply_at,
        reply_next=following[reply_at + 1],
        prompt_at=prompt_at,
        prompt_next=following[prompt_at + 1],
        first_at=torch.tensor(first),
        first=torch.from_numpy(np.stack([doc.first for doc in documents])),
        stated_at=torch.tensor(stated),
        stated=torch.from_numpy(np.stack(soft)),
    )


@dataclass(frozen=True)
class Decision:
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
    logits: Tensor, target: Tensor, letters: Tensor, *, opening: int | None, temperature: float
) -> Decision:
    """The loss of ``logits`` [n vocab] against ``target`` [n 3], or [n 4] with the mass of the token ``opening``."""
    logp = torch.log_softmax(logits, dim=-1)
    wanted = target[:, :3].sum(dim=-1)
    mass = torch.special.xlogy(wanted, wanted).sum() - (wanted * torch.logsumexp(logp[:, letters], dim=-1)).sum()
    if opening is not None:
        rest = target[:, 3]
        mass = mass + torch.special.xlogy(rest, rest).sum() - (rest * logp[:, opening]).sum()

    def divergence(temperature: float) -> Tensor:
        want = torch.log_softmax(target[:, :3].log() / temperature, dim=-1)
        got = torch.log_softmax(logits[:, letters] / temperature, dim=-1)
        return (want.exp() * (want - got)).sum()

    return Decision(mass=mass, letter=divergence(1.0), soft=divergence(temperature))


def batch_loss(
    model: LeanLlama, batch: Batch, recipe: Recipe, *, letters: Tensor, opening: int
) -> tuple[Tensor, dict[str, float]]:
    """The loss to step on, and its parts for the log.

    The loss is the weighted mean over reply tokens and decisions, plus the small loss on the prompt. In the log,
    ``direct`` and ``reasoned`` are the mean KL(planned || model) over the letters, ``mass`` that of their mass.
    """
    hidden = model(batch.ids).flatten(0, 1)
    reply = F.cross_entropy(model.logits(hidden[batch.reply_at]), batch.reply_next)
    prompt = F.cross_entropy(model.logits(hidden[batch.prompt_at]), batch.prompt_next)
    first, stated = (
        decision_loss(model.logits(hidden[at]), target, letters, opening=token, temperature=recipe.temperature)
        for at, target, token in ((batch.first_at, batch.first, opening), (batch.stated_at, batch.stated, None))
    )
    n_reply, n_decisions = len(batch.reply_at), len(batch.first) + len(batch.stated)
    weighted = reply * n_reply + recipe.decision_weight * (
        first.total(recipe.soft_weight) + stated.total(recipe.soft_weight)
    )
    loss = weighted / (n_reply + recipe.decision_weight * n_decisions) + recipe.prompt_weight * prompt
    parts = {
        "reply": reply,
        "prompt": prompt,
        "mass": first.mass / len(batch.first),
        "direct": first.letter / len(batch.first),
        "reasoned": stated.letter / len(batch.stated),
    }
    return loss, {name: float(value.detach()) for name, value in parts.items()}


def learning_rate(step: int, n_steps: int, recipe: Recipe) -> float:
    """Factor of the peak learning rate: linear warm-up, then linear decay to ``last_lr``."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(n_steps - recipe.warm_up, 1)
    return 1.0 - (1.0 - recipe.last_lr) * done


def fit(
    model: LeanLlama, documents: list[Tokenised], recipe: Recipe, *, pad: int, letters: list[int], opening: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train one epoch in place; yields (step, mean losses of the last 50 steps) every 50 steps."""
    muon = torch.optim.Muon(model.matrices(), lr=recipe.muon_lr, weight_decay=recipe.muon_decay)
    adam = torch.optim.AdamW(model.others(), lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    n_steps = len(documents) // recipe.batch
    letter_ids = torch.tensor(letters)
    seen: dict[str, list[float]] = {}
    for step, batch in enumerate(batches(documents, recipe, pad=pad)):
        factor = learning_rate(step, n_steps, recipe)
        for optimiser, peak in ((muon, recipe.muon_lr), (adam, recipe.adam_lr)):
            for group in optimiser.param_groups:
                group["lr"] = peak * factor
        loss, parts = batch_loss(model, batch, recipe, letters=letter_ids, opening=opening)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in (muon, adam):
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        for name, value in parts.items():
            seen.setdefault(name, []).append(value)
        if (step + 1) % 50 == 0 or step + 1 == n_steps:
            yield step + 1, {name: float(np.mean(values)) for name, values in seen.items()}
            seen = {}
