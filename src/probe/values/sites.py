"""Places in the network, as values."""

from __future__ import annotations

from dataclasses import dataclass

POSITIONS = ("prompt_end", "persona_end", "case_mean", "answer", "response_mean")
"""Position rules. ``prompt_end``: last prompt token. ``persona_end``: last token of the persona's text. ``case_mean``:
mean over the tokens wholly inside the case text. ``answer``: the position whose next token holds the letter that the
parser accepted. ``response_mean``: mean over generated tokens without end tokens."""

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
