"""Label log-probabilities from next-token logits. Knows token ids; knows no text and no case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probe.prompts import LabelTokens
from probe.values import LabelRead

TOP_K = 5


def read_labels(logits: Float[Tensor, "row vocab"], labels: Sequence[LabelTokens]) -> list[LabelRead]:
    """One read per row: log-softmax over the full vocabulary in fp32, the variants of each letter summed.

    The result is in the order of the letters of ``labels[row]``, which the caller gives in option order.
    """
    logp = logits.float().log_softmax(-1)
    entropy = -(logp.exp() * logp.clamp(min=-1e4)).sum(-1)
    top = logp.topk(min(TOP_K, logp.shape[-1]), dim=-1)
    at = [(row, token) for row, tokens in enumerate(labels) for ids in tokens.ids for token in ids]
    rows, tokens = torch.tensor(at, dtype=torch.long, device=logp.device).reshape(-1, 2).T
    # One array per kind crosses to the host, whatever the number of rows.
    picked = iter(logp[rows, tokens].tolist())
    top_ids, top_logp, entropies = top.indices.tolist(), top.values.tolist(), entropy.tolist()
    reads = []
    for row, own in enumerate(labels):
        variants = tuple(tuple(next(picked) for _ in ids) for ids in own.ids)
        per_label = np.array([_summed(each) for each in variants], dtype=np.float32)
        reads.append(
            LabelRead(
                logp=per_label,
                mass=float(np.exp(per_label).sum()),
                entropy=entropies[row],
                top_ids=tuple(top_ids[row]),
                top_logp=tuple(top_logp[row]),
                variant_ids=own.ids,
                variant_logp=variants,
            )
        )
    return reads


def _summed(variants: tuple[float, ...]) -> float:
    """The logarithm of the sum of probabilities; -inf for none."""
    if len(variants) == 1:
        return variants[0]
    with np.errstate(invalid="ignore"):  # what is not finite is told of its row, by its site
        return float(np.logaddexp.reduce(variants)) if variants else -np.inf
