"""Texts that were edited under their old ids. Knows planned rows and the hashes of their prompts; opens no file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

from probe.store.places import Place
from probe.store.plans import Plan, cell_name
from probe.store.progress import asked_for
from probe.store.shards import Key
from probe.values import ChangedPrompt, PlannedRow

OnChanged = Literal["error", "recapture", "new-condition"]
"""What to do about cells that were captured under another text: refuse; capture them anew, where the old rows are kept
as superseded; or capture them beside the old ones, under a condition that names the edition."""

ON_CHANGED: tuple[OnChanged, ...] = ("error", "recapture", "new-condition")


def settle_changes(
    plan: Plan, committed: Collection[Key], on_changed: OnChanged, place: Place, *, sums: bool = False
) -> Plan:
    """The plan to follow, given the (row id, ``prompt_sha``) pairs that are committed already.

    A change that the store's latest plan holds was decided on before: a recapture that was killed, or whose rows were
    lost, goes on without another word. Under ``new-condition`` the changed cells get ``condition.edition``, the first 8
    hex digits of the new ``prompt_sha``, and so row ids of their own; the other two leave the plan as it is.
    A store that keeps ``sums`` over rows takes no change: the old rows could not leave them.

    Raises:
        ChangedPrompt: cells were captured under another text and ``on_changed`` is ``error``, or the store keeps sums.
    """
    known = {row_id for row_id, _ in committed}
    changed = [
        row for row in plan.rows if row.cell.row_id in known and (row.cell.row_id, row.prompt_sha) not in committed
    ]
    if changed and sums:
        raise ChangedPrompt(
            f"{len(changed)} rows changed since capture (first: {cell_name(changed[0].cell)}), and this store keeps "
            "sums over rows (capture.keep: moments), which the old texts cannot leave, whatever --on-changed says. "
            f"Give what was edited a new id, or use --store NEW_DIR ({place.url} stays as it is)"
        )
    if changed and on_changed == "error":
        before = asked_for(place)
        changed = [row for row in changed if (row.cell.row_id, row.prompt_sha) not in before]
    if not changed or on_changed == "recapture":
        return plan
    if on_changed == "new-condition":
        moved = {row.cell.row_id for row in changed}
        rows = tuple(_edition(row) if row.cell.row_id in moved else row for row in plan.rows)
        return replace(plan, rows=rows)
    first = ", ".join(cell_name(row.cell) for row in changed[:5])
    raise ChangedPrompt(
        f"{len(changed)} rows changed since capture (first: {first}{', ...' if len(changed) > 5 else ''}): a persona, "
        f"case or instruction was edited under the same id. Give it a new id, use --store NEW_DIR ({place.url} stays "
        "as it is), or choose --on-changed recapture (the new text counts, old rows are kept) or new-condition (the "
        "new text becomes a condition of its own; old rows keep theirs, and are read again under the old text)"
    )


def _edition(row: PlannedRow) -> PlannedRow:
    condition = replace(row.cell.condition, edition=row.prompt_sha[:8])
    return replace(row, cell=replace(row.cell, condition=condition))
