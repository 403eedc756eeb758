"""Activations of a donor, token by token, and what a sweep of edits read. Knows arrays; knows no model, no tokenizer.

Tokens are counted from 0 over the prompt and what is given after it, without pads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from probe.values.cells import LabelRead
from probe.values.errors import ProbeError


@dataclass(frozen=True, eq=False)
class TokenPatch:
    """Other values in a stream at some tokens of one row: ``x[tokens[i], columns] <- values[i]``.

    ``layer`` counts as in :class:`probe.values.Site`. ``columns`` ``[start, end)`` are a part of the stream's width, as
    one head of ``head_out``; None is all of it.

    Raises:
        ProbeError: no token, tokens that do not rise from 0 on, or values of another shape, or not finite.
    """

    stream: str
    layer: int
    tokens: tuple[int, ...]
    values: Float[np.ndarray, "token width"]
    columns: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _require_rising(self.tokens)
        width = None if self.columns is None else self.columns[1] - self.columns[0]
        shape = self.values.shape
        if self.values.ndim != 2 or shape[0] != len(self.tokens) or (width is not None and shape[1] != width):
            wanted = f"[{len(self.tokens)}, {'width' if width is None else width}]"
            raise ProbeError(f"a patch has values {wanted}, found {list(shape)}; give one row for each token")
        _require_finite(self.values)


@dataclass(frozen=True, eq=False)
class KVPatch:
    """A donor's keys and values at some tokens of one row, as what follows them sees them in some blocks.

    The tokens from ``seen_from`` on (by default the one after the last of ``tokens``) attend to these in place of the
    row's own; those before it run as if there were no such patch. ``keys[k]`` and ``values[k]`` are
    ``[head, token, width]`` of block ``layers[k]``, as a cache holds them: where positions are rotated into keys, the
    donor's stood at the same token index.

    Raises:
        ProbeError: no token or block, tokens or blocks that do not rise, arrays that do not fit them, or a
            ``seen_from`` that does not follow all tokens.
    """

    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    keys: tuple[Float[np.ndarray, "head token width"], ...]
    values: tuple[Float[np.ndarray, "head token width"], ...]
    seen_from: int | None = None

    def __post_init__(self) -> None:
        _require_rising(self.tokens)
        _require_rising(self.layers, "blocks")
        for name, arrays in (("keys", self.keys), ("values", self.values)):
            if len(arrays) != len(self.layers):
                raise ProbeError(f"{len(self.layers)} blocks take as many arrays of {name}, found {len(arrays)}")
            for array in arrays:
                if array.ndim != 3 or array.shape[1] != len(self.tokens):
                    raise ProbeError(
                        f"a donor's {name} are [head, {len(self.tokens)}, width], found {list(array.shape)}; "
                        "give one column for each token"
                    )
                _require_finite(array)
        if self.first_seen <= self.tokens[-1]:
            raise ProbeError(
                f"keys and values are seen by tokens that follow them; found token {self.first_seen}, "
                f"and the last of them is {self.tokens[-1]}"
            )

    @property
    def first_seen(self) -> int:
        """The first token that attends to them."""
        return self.tokens[-1] + 1 if self.seen_from is None else self.seen_from


@dataclass(frozen=True, eq=False)
class KeyValues:
    """What a cache holds of some tokens of one row: ``keys[l]`` and ``values[l]`` are ``[head, token, width]``."""

    tokens: tuple[int, ...]
    keys: tuple[Float[np.ndarray, "head token width"], ...]
    values: tuple[Float[np.ndarray, "head token width"], ...]

    def patch(self, layers: Sequence[int] | None = None, *, seen_from: int | None = None) -> KVPatch:
        """These, in some blocks (None: in all), for another row that has as many tokens at the same indices."""
        chosen = tuple(range(len(self.keys))) if layers is None else tuple(layers)
        keys, values = tuple(self.keys[b] for b in chosen), tuple(self.values[b] for b in chosen)
        return KVPatch(chosen, self.tokens, keys, values, seen_from)


@dataclass(frozen=True, eq=False)
class SweepRead:
    """What one arm of one row gave at the row's last token; ``arm`` None is the row unedited.

    ``kl`` is KL(this || the row unedited) of the next-token distributions, full vocabulary, in nats, and ``kl_labels``
    the same over {labels, other}. ``kl_to`` and ``kl_labels_to`` are those to other rows, unedited, where some are
    named. ``values`` are by (stream, layer), after the edits, in fp32.
    """

    row: int
    arm: int | None
    labels: LabelRead
    kl: float
    kl_labels: float
    kl_to: tuple[float, ...]
    kl_labels_to: tuple[float, ...]
    values: Mapping[tuple[str, int], Float[np.ndarray, " width"]]


def _require_rising(numbers: tuple[int, ...], of: str = "tokens") -> None:
    if not numbers or numbers[0] < 0 or any(b <= a for a, b in pairwise(numbers)):
        raise ProbeError(f"the {of} of a patch rise from 0 on, each named once; found {list(numbers)[:8]}")


def _require_finite(array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise ProbeError("a patch must be finite, and this one is not; leave out the donor whose values these are")
