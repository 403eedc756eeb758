"""Places in the network, as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

POSITIONS = ("prompt_end", "persona_end", "case_mean", "answer", "response_mean", "forced", "after_reasoning")
"""Position rules. ``prompt_end``: last prompt token. ``persona_end``: last token of the persona's text. ``case_mean``:
mean over the tokens wholly inside the case text. ``answer``: the position whose next token holds the letter that the
parser accepted. ``response_mean``: mean over generated tokens without end tokens. ``forced``: last token of a text that
is fed after the prompt, as if the answer began with it. ``after_reasoning``: last token of that text where it is fed
after the model's own closed reasoning. The token index of these two counts on from the prompt, or from the reasoning
that is kept: at that index the row's own answer has another token, or none."""

LABEL_SITES = ("prompt_end", "forced", "answer", "after_reasoning")
"""Answer sites: where labels are read, in the order in which an answer comes to them."""


class AbsentSite(StrEnum):
    """Why a row has no such answer site: the words that its record keeps.

    ``UNAVAILABLE``: the model's state cannot be copied, or cut back, at this place, or the context has no room for the
    text that is fed there. ``NOT_CLOSED``, ``NO_REASONING``: the answer leaves its reasoning open, or has none.
    ``MERGES``: the token that closes the reasoning belongs to what follows too, or would join with the forced text.
    """

    UNAVAILABLE = "site_unavailable"
    NOT_CLOSED = "reasoning_not_closed"
    NO_REASONING = "no_reasoning"
    MERGES = "tokens_merge"


STREAMS = ("resid", "resid_mid", "attn_out", "mlp_out", "head_out")
"""``resid``: residual points 0..L. The others are indexed by block 0..L-1. ``attn_out``, ``mlp_out``: the terms that a
block adds to the residual, after post-norms and multipliers. ``resid_mid`` = point b plus ``attn_out``; a block that
adds both terms at once has none. ``head_out``: what the heads put side by side into the output projection."""


@dataclass(frozen=True, order=True)
class Site:
    """Stream, layer and position rule.

    ``layer`` of stream ``resid`` is a residual *point* 0..L: 0 is the embedding, k the output of block k-1; point L
    stands before the final norm.
    """

    layer: int
    position: str
    stream: str = "resid"
