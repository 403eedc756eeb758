"""Side paths of a row: text that is fed from a copy of its cache and read. Knows tokens; knows no backend or site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from probe.prompts import LabelTokens, Reopening
from probe.values import LabelRead

ReasoningEnd = Callable[[Sequence[int]], Reopening | None]
"""From the tokens of a finished answer to where its closed reasoning ends; None where there is no such place."""


@dataclass(frozen=True)
class Fork:
    """Tokens that are fed beside the row's own course, which goes on as if they had not been.

    ``prompt_end``: the cache is forked after the prompt, before generation changes it, and ``token_ids`` are fed.
    ``reasoning_end``: when the row has ended, its cache is cut back to prompt and the first ``n_kept`` generated tokens
    of its :class:`probe.prompts.Reopening`; that value's ``token_ids`` are fed, then the fork's own (which may be
    none). ``labels`` are read after the last fed token; None reads no label there.
    """

    name: str
    at: Literal["prompt_end", "reasoning_end"]
    token_ids: tuple[int, ...]
    labels: LabelTokens | None = None


@dataclass(frozen=True, eq=False)
class ForkRead:
    """What a fork gave: ``logp[i]`` of the i-th fed token given all that precedes it (fp32, nats, full softmax), the
    activations at the last fed token by stream, and the label read after it."""

    logp: Float[np.ndarray, " token"]
    values: Mapping[str, Float[Tensor, "layer width"]]
    read: LabelRead | None = None
