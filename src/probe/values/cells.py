"""A cell (persona x case x condition) and what one pass recorded for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from probe.values.canonical import sha256_of

STATUSES = ("parsed", "refused", "unparsable", "truncated", "conflicting")
"""How the generated answer was read."""


def is_cut(stop: str) -> bool:
    """Whether an answer that stopped in this way (``extra["stop"]``) had not come to its end.

    ``end`` and ``given`` have; ``length``, ``context`` and ``given_cut`` have not.
    """
    return stop not in ("end", "given")


@dataclass(frozen=True)
class Condition:
    """Everything that may differ between two cells of one persona and one case.

    ``placement`` is where the persona's text stands: ``system`` or ``user`` (first in the user turn, for templates
    without a system role). ``prefix`` is a forced beginning of the answer. ``intervention`` is the hash of an edit.
    ``given`` is the source of a text that is fed in place of a generated answer (empty where the model answers itself).
    ``edition`` tells a text that was edited under its old id from the one captured before (empty for the first).
    """

    wording: int = 0
    instruction: int = 0
    rotation: int = 0
    placement: str = "system"
    prefix: str = ""
    seed: int = 0
    intervention: str = ""
    edition: str = ""
    given: str = ""

    @property
    def changed(self) -> dict[str, int | str]:
        """The fields that differ from their defaults, as files keep them: a field added later changes no old row."""
        return {known.name: value for known in fields(self) if (value := getattr(self, known.name)) != known.default}

    @property
    def name(self) -> str:
        """A short readable name: the placement, then only what differs from the default."""
        parts = [self.placement]
        shown = {**vars(self), "intervention": self.intervention[:8]}  # a hash, which tables name in full
        parts += [f"{key}={value}" for key, value in shown.items() if key != "placement" and value]
        return "/".join(parts)


@dataclass(frozen=True)
class Cell:
    """One persona on one case under one condition, by their ids."""

    persona: str
    case: str
    condition: Condition

    @cached_property
    def row_id(self) -> str:
        """32 hex digits that name this cell in a store; fields of the condition at their defaults do not enter."""
        return sha256_of({"persona": self.persona, "case": self.case, "condition": self.condition.changed})[:32]


@dataclass(frozen=True)
class PlannedRow:
    """A cell that a plan asks for, with the hashes that notice an edited text.

    ``planned`` holds the organism's planned distributions ``{"direct": [...], "reasoned": [...]}`` over the options,
    where the cell lies inside the plan; without the second, the answer is planned to decline. ``text`` is the rendered
    prompt.
    """

    cell: Cell
    shard: int
    prompt_sha: str
    tokens_sha: str
    n_tokens: int
    text: str | None = None
    planned: Mapping[str, list[float]] | None = None


@dataclass(frozen=True, eq=False)
class LabelRead:
    """What the full-vocabulary softmax says of the labels at one site, in fp32 and nats.

    ``logp`` is the log-probability of each option (all legal single-token variants of its letter summed), in option
    order; ``mass`` the probability on all labels together; ``entropy`` that of the whole next-token distribution.
    ``variant_ids[label]`` are the tokens that were summed for a label, ``variant_logp[label]`` their log-probabilities.
    """

    logp: Float[np.ndarray, " label"]
    mass: float
    entropy: float
    top_ids: tuple[int, ...] = ()
    top_logp: tuple[float, ...] = ()
    variant_ids: tuple[tuple[int, ...], ...] = ()
    variant_logp: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class CellRecord:
    """What one pass recorded for one cell.

    ``resid[position]`` is ``[layer, d_model]`` over the captured residual points; an absent position has no key and
    ``positions[position] == -1``. Positions count tokens from 0 over prompt and answer, without padding. ``labels``
    maps an answer site (``prompt_end``, ``answer``, ...) to its read; an absent site has no key. ``label`` is the
    option that the generated text states and ``letter`` the letter it wrote, both None unless ``status`` is ``parsed``;
    ``span`` is the letter's ``[start, end)`` in characters of ``gen_text``. ``nonfinite`` counts non-finite values.
    ``given_logp[i]`` is the log-probability of ``gen_tokens[i]`` given all that precedes it (fp32, nats, full softmax),
    where they were given; empty where they were generated. ``streams[stream][position]`` is ``[block, width]`` for the
    streams beside the residual, at the positions that ``resid`` has. Where a store keeps moments, rows that are alike
    in persona, condition and ``group`` are added up.
    """

    cell: Cell
    prompt_sha: str
    tokens_sha: str
    prompt_tokens: tuple[int, ...]
    positions: Mapping[str, int]
    resid: Mapping[str, Float[np.ndarray, "layer d_model"]]
    labels: Mapping[str, LabelRead]
    gen_tokens: tuple[int, ...]
    gen_text: str
    status: str
    label: str | None = None
    letter: str | None = None
    span: tuple[int, int] | None = None
    letter_first: bool = False
    nonfinite: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    given_logp: tuple[float, ...] = ()
    streams: Mapping[str, Mapping[str, Float[np.ndarray, "_ _"]]] = field(default_factory=dict)
    group: str = ""

    def at(self, stream: str) -> Mapping[str, np.ndarray]:
        """The activations of a stream by position, ``[layer, width]`` each; empty where it was not captured."""
        return self.resid if stream == "resid" else self.streams.get(stream, {})
