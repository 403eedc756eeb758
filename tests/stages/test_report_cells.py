"""Cells of a store on their way to a page: which are shown, and where their label stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from probe.report import ReadCell
from probe.stages import report_cells, reporting
from probe.stages.analysis import behaviour_tables, shift_tables
from probe.stages.report_cells import chosen, read_cells
from probe.store import StoreLock, open_store, open_writer
from probe.values import CellRecord
from tests.stages.test_store_analysis import store_at
from tests.store import store_samples as samples


def cell(persona: str, i: int, stated: str | None) -> ReadCell:
    return ReadCell(persona, f"case-{i}", "emergency", "prompt", "answer", "parsed", "C", "C", stated)


def stated(record: CellRecord) -> CellRecord:
    """The same record with an answer that states its letter in so many words."""
    text = f"Severe pain. Final answer: {record.letter}"
    return record if record.letter is None else replace(record, gen_text=text, span=(len(text) - 1, len(text)))


def store_of_statements(path: Path) -> Path:
    plan = samples.plan(("nurse", "none"))
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, {**samples.manifest(), "study": {"name": "s", "base": "none"}}, lock=lock)
        writer.add_plan(plan)
        for shard in sorted({row.shard for row in plan.rows}):
            writer.commit([stated(samples.record(row)) for row in plan.rows if row.shard == shard])
    return path


def test_the_marked_place_holds_the_written_letter_and_its_rule_is_named(tmp_path: Path) -> None:
    store = open_store(store_of_statements(tmp_path / "store"))
    cells, told = read_cells(store)
    table = store.table()
    assert told == ""
    assert [cell.case for cell in cells] == table["case"].tolist()
    spoken = [(one, letter) for one, letter in zip(cells, table["letter"], strict=True) if one.stated is not None]
    assert spoken
    for one, letter in spoken:
        assert one.span is not None
        assert one.answer[slice(*one.span)] == letter
        assert one.rule
    assert all(one.span is None for one in cells if one.stated is None)


def test_an_answer_that_the_parser_reads_otherwise_keeps_the_place_of_the_capture_and_names_no_rule(
    tmp_path: Path,
) -> None:
    cells, _ = read_cells(open_store(store_at(tmp_path / "store")))  # texts without any statement, spans (0, 1)
    assert {one.span for one in cells if one.stated is not None} == {(0, 1)}
    assert not any(one.rule for one in cells if one.stated is not None)


def test_beyond_the_limit_cells_whose_labels_part_come_first_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(store_at(tmp_path / "store"))
    parted = {(one.persona, one.case) for one in read_cells(store)[0] if one.relation != "agree"}
    total = len(store.table())
    assert 0 < len(parted) < total
    monkeypatch.setattr(report_cells, "MOST", len(parted))
    cells, told = read_cells(store)
    assert {(one.persona, one.case) for one in cells} == parted
    assert f"{len(parted)} of {total} cells are shown" in told


def test_the_page_has_some_of_every_persona_and_those_that_disagree_first() -> None:
    cells = [cell(persona, i, "B" if i % 3 == 0 else "C") for persona in ("a", "b") for i in range(100)]
    some = chosen(cells, most=20)
    assert len(some) <= 20
    assert {one.persona for one in some} == {"a", "b"}
    assert sum(one.relation == "agree" for one in some) == 2  # one for each persona to compare with
    assert chosen(cells[:10], most=20) == cells[:10]


def test_the_whole_folder_is_the_same_on_a_second_run_and_pages_of_an_earlier_one_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "ON_THE_PAGE", 3)
    store = open_store(store_at(tmp_path / "store"))
    tables, shifts = behaviour_tables(store), shift_tables(store)
    stale = tmp_path / "again" / "cells" / "persona-9-9.html"
    stale.parent.mkdir(parents=True)
    stale.write_text("old", encoding="utf-8")
    for name in ("first", "again"):
        written = reporting.write_report(store, tables, shifts, tmp_path / name, title="t")
        assert all(path.exists() for path in written)
    first, again = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "first", tmp_path / "again")
    )
    assert first == again
    assert {"report.html", "cells/index.html", "cells/persona-1-1.html", "risk.pdf", "risk.numbers.csv"} <= set(first)
    assert "cells/index.html" in first["report.html"].decode()
