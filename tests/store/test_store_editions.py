"""Texts edited under their old ids: refused, captured anew, or captured beside the old ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import store_samples as samples

from probe.store import Plan, StoreLock, open_store, open_writer
from probe.values import Cell, ChangedPrompt, Condition, sha256_of


def edited(plan: Plan, *cases: str) -> Plan:
    """The plan with another text for some cases."""
    rows = tuple(
        replace(row, prompt_sha=sha256_of(f"edited {row.text}")) if row.cell.case in cases else row for row in plan.rows
    )
    return replace(plan, rows=rows)


def run(path: Path, plan: Plan, on_changed: str = "error", gain: float = 1.0) -> tuple[int, Plan]:
    """Capture what is pending, with activations times ``gain``; how many rows that was, and the plan as settled."""
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(plan, on_changed)
        pending = writer.pending()
        for shard in sorted({row.shard for row in pending}):
            records = [samples.record(row) for row in pending if row.shard == shard]
            writer.commit([replace(r, resid={k: v * np.float32(gain) for k, v in r.resid.items()}) for r in records])
        return len(pending), writer.plan


def test_an_edited_text_is_refused_by_default_and_nothing_is_written(write):
    path, plan = write(), samples.plan()
    before = samples.content(path)
    with pytest.raises(
        ChangedPrompt, match=r"^2 rows changed since capture \(first: nurse/case-0003, none/case-0003\)"
    ):
        run(path, edited(plan, "case-0003"))
    assert samples.content(path) == before
    assert run(path, plan)[0] == 0


def test_recapture_reads_the_new_rows_keeps_the_old_and_reverting_the_text_reads_those_again(write):
    path, plan = write(), samples.plan()
    old = open_store(path).select(case="case-0003").resid(layer=1, position="prompt_end").numpy()
    changed = edited(plan, "case-0003")
    assert run(path, changed, "recapture", gain=2.0)[0] == 2
    store = open_store(path)
    assert len(store.table()) == 12
    np.testing.assert_array_equal(store.select(case="case-0003").resid(layer=1, position="prompt_end").numpy(), 2 * old)
    assert (store.coverage().committed, store.coverage().superseded) == (12, 2)
    assert "2 of earlier texts kept" in str(store.coverage())
    assert store.verify() == []
    assert run(path, changed)[0] == 0  # the same command again finds nothing to do, without the option too
    assert run(path, plan, "recapture")[0] == 0
    reverted = open_store(path).select(case="case-0003").resid(layer=1, position="prompt_end").numpy()
    np.testing.assert_array_equal(reverted, old)


def test_a_recapture_whose_rows_were_lost_goes_on_without_the_option_and_another_edit_does_not(write):
    path, plan = write(), samples.plan()
    changed = edited(plan, "case-0003")
    run(path, changed, "recapture")
    for shard in open_store(path).shards:
        if {row["case"] for row in shard.rows} == {"case-0003"}:
            shard.path.unlink()
    assert run(path, changed)[0] == 2
    assert open_store(path).coverage().pending == 0
    with pytest.raises(ChangedPrompt, match=r"^2 rows changed since capture \(first: nurse/case-0004"):
        run(path, edited(changed, "case-0004"))


def test_new_condition_gives_changed_cells_an_edition_of_their_own_and_leaves_the_others(write):
    path, plan = write(), samples.plan()
    changed = edited(plan, "case-0003")
    pending, settled = run(path, changed, "new-condition")
    assert pending == 2
    table = open_store(path).table().set_index(["persona", "case"])
    sha = next(row.prompt_sha for row in changed.rows if row.cell == Cell("nurse", "case-0003", Condition()))
    assert table.loc[("nurse", "case-0003"), "condition"] == f"system/edition={sha[:8]}"
    assert table.loc[("nurse", "case-0002"), "condition"] == "system"
    assert len(table) == 12
    assert len({row.cell.row_id for row in (*plan.rows, *settled.rows)}) == 14
    assert open_store(path).coverage().superseded == 0
    assert open_store(path).verify() == []
    assert run(path, changed, "new-condition") == (0, settled)


def test_two_edits_one_after_the_other_are_two_editions(write):
    path, plan = write(), samples.plan()
    first = edited(plan, "case-0003")
    second = replace(plan, rows=tuple(replace(row, prompt_sha=row.prompt_sha[::-1]) for row in first.rows))
    one, other = run(path, first, "new-condition"), run(path, second, "new-condition")
    assert (one[0], other[0]) == (2, 12)
    assert not {row.cell.row_id for row in other[1].rows} & {row.cell.row_id for row in one[1].rows}
    assert open_store(path).verify() == []
