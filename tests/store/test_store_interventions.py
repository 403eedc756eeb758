"""A plan tells what the hashes of interventions stand for, and a plan without any is what it was before there were."""

from __future__ import annotations

from dataclasses import replace

from probe.store.plans import Plan, parse_plan
from probe.values import Cell, Condition, PlannedRow

SHA = "ab" * 32
TOLD = {"name": "push", "sha256": SHA, "edits": [{"operator": "add", "layer": 4}], "about": {"strength": 1.0}}


def plan(*interventions: str) -> Plan:
    rows = tuple(
        PlannedRow(Cell("none", "c1", Condition(intervention=one)), 0, "p", "t", 3) for one in ("", *interventions)
    )
    return Plan(rows, ({"id": "none"},), ({"id": "c1"},), 0, 1)


def test_a_plan_with_interventions_is_read_back_with_their_names() -> None:
    written = replace(plan(SHA), interventions=(TOLD,))
    again = parse_plan(written.hash, written.file)
    assert again.interventions == (TOLD,)
    assert again.intervention_names == {"": "", SHA: "push"}
    assert [row.cell for row in again.rows] == [row.cell for row in written.rows]


def test_a_hash_that_no_plan_names_stands_for_itself() -> None:
    assert plan(SHA).intervention_names == {"": "", SHA: SHA}


def test_a_plan_without_interventions_says_nothing_of_them() -> None:
    plain = plan()
    assert b"intervention" not in plain.file
    assert parse_plan(plain.hash, plain.file).interventions == ()
    assert plain.rows[0].cell.row_id == Cell("none", "c1", Condition()).row_id
    assert plan(SHA).rows[1].cell.row_id != plain.rows[0].cell.row_id
