"""What the commands make of a small store with odd names, without a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from probe.stages.analysis import Question, main_shifts, shift_tables
from probe.stages.commands import run_directions, run_metrics, run_report
from probe.stages.inspection import describe_store
from probe.stages.places import figures_path
from probe.stages.reporting import write_report
from probe.stages.run import run_study
from probe.store import StoreLock, open_store, open_writer
from probe.study import Study
from probe.values import ProbeError
from tests.store import store_samples as samples

NURSE = "[/nurse]"


def store_at(path: Path, *, organism: bool = False, only: str = "") -> Path:
    """Two personas on six cases; ``only`` keeps a single position."""
    manifest: dict[str, Any] = {**samples.manifest(), "study": {"name": "odd", "base": "none"}}
    if organism:
        manifest["model"] = {**manifest["model"], "id": "organism"}
    if only:
        manifest["capture"] = {**manifest["capture"], "positions": [only]}
    plan = samples.plan((NURSE, "none"))
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, manifest, lock=lock)
        writer.add_plan(plan)
        for shard in sorted({row.shard for row in plan.rows}):
            records = [samples.record(row) for row in plan.rows if row.shard == shard]
            writer.commit([_only(record, only) if only else record for record in records])
    return path


def _only(record: Any, position: str) -> Any:
    from dataclasses import replace

    return replace(
        record,
        positions={position: record.positions[position]},
        resid={position: record.resid[position]},
    )


def test_names_in_square_brackets_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = store_at(tmp_path / "[b]store")
    describe_store(path)
    shown = capsys.readouterr().out
    assert NURSE in shown
    assert "[b]store" in shown
    run_directions(path, store=None, base=None, out=None)
    run_metrics(path, Question())
    assert capsys.readouterr().out.count(NURSE) >= 2


def test_directions_show_the_first_captured_position_where_prompt_end_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = store_at(tmp_path / "store", only="answer")
    assert set(main_shifts(shift_tables(open_store(path)))["position"]) == {"answer"}
    run_directions(path, store=None, base=None, out=None)
    assert "at answer" in capsys.readouterr().out
    whole = main_shifts(shift_tables(open_store(store_at(tmp_path / "whole"))))
    assert set(whole["position"]) == {"prompt_end"}


def test_a_base_that_was_not_captured_is_refused_by_every_command(tmp_path: Path) -> None:
    path = store_at(tmp_path / "store")
    asked = partial(run_metrics, question=Question(base="nurse"))
    for command in (asked, partial(run_directions, base="nurse"), partial(run_report, base="nurse")):
        with pytest.raises(
            ProbeError, match=r"base persona 'nurse' is not in the table\. The nearest known persona is"
        ):
            command(path, store=None, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_where_results_should_go_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("x")
    study = {"name": "s", "model": {"id": "organism"}, "personas": "builtin:persona-paradox", "task": "builtin:triage"}
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(ProbeError, match="taken is a file"):
            run_study(Study.from_mapping({**study, "cases": "builtin:triage"}), out=out)
        with pytest.raises(ProbeError, match="taken is a file"):
            run_metrics(store_at(tmp_path / f"store-{out.name}"), Question(), out=out)
    assert not (tmp_path / "cache").exists()
    assert figures_path("s", None) == Path("figures/s")


def test_the_page_of_the_organism_tells_the_label_mass_that_was_measured(tmp_path: Path) -> None:
    from probe.stages.analysis import behaviour_tables

    store = open_store(store_at(tmp_path / "store", organism=True))
    write_report(store, behaviour_tables(store), shift_tables(store), tmp_path / "out", title="odd")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    measured = f"{store.table()['label_mass'].mean():.2f}".removeprefix("0")
    assert f"({measured} on average here)" in page
    assert measured != ".30"


def test_a_store_whose_study_is_only_a_name_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    golden = Path(__file__).parents[1] / "store" / "golden" / "v1"
    assert describe_store(golden) == 3
    shown = capsys.readouterr().out
    assert "sample" in shown
    assert "4 of earlier texts kept" in shown
