"""Interventions of rows as edits of one forward. Knows position rules and token counts; knows no model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from probe.capture.batching import PassInput
from probe.models.edits import Edit
from probe.models.points import HookPoint
from probe.values import Gate, Intervention

_FOREVER = 2**62

_Kind = tuple[int, HookPoint, str, bool, int]
"""What is stacked into one edit: the turn at a hook point, the point, operator, whether relative, size of the basis."""


def acting_tokens(row: PassInput, position: str) -> tuple[int, int]:
    """``[start, end)`` of the tokens at which an intervention acts, counted over prompt and answer.

    Empty where the row has no such text.
    """
    n_prompt, end = row.length, row.persona_end
    places = {
        "all": (0, _FOREVER),
        "prompt": (0, n_prompt),
        "response": (n_prompt, _FOREVER),
        "prompt_end": (n_prompt - 1, n_prompt),
        "persona_end": (0, 0) if end is None else (end, end + 1),
        "persona": row.persona_tokens or (0, 0),
        "case": row.case_tokens or (0, 0),
        "newest": (n_prompt - 1, _FOREVER),
    }
    return places[position]


class Interventions:
    """Turns the interventions of rows into stacked edits; one for each pass, so that arrays are moved once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._moved: dict[tuple[str, str], Tensor] = {}
        self._stacked: dict[_Kind, tuple[tuple[str, ...], dict[str, Tensor]]] = {}

    def edits(self, rows: Sequence[PassInput], offsets: Sequence[int], width: int) -> tuple[Edit, ...]:
        """The edits of a forward whose first column is token ``offsets[i]`` of row i; negative ones are pads.

        At one hook point each row's interventions act in their own order. ``attn_out`` comes before ``resid_mid``,
        which is edited at the same place, whatever the rows of the batch have.
        """
        if not any(row.interventions for row in rows):
            return ()
        found: dict[_Kind, list[Intervention | None]] = {}
        for i, row in enumerate(rows):
            turns: dict[HookPoint, int] = {}
            for each in row.interventions:
                point = HookPoint(each.stream, each.layer)
                turn = turns[point] = turns.get(point, -1) + 1
                size = 0 if each.basis is None else len(each.basis)
                kind = (turn, point, each.operator, each.relative, size)
                found.setdefault(kind, [None] * len(rows))[i] = each
        tokens = torch.arange(width)[None] + torch.tensor(list(offsets))[:, None]
        made = []
        acting: dict[tuple[str, ...], tuple[bool, Tensor]] = {}  # the same at every layer, as a rule
        for kind, stacked in sorted(found.items(), key=lambda item: _order(item[0])):
            rules = tuple("" if each is None else each.position for each in stacked)
            if rules not in acting:
                where = _where(rows, rules, tokens)
                acting[rules] = bool(where.any()), where.to(self._device)
            somewhere, where = acting[rules]
            if somewhere:
                made.append(self._edit(kind, stacked, where))
        return tuple(made)

    def _edit(self, kind: _Kind, stacked: list[Intervention | None], where: Bool[Tensor, "row pos"]) -> Edit:
        _, point, operator, relative, _ = kind
        arrays = self._arrays(kind, stacked)
        return Edit(
            point,
            operator,
            where,
            arrays.get("vector"),
            arrays.get("basis"),
            arrays.get("coordinates"),
            relative,
            arrays.get("gate"),
            arrays.get("above"),
        )

    def _arrays(self, kind: _Kind, stacked: list[Intervention | None]) -> dict[str, Tensor]:
        """The operators' arrays and gates, row by row; kept while the same rows decode."""
        own = tuple("" if each is None else each.sha256 for each in stacked)
        if kind not in self._stacked or self._stacked[kind][0] != own:
            arrays = {
                name: self._stack(name, stacked)
                for name in ("vector", "basis", "coordinates", "gate")
                if any(each is not None and getattr(each, name) is not None for each in stacked)
            }
            if "gate" in arrays:  # the gates of rows without one are open
                numbers = [-math.inf if each is None or each.gate is None else each.gate.above for each in stacked]
                arrays["above"] = torch.tensor(numbers, device=self._device)
            self._stacked[kind] = own, arrays
        return self._stacked[kind][1]

    def _stack(self, name: str, stacked: list[Intervention | None]) -> Tensor:
        """One array per row; rows without one get zeros."""
        present = [self._tensor(each, name) for each in stacked]
        shape = next(each for each in present if each is not None)
        return torch.stack([torch.zeros_like(shape) if each is None else each for each in present])

    def _tensor(self, intervention: Intervention | None, name: str) -> Tensor | None:
        found = None if intervention is None else getattr(intervention, name)
        if intervention is None or found is None:
            return None
        key = (intervention.sha256, name)
        if key not in self._moved:
            # A copy: arrays that were read from a file may be read-only, of which torch warns.
            array = torch.tensor(found.vector if isinstance(found, Gate) else found, dtype=torch.float32)
            self._moved[key] = array.to(self._device)
        return self._moved[key]


def _where(rows: Sequence[PassInput], rules: Sequence[str], tokens: Int[Tensor, "row pos"]) -> Bool[Tensor, "row pos"]:
    """Which of these tokens the rows' position rules name; a row with an empty one has none."""
    spans = [acting_tokens(row, rule) if rule else (0, 0) for row, rule in zip(rows, rules, strict=True)]
    start, end = torch.tensor(spans).T[:, :, None]
    within: Tensor = (start <= tokens) & (tokens < end)
    return within


def _order(kind: _Kind) -> tuple[HookPoint, int]:
    turn, point, *_ = kind
    return point, turn
