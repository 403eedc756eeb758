"""The arms of a sweep as rows of their own, and what each touches. Knows position rules and edits; runs no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probe.capture.batching import PassInput
from probe.capture.interventions import Interventions, acting_tokens
from probe.models.edits import Edit
from probe.models.points import HookPoint
from probe.models.protocol import ModelFacts
from probe.values import Intervention, KVPatch, ModelError, ProbeError, TokenPatch

Operator = Intervention | TokenPatch | KVPatch


def tokens_of(row: PassInput) -> tuple[int, ...]:
    """All that is fed of a row: its prompt, and what is given after it."""
    return (*row.token_ids, *(row.given or ()))


@dataclass(frozen=True, eq=False)
class Item:
    """One arm of one row. Below residual point ``layer``, and before token ``start``, it is the row unedited.

    ``layer`` is None where the arm acts on no token of the row.
    """

    row: int
    arm: int
    fed: PassInput
    tokens: tuple[int, ...]
    patches: tuple[TokenPatch, ...]
    donors: tuple[KVPatch, ...]
    layer: int | None
    start: int

    @property
    def suffix(self) -> int:
        """Tokens from the first edited one on."""
        return len(self.tokens) - self.start

    @property
    def bounds(self) -> tuple[int, ...]:
        """The tokens from which on donors' keys and values are seen, rising."""
        return tuple(sorted({patch.first_seen for patch in self.donors}))


def item_of(row: int, arm: int, fed: PassInput, operators: Sequence[Operator], facts: ModelFacts) -> Item:
    """One arm of one row; the model has the hook points of its operators.

    Raises:
        ProbeError: a row longer than the context, an operator at a token or of a width that row or model do not have,
            or keys and values for a model whose cache cannot take them.
    """
    tokens = tokens_of(fed)
    if facts.shape.context is not None and len(tokens) > facts.shape.context:
        raise ProbeError(
            f"{facts.architecture} has a context of {facts.shape.context} tokens, and row {row} of the sweep has "
            f"{len(tokens)}; leave it out"
        )
    touched = []
    for each in operators:
        if isinstance(each, Intervention):
            start, end = acting_tokens(fed, each.position)
            if start < min(end, len(tokens)):
                touched.append((each.layer, start))
        elif isinstance(each, TokenPatch):
            _require_fits(each, len(tokens), facts)
            touched.append((each.layer, each.tokens[0]))
        else:
            _require_caching(each, len(tokens), facts)
            touched.append((each.layers[0], each.first_seen))
    return Item(
        row,
        arm,
        replace(fed, interventions=tuple(each for each in operators if isinstance(each, Intervention)), forks=()),
        tokens,
        tuple(each for each in operators if isinstance(each, TokenPatch)),
        tuple(each for each in operators if isinstance(each, KVPatch)),
        min((layer for layer, _ in touched), default=None),
        min((start for _, start in touched), default=len(tokens) - 1),
    )


def _require_fits(patch: TokenPatch, n_tokens: int, facts: ModelFacts) -> None:
    if patch.tokens[-1] >= n_tokens:
        raise ProbeError(f"a patch acts at tokens of the row, 0 to {n_tokens - 1}; found {patch.tokens[-1]}")
    width = facts.widths[patch.stream]
    start, end = patch.columns or (0, width)
    if not 0 <= start < end <= width or patch.values.shape[1] != end - start:
        raise ProbeError(
            f"stream {patch.stream!r} of {facts.architecture} is {width} wide; found a patch of columns {start} to "
            f"{end} with {patch.values.shape[1]} values a token"
        )


def _require_caching(patch: KVPatch, n_tokens: int, facts: ModelFacts) -> None:
    if facts.caching != "attention":
        raise ModelError(
            f"keys and values are patched in a cache of keys and values alone, and that of {facts.architecture} on "
            f"backend {facts.backend!r} is {facts.caching!r}; patch streams there"
        )
    if patch.first_seen >= n_tokens or patch.layers[-1] >= facts.shape.n_layers:
        raise ProbeError(
            f"donor keys and values stand in blocks 0 to {facts.shape.n_layers - 1} and are seen by some token up to "
            f"{n_tokens - 1}; found blocks up to {patch.layers[-1]}, seen from token {patch.first_seen} on"
        )


class ItemEdits:
    """The edits of items, row by row; one for each sweep, so that arrays are moved once.

    At one hook point patches of the whole width come first, then those of some columns, then interventions.
    """

    def __init__(self, facts: ModelFacts) -> None:
        self._facts = facts
        self._interventions = Interventions(facts.device)

    def edits(self, items: Sequence[Item], offsets: Sequence[int], width: int) -> tuple[Edit, ...]:
        """The edits of a forward whose first column is token ``offsets[i]`` of item i; negative ones are pads."""
        found = {(p.stream, p.layer, p.columns) for item in items for p in item.patches}
        kinds = sorted(found, key=lambda kind: (kind[:2], kind[2] or ()))
        patches = [self._patch(kind, items, offsets, width) for kind in kinds]
        others = self._interventions.edits([item.fed for item in items], offsets, width)
        return (*(each for each in patches if each is not None), *others)

    def _patch(
        self,
        kind: tuple[str, int, tuple[int, int] | None],
        items: Sequence[Item],
        offsets: Sequence[int],
        width: int,
    ) -> Edit | None:
        stream, layer, columns = kind
        start, end = columns or (0, self._facts.widths[stream])
        where = torch.zeros(len(items), width, dtype=torch.bool)
        values = torch.zeros(len(items), width, self._facts.widths[stream])
        for i, (item, offset) in enumerate(zip(items, offsets, strict=True)):
            for each in item.patches:
                if (each.stream, each.layer, each.columns) == kind:
                    at = torch.tensor(each.tokens) - offset
                    here = (at >= 0) & (at < width)
                    where[i, at[here]] = True
                    values[i, at[here], start:end] = torch.tensor(each.values, dtype=torch.float32)[here]
        if not bool(where.any()):
            return None
        device = self._facts.device
        return Edit(HookPoint(stream, layer), "patch", where.to(device), values=values.to(device), columns=columns)


def donor_arrays(patch: KVPatch, like: Tensor) -> list[tuple[int, tuple[Tensor, Tensor]]]:
    """Keys and values of each patched block as tensors on a device and in a dtype."""
    found = []
    for layer, keys, values in zip(patch.layers, patch.keys, patch.values, strict=True):
        found.append((layer, (torch.tensor(keys).to(like), torch.tensor(values).to(like))))
    return found
