"""How the next token is chosen: the likeliest, or a draw. Knows logits and one row's own randomness; knows no text.

Temperature, top-k and top-p are applied in the order, and with the ties, of transformers' logits processors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.values import canonical_json

SAMPLER_VERSION = "1"
"""Changes when the same logits, row and seed would give another token."""


@dataclass(frozen=True)
class Sampling:
    """Draws from ``softmax(logits / temperature)``, cut to the likeliest ``top_k`` tokens and the ``top_p`` nucleus.

    ``temperature`` is above 0; ``top_p`` of 1 and ``top_k`` of None cut nothing.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int | None = None


def row_generator(row_id: str, seed: int) -> np.random.Generator:
    """The randomness of one row: a stream that depends on the row and its seed alone.

    So a row's tokens do not depend on which rows share its batch, on their order, or on what ran before.
    """
    digest = hashlib.sha256(canonical_json([row_id, seed]).encode("utf-8", "surrogatepass")).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def kept_scores(logits: Float[Tensor, "batch vocab"], sampling: Sampling) -> Float[Tensor, "batch vocab"]:
    """Logits over temperature in fp32, with -inf where top-k, and then the nucleus, leave a token out.

    The nucleus is the smallest set of likeliest tokens whose probability reaches ``top_p``; it is never empty. Tokens
    that tie with the k-th all stay.
    """
    scores = logits.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if sampling.top_p < 1.0:
        ascending, order = scores.sort(dim=-1)
        below = ascending.softmax(-1).cumsum(-1) <= 1.0 - sampling.top_p
        below[:, -1] = False
        scores = scores.masked_fill(below.scatter(1, order, below), -torch.inf)
    return scores


def choose_tokens(
    logits: Float[Tensor, "batch vocab"], sampling: Sampling | None, streams: Sequence[np.random.Generator | None]
) -> list[int]:
    """The next token of each row: the likeliest one, or with ``sampling`` a draw that uses one number of its stream."""
    if sampling is None:
        return [int(token) for token in logits.argmax(-1).tolist()]
    scores = kept_scores(logits, sampling)
    # In fp64 where the device has it: over 150,000 tokens an fp32 sum loses the tail.
    precise = torch.float32 if logits.device.type == "mps" else torch.float64
    uniforms = [stream.random() for stream in streams if stream is not None]
    return [int(token) for token in drawn(scores.to(precise), np.array(uniforms)).tolist()]


def drawn(scores: Float[Tensor, "batch vocab"], uniforms: Float[np.ndarray, " batch"]) -> Int[Tensor, " batch"]:
    """The token at which the cumulated softmax of each row passes its uniform number in [0, 1): the inverse CDF.

    A token of score -inf is never drawn.
    """
    mass = (scores - scores.amax(-1, keepdim=True)).exp()
    upto = mass.cumsum(-1)
    # Parts of the sum itself, so that what it lacks to 1 goes to no token.
    wanted = torch.as_tensor(uniforms, dtype=upto.dtype, device=upto.device)[:, None] * upto[:, -1:]
    chosen = torch.searchsorted(upto, wanted, right=True)[:, 0]
    # Rounding may bring `wanted` up to the whole sum: then it is the last token that has any mass.
    last = mass.shape[-1] - 1 - (mass > 0).flip(-1).int().argmax(-1)
    return chosen.minimum(last).cpu()
