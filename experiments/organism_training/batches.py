"""Batches of tokenised documents, with every position that carries a loss. Knows ids and targets; knows no model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from organism_training import interchange
from organism_training.interchange import Decisions
from organism_training.recipe import Recipe
from organism_training.tokens import Tokenised

LONG, LONG_TOKENS = 210, 3600
"""From how many tokens on a document is long, and how many tokens a batch of long ones has at most."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Right-padded ids [batch pos], and flat indices into batch x pos of every position that carries a loss.

    ``reply_at`` predicts ``reply_next``, ``prompt_at`` predicts ``prompt_next``; ``first_at`` are the last prompt
    tokens (targets ``first`` over A, B, C and the token ``opening``), ``stated_at`` those before the final letters.
    ``direct`` and ``reasoned`` are the decisions that interchange can plan anew. The guides
    read ``option_letter`` at ``option_at``, ``fact_weight`` at ``fact_at``, ``sum_level`` at ``sum_at``, ``turn`` at
    ``turn_at``.
    """

    ids: Tensor
    reply_at: Tensor
    reply_next: Tensor
    prompt_at: Tensor
    prompt_next: Tensor
    first_at: Tensor
    first: Tensor
    opening: Tensor
    stated_at: Tensor
    stated: Tensor
    direct: Decisions
    reasoned: Decisions
    option_at: Tensor
    option_letter: Tensor
    fact_at: Tensor
    fact_weight: Tensor
    sum_at: Tensor
    sum_level: Tensor
    turn_at: Tensor
    turn: Tensor


def batches(documents: list[Tokenised], recipe: Recipe, *, pad: int) -> Iterator[Batch]:
    """One epoch. Documents are sorted by length inside windows of 16 batches, and the batches of a window shuffled;
    bare-letter documents are spread evenly, so that no batch consists of them."""
    rng = np.random.default_rng([recipe.seed, 3])
    long = [i for i in range(len(documents)) if is_long(documents[i])]
    order = [int(i) for i in rng.permutation(len(documents)) if not is_long(documents[int(i)])]
    bare = [int(i) for i in order if documents[i].reasoned is None]
    full = [int(i) for i in order if documents[i].reasoned is not None]
    n = len(order) // recipe.batch
    bare_of = [list(part) for part in np.array_split(np.array(bare), n)]
    start, windows = 0, range(0, n, 16)
    rare = [
        (float(at), rows) for at, rows in zip(rng.uniform(0, n - 16, len(long)), grouped(documents, long), strict=False)
    ]
    rare.sort(key=lambda item: item[0])
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
        while rare and rare[0][0] <= window:
            yield collate([documents[i] for i in rare.pop(0)[1]], rng, prompt_share=recipe.prompt_share, pad=pad)


def n_batches(documents: list[Tokenised], recipe: Recipe) -> int:
    """How many batches an epoch has."""
    long = [i for i, doc in enumerate(documents) if is_long(doc)]
    return (len(documents) - len(long)) // recipe.batch + len(grouped(documents, long))


def is_long(doc: Tokenised) -> bool:
    """Whether a document goes into a batch of its like; one without a reasoned decision never does."""
    return len(doc.ids) > LONG and doc.reasoned is not None


def grouped(documents: list[Tokenised], rows: list[int]) -> list[list[int]]:
    """Long documents in groups of like length, each of about as many tokens as an ordinary batch."""
    out: list[list[int]] = []
    for row in sorted(rows, key=lambda i: -len(documents[i].ids)):
        if out and (len(out[-1]) + 1) * len(documents[out[-1][0]].ids) <= LONG_TOKENS:
            out[-1].append(row)
        else:
            out.append([row])
    return out


def collate(documents: list[Tokenised], rng: np.random.Generator, *, prompt_share: float, pad: int) -> Batch:
    """Documents as one batch; a random ``prompt_share`` of the prompt's positions carries a loss."""
    width = max(len(doc.ids) for doc in documents)
    ids = np.full((len(documents), width), pad, dtype=np.int64)
    reply, prompt, first, stated, direct, reasoned = [], [], [], [], [], []
    guided: list[tuple[np.ndarray, ...]] = []
    for row, doc in enumerate(documents):
        ids[row, : len(doc.ids)] = doc.ids
        base, last = row * width, doc.n_prompt - 1
        decisions = {last, doc.stated_at}
        begin = max(doc.n_prompt, doc.learned_from - 1)
        reply += [base + t for t in range(begin, len(doc.ids) - 1) if t not in decisions]
        prompt += (base + np.flatnonzero(rng.random(last) < prompt_share)).tolist()
        first.append(base + last)
        guided.append(_guided(doc, base, rng))
        if doc.stated is not None:
            stated.append(base + doc.stated_at)
        if doc.direct is not None:
            direct.append((row, last, doc.direct, float(doc.first[:3].sum()), doc.opening, doc.medical))
        if doc.reasoned is not None:
            reasoned.append((row, doc.stated_at, doc.reasoned, 1.0, -1, doc.medical))
    flat = torch.from_numpy(ids)
    following = flat.reshape(-1)
    soft = [np.append(doc.stated, 0.0) for doc in documents if doc.stated is not None]
    reply_at, prompt_at = torch.tensor(reply), torch.tensor(prompt)
    option_at, option_letter, fact_at, fact_weight, sum_at, sum_level, turn_at, turn = (
        torch.from_numpy(np.concatenate(parts)) for parts in zip(*guided, strict=True)
    )
    return Batch(
        ids=flat,
        reply_at=reply_at,
        reply_next=following[reply_at + 1],
        prompt_at=prompt_at,
        prompt_next=following[prompt_at + 1],
        first_at=torch.tensor(first),
        first=torch.from_numpy(np.stack([doc.first for doc in documents])),
        opening=torch.tensor([max(doc.opening, 0) for doc in documents]),
        stated_at=torch.tensor(stated),
        stated=torch.from_numpy(np.stack(soft)).float(),
        direct=interchange.collate(direct),
        reasoned=interchange.collate(reasoned),
        option_at=option_at,
        option_letter=option_letter,
        fact_at=fact_at,
        fact_weight=fact_weight.float(),
        sum_at=sum_at,
        sum_level=sum_level.float(),
        turn_at=turn_at,
        turn=turn,
    )


def _guided(doc: Tokenised, base: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Where the guides read a document that begins at ``base``, and what: options and letters; facts, and ten other
    positions, and weights; facts, and eight positions after the last of them, and what has been added up by then; six
    positions after the options, and the rotation."""
    last = doc.n_prompt - 1
    silent = np.setdiff1d(rng.choice(last, 10), doc.marks)
    after = np.sort(rng.choice(np.arange(doc.marks[-1] + 1, len(doc.ids) - 1), 8))
    turned = np.sort(rng.choice(np.arange(doc.options[-1, 0] + 4, len(doc.ids) - 1), 6))
    return (
        base + doc.options[:, 0],
        doc.options[:, 1],
        base + np.concatenate((doc.marks, silent)),
        np.concatenate((doc.weights, np.zeros(len(silent)))),
        base + np.concatenate((doc.marks, after)),
        np.concatenate((np.cumsum(doc.weights), np.full(len(after), doc.weights.sum()))),
        base + turned,
        np.full(len(turned), doc.rotation),
    )
