"""Label log-probabilities from next-token logits. Knows token ids; knows no text and no case."""

from __future__ import annotations

from collections.abc import Sequence

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
    reads = []
    for row, tokens in enumerate(labels):
        variants = [logp[row, list(ids)] for ids in tokens.ids]
        per_label = torch.stack([each.logsumexp(0) if len(each) else logp.new_tensor(-torch.inf) for each in variants])
        reads.append(
            LabelRead(
                logp=per_label.cpu().numpy(),
                mass=float(per_label.exp().sum()),
                entropy=float(entropy[row]),
                top_ids=tuple(top.indices[row].tolist()),
                top_logp=tuple(top.values[row].tolist()),
                variant_ids=tokens.ids,
                variant_logp=tuple(tuple(each.tolist()) for each in variants),
            )
        )
    return reads
