"""What other runs hold for the same cases, as values of interventions. Reads stores; loads no model."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from probe.store import Store
from probe.study import Study
from probe.values import ProbeError
from probe.values.nearest import nearest
from probe.values.recipes import Prompted


def donor_values(
    store: Store,
    *,
    persona: str,
    layer: int,
    position: str = "prompt_end",
    basis: Float[np.ndarray, "k width"] | None = None,
    stream: str = "resid",
) -> dict[Prompted, Float[np.ndarray, " _"]]:
    """What a persona's own, unedited cells hold at a site, by case, instruction and rotation, float32.

    Whole vectors ``[width]``, or their coordinates ``[k]`` along the rows of ``basis``. Of several wordings or seeds
    the first is taken; a cell that lacks the position has no value.

    Raises:
        ProbeError: the store has no such persona, layer or position, or no value at all.
    """
    personas = [str(entry["id"]) for entry in store.plan.personas]
    if persona not in personas:
        raise ProbeError(f"{store.place.url} has no persona {persona!r}. {nearest(persona, personas, 'persona')}")
    view = store.select(persona=persona, given="", intervention="")
    resid = view.resid(layer=layer, position=position, stream=stream, missing="drop")
    values = np.asarray(resid, dtype=np.float32)
    if basis is not None:
        values = (values.astype(np.float64) @ np.asarray(basis, dtype=np.float64).T).astype(np.float32)
    found: dict[Prompted, np.ndarray] = {}
    order = sorted(range(len(values)), key=lambda i: _turn(resid.rows[i].planned.cell.condition))
    for i in order:
        cell = resid.rows[i].planned.cell
        found.setdefault((cell.case, cell.condition.instruction, cell.condition.rotation), values[i])
    if not found:
        raise ProbeError(f"{store.place.url} holds no {stream} of {persona!r} at {position}; run that study first")
    return found


def refuse_other_texts(store: Store, study: Study) -> None:
    """Raise where a store holds answers to another text of a case of the study."""
    there = {str(case["id"]): (case.get("text"), case.get("choices") or []) for case in store.plan.cases}
    for case in study.cases:
        text, choices = there.get(case.id, (None, []))
        if text is not None and (text, choices) != (case.input, list(case.choices or ())):
            raise ProbeError(
                f"{store.place.url} holds answers to another text of the case {case.id!r}; give the case a new id, or "
                "run the study of that store again"
            )


def _turn(condition: object) -> tuple[int, int]:
    return getattr(condition, "wording", 0), getattr(condition, "seed", 0)
