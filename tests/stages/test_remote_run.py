"""A study run into an object store ends with the bytes of the same study run into a folder."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

import probe
from probe.stages.analysis import Question
from probe.stages.commands import run_directions, run_metrics, run_report
from probe.stages.inspection import describe_store
from probe.store import StoreLock, open_writer
from probe.store.places import LocalPlace, Place, open_place
from probe.study import Study
from tests.store import store_samples as samples
from tests.store.object_store import served

pytest.importorskip("fsspec")


def study() -> Study:
    return Study.from_mapping(
        {
            "name": "organism",
            "model": {"id": "organism"},
            "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": "You are a nurse."}],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "capture": {"layers": [0, 2], "positions": ["prompt_end"]},
            "generation": {"max_new_tokens": 4},
            "limit": 2,
        }
    )


def content(place: Place) -> dict[str, bytes]:
    """Everything that a run leaves but the records of the invocations."""
    names = [
        f"{folder}/{name}".lstrip("/") for folder in ("", "plan", "shards", "failures") for name in place.list(folder)
    ]
    return {name: place.read(name) for name in names if not name.startswith(".lock")}


def test_a_study_run_into_an_object_store_ends_with_the_shards_of_a_local_run_and_continues(tmp_path: Path) -> None:
    local = probe.run(study(), store=tmp_path / "store")
    with served() as bucket:
        url = f"{bucket}/{secrets.token_hex(4)}"
        remote = probe.run(study(), store=url)
        ours, theirs = content(open_place(url)), content(LocalPlace(tmp_path / "store"))
        assert any(name.startswith("shards/") for name in ours)
        assert ours == theirs
        assert remote.table().equals(local.table())
        again = probe.run(study(), store=url)
        assert content(open_place(url)) == ours
        assert again.coverage().committed == again.coverage().planned


@pytest.mark.slow
def test_two_worker_processes_fill_an_object_store_with_the_shards_of_a_local_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("SHARD_ROWS", "SMALLEST_SHARD"):
        monkeypatch.setattr(f"probe.stages.preparation.{limit}", 2)
    probe.run(study(), store=tmp_path / "store")
    with served() as bucket:
        url = f"{bucket}/{secrets.token_hex(4)}"
        probe.run(study(), store=url, policy=probe.CapturePolicy(engine=probe.Engine(workers=2)))
        assert content(open_place(url)) == content(LocalPlace(tmp_path / "store"))
        assert not open_place(url).list("tmp")
        hosts = [run for run in probe.open_store(url).runs() if run["shards"]]
    assert sum(len(run["shards"]) for run in hosts) == 2


@pytest.fixture
def url() -> str:
    """Twelve rows in memory."""
    url = f"memory://analyses/{secrets.token_hex(4)}"
    plan = samples.plan()
    with StoreLock.acquire(url) as lock:
        writer = open_writer(url, samples.manifest() | {"study": {"name": "odd", "base": "none"}}, lock=lock)
        writer.add_plan(plan)
        for shard in sorted({row.shard for row in plan.rows}):
            writer.commit([samples.record(row) for row in plan.rows if row.shard == shard])
    return url


def test_metrics_directions_and_a_look_work_on_a_url(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_metrics(url, Question(base="none"), out=tmp_path / "out")
    run_directions(url, store=None, base="none", out=tmp_path / "out")
    assert describe_store(url) == 0
    assert url in capsys.readouterr().out


@pytest.mark.slow
def test_a_report_works_on_a_url_and_names_it(url: str, tmp_path: Path) -> None:
    run_report(url, store=None, base="none", out=tmp_path / "report")
    assert url in (tmp_path / "report" / "report.html").read_text("utf-8")
