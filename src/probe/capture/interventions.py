"""Interventions of rows as edits of one forward. Knows position rules and token counts; knows no model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from probe.capture.batching import PassInput
from probe.models.edits import Edit
from probe.models.points import HookPoint
from probe.values import Intervention

_FOREVER = 2**62


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
    }
    return places[position]


class Interventions:
    """Turns the interventions of rows into stacked edits; one for each pass, so that arrays are moved once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._moved: dict[tuple[str, str], Tensor] = {}

    def edits(self, rows: Sequence[PassInput], offsets: Sequence[int], width: int) -> tuple[Edit, ...]:
        """The edits of a forward whose first column is token ``offsets[i]`` of row i; negative ones are pads.

        At one hook point each row's interventions act in their own order. ``attn_out`` comes before ``resid_mid``,
        which is edited at the same place, whatever the rows of the batch have.
        """
        if not any(row.interventions for row in rows):
            return ()
        found: dict[tuple[int, HookPoint, str, int], list[Intervention | None]] = {}
        for i, row in enumerate(rows):
            turns: dict[HookPoint, int] = {}
            for each in row.interventions:
                point = HookPoint(each.stream, each.layer)
                turn = turns[point] = turns.get(point, -1) + 1
                size = 0 if each.basis is None else len(each.basis)
                found.setdefault((turn, point, each.operator, size), [None] * len(rows))[i] = each
        tokens = torch.arange(width)[None] + torch.tensor(list(offsets))[:, None]
        made = []
        for (_, point, operator, _), stacked in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
            where = self._where(rows, stacked, tokens)
            if bool(where.any()):
                made.append(self._edit(point, operator, stacked, where.to(self._device)))
        return tuple(made)

    @staticmethod
    def _where(
        rows: Sequence[PassInput], stacked: Sequence[Intervention | None], tokens: Int[Tensor, "row pos"]
    ) -> Bool[Tensor, "row pos"]:
        acting = [
            (0, 0) if each is None else acting_tokens(row, each.position)
            for row, each in zip(rows, stacked, strict=True)
        ]
        start, end = torch.tensor(acting).T[:, :, None]
        within: Tensor = (start <= tokens) & (tokens < end)
        return within

    def _edit(self, point: HookPoint, operator: str, stacked: list[Intervention | None], where: Tensor) -> Edit:
        arrays = {
            name: self._stack(name, stacked)
            for name in ("vector", "basis", "coordinates")
            if any(each is not None and getattr(each, name) is not None for each in stacked)
        }
        return Edit(point, operator, where, arrays.get("vector"), arrays.get("basis"), arrays.get("coordinates"))

    def _stack(self, name: str, stacked: list[Intervention | None]) -> Tensor:
        """One array per row; rows without an intervention get zeros, which act nowhere."""
        present = [None if each is None else self._tensor(each, name) for each in stacked]
        shape = next(each for each in present if each is not None)
        return torch.stack([torch.zeros_like(shape) if each is None else each for each in present])

    def _tensor(self, intervention: Intervention, name: str) -> Tensor:
        key = (intervention.sha256, name)
        if key not in self._moved:
            # A copy: arrays that were read from a file may be read-only, of which torch warns.
            array = torch.tensor(getattr(intervention, name), dtype=torch.float32)
            self._moved[key] = array.to(self._device)
        return self._moved[key]
