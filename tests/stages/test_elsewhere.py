"""A study on workers leaves the store that one process leaves; what workers refuse, lose or do twice changes no row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import probe
from probe.engines import Engine, RunRefused, Ticket
from probe.engines.work import Crash, End, Receipt
from probe.stages import workers
from probe.stages.capture import capture
from probe.stages.elsewhere import device_of
from probe.stages.policy import CapturePolicy
from probe.stages.workers import read_row
from probe.store import Share, Store
from probe.study import Study
from probe.values import ProbeError
from tests.stages.worker_pools import TWO, content, work_here


def study(**settings: Any) -> Study:
    return Study.from_mapping(
        {
            "name": "elsewhere",
            "model": {"id": "organism"},
            "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": "You are a nurse."}],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "limit": 8,
            "capture": {"batch_size": 4},
            "generation": {"max_new_tokens": 3},
            **settings,
        }
    )


def run(store: Path | str, engine: Engine = TWO, **settings: Any) -> Any:
    return capture(study(**settings), store=store, policy=CapturePolicy(engine=engine))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("probe.stages.preparation.SHARD_ROWS", 4)
    workers._worker.cache_clear()
    yield
    workers._worker.cache_clear()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probe.stages.preparation.SHARD_ROWS", 4)
        store = tmp_path_factory.mktemp("alone") / "store"
        assert capture(study(), store=store).exit_status == 0
    return store


def test_workers_leave_the_bytes_of_a_lone_process_even_where_every_shard_runs_twice(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(ticket: Ticket, attempt: Callable[[Ticket], End]) -> End:
        first = attempt(ticket)
        workers._worker.cache_clear()  # in another process
        assert attempt(ticket) == Receipt({})  # it finds everything done
        return first

    pools = work_here(monkeypatch, twice)
    assert run(tmp_path / "s").exit_status == 0
    assert [pool.closed for pool in pools] == [True]
    assert content(tmp_path / "s") == content(alone)
    assert not list((tmp_path / "s" / "tmp").iterdir())
    again = run(tmp_path / "s")
    assert (again.resumed, again.committed, again.exit_status) == (16, 16, 0)
    assert content(tmp_path / "s") == content(alone)


def test_interventions_and_given_texts_reach_workers_as_the_run_read_them(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(alone, tmp_path / "donor")
    donor = str(tmp_path / "donor")
    arms = [
        {"name": "decoy", "layers": "all", "add": "organism:direct", "direction": "decoy", "positions": "all"},
        {"name": "as none", "layers": [3], "patch": donor, "donor": "none", "personas": ["nurse"]},
    ]
    settings: dict[str, Any] = {"limit": 2, "interventions": arms, "given": {"store": donor, "personas": ["nurse"]}}
    assert run(tmp_path / "here", Engine(), **settings).exit_status == 0

    def without_the_sources(ticket: Ticket, attempt: Callable[[Ticket], End]) -> End:
        shutil.rmtree(donor, ignore_errors=True)
        return attempt(ticket)

    work_here(monkeypatch, without_the_sources)
    outcome = run(tmp_path / "s", **settings)
    assert (outcome.committed, outcome.exit_status) == (20, 0)
    assert content(tmp_path / "s") == content(tmp_path / "here")
    conditions = [row.cell.condition for row in probe.open_store(tmp_path / "s").plan.rows]
    assert len({condition.intervention for condition in conditions}) == 3
    assert {condition.given for condition in conditions} == {"", "nurse"}


def test_sums_that_workers_make_are_those_of_a_lone_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"capture": {"batch_size": 4, "keep": "moments"}}
    assert run(tmp_path / "here", Engine(), **settings).exit_status == 0
    work_here(monkeypatch)
    assert run(tmp_path / "s", **settings).exit_status == 0
    assert content(tmp_path / "s") == content(tmp_path / "here")


def test_the_records_of_workers_say_what_computed_each_row_and_name_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_here(monkeypatch)
    outcome = run(tmp_path / "s", labels={"sites": ["prompt_end", "answer"]})
    store = probe.open_store(tmp_path / "s")
    driver, worker = store.runs()
    assert (driver["engine"], driver["workers"], driver["shards"]) == ("local", 2, [])
    assert worker["part_of"] == driver["id"]
    assert worker["plan"] == driver["plan"] == store.plan.hash
    assert worker["study"] == driver["study"]
    assert sorted(shard["shard"] for shard in worker["shards"]) == [0, 1, 2, 3]
    assert all(run["exit_status"] == 0 and run["ended"] for run in (driver, worker))
    rows = store.provenance()
    assert set(rows["device"]) == {"cpu"}
    assert set(rows["runs"]) == {(worker["id"],)}
    absent = sum(sum(reasons.values()) for reasons in outcome.absent.values())
    assert absent == sum(len(row.get("absent_sites", {})) for row in extras(store))


def extras(store: Store) -> list[Mapping[str, Any]]:
    return [row.located.entry.get("extra") or {} for row in store.select().rows]


def test_a_row_that_ends_every_process_is_on_record_and_the_rest_is_captured_with_status_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = ("nurse", sorted(case.id for case in study().cases)[0])

    def dies(ticket: Ticket, attempt: Callable[[Ticket], End]) -> End:
        cells = [read_row(row)[0] for row in ticket.rows]
        return Crash("signal 9") if poison in [(cell.persona, cell.case) for cell in cells] else attempt(ticket)

    work_here(monkeypatch, dies)
    outcome = run(tmp_path / "s")
    assert (outcome.committed, outcome.failed, outcome.exit_status) == (15, 1, 3)
    store = probe.open_store(tmp_path / "s", warn=False)
    (failure,) = store.failures().to_dict("records")
    assert (failure["persona"], failure["case"], failure["kind"]) == (*poison, "WorkerDied")
    assert "signal 9" in failure["reason"]
    assert store.verify() == []
    monkeypatch.undo()
    monkeypatch.setattr("probe.stages.preparation.SHARD_ROWS", 4)
    assert run(tmp_path / "s", Engine()).failed == 1  # it failed for good ...
    policy = CapturePolicy(retry_failed=True)
    assert capture(study(), store=tmp_path / "s", policy=policy).exit_status == 0  # ... unless it is asked for


def test_a_run_that_stops_half_way_goes_on_from_what_workers_have_committed(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def two_then_stop(ticket: Ticket, attempt: Callable[[Ticket], End]) -> End:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(ticket.shard)
        return attempt(ticket)

    pools = work_here(monkeypatch, two_then_stop)
    with pytest.raises(ProbeError, match="interrupted: 8 of 16 rows are saved") as stopped:
        run(tmp_path / "s")
    assert stopped.value.exit_status == 130
    assert pools[0].closed
    work_here(monkeypatch)
    outcome = run(tmp_path / "s")
    assert (outcome.resumed, outcome.committed) == (8, 16)
    assert content(tmp_path / "s") == content(alone)


def test_what_a_worker_refuses_ends_the_run_before_anything_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(ticket: Ticket, attempt: Callable[[Ticket], End]) -> End:
        for file in (tmp_path / "s" / "tmp").glob("work-*"):
            file.write_bytes(file.read_bytes()[:-1])
        return attempt(ticket)

    work_here(monkeypatch, elsewhere)
    with pytest.raises(RunRefused, match=r"does not see the store at .*/s, or not the one of this run; --store must"):
        run(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_worker_with_other_files_of_the_model_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from probe.organism import CHECKPOINT

    shutil.copytree(CHECKPOINT, tmp_path / "model")

    def changed(ticket: Ticket, attempt: Callable[[Ticket], End]) -> End:
        weights = tmp_path / "model" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
        return attempt(ticket)

    work_here(monkeypatch, changed)
    with pytest.raises(RunRefused, match=r"captured with model.weights_sha256"):
        run(tmp_path / "s", model={"id": str(tmp_path / "model")})


def test_a_worker_whose_prompts_differ_from_the_plan_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_text(ticket: Ticket, attempt: Callable[[Ticket], End]) -> End:
        row = json.loads(ticket.rows[0])
        return attempt(replace(ticket, rows=(json.dumps([*row[:3], "0" * 64]), *ticket.rows[1:])))

    work_here(monkeypatch, other_text)
    with pytest.raises(RunRefused, match=r"renders another prompt for none/.* than the plan has"):
        run(tmp_path / "s")


def test_a_store_that_is_begun_anew_takes_nothing_from_workers_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[End | None] = []

    def late(ticket: Ticket, attempt: Callable[[Ticket], End]) -> End:
        if ticket.shard == 1:
            (tmp_path / "s" / "manifest.json").write_text("{}")
            ends.append(attempt(ticket))
            raise KeyboardInterrupt
        return attempt(ticket)

    work_here(monkeypatch, late)
    with pytest.raises(ProbeError):
        run(tmp_path / "s")
    assert isinstance(ends[0], Crash)
    assert "which was released, or taken over" in ends[0].reason
    assert len(list((tmp_path / "s" / "shards").glob("*.safetensors"))) == 1


def test_strict_numerics_hold_for_every_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_here(monkeypatch)
    run(tmp_path / "s", limit=2)
    for file in (tmp_path / "s" / "runs").glob("*.json"):
        record = json.loads(file.read_text("utf-8"))
        file.write_text(json.dumps({**record, "device_name": "another machine"}))
    policy = CapturePolicy(engine=TWO, strict_numerics=True)
    with pytest.raises(RunRefused, match=r"--strict-numerics: .*device_name was another machine"):
        capture(study(), store=tmp_path / "s", policy=policy)
    assert run(tmp_path / "s").exit_status == 0  # the control


def test_an_engine_is_refused_where_it_makes_no_sense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProbeError, match="nearest known engine is 'slurm'"):
        Engine("slurn")
    with pytest.raises(ProbeError, match="--address is of --engine ray, and the engine is local"):
        Engine("local", address="auto")
    with pytest.raises(ProbeError, match="--gpus-per-worker is 0, a part of one device or a whole number"):
        Engine("ray", gpus_per_worker=1.5)
    with pytest.raises(ProbeError, match="an engine divides it itself"):
        capture(study(), store=tmp_path / "s", policy=CapturePolicy(share=Share(0, 2), engine=TWO))
    on_cuda = replace(study(), model=replace(study().model, device="cuda"))
    with pytest.raises(ProbeError, match="workers get no device; use --gpus-per-worker 1"):
        device_of(Engine("ray", gpus_per_worker=0), on_cuda)
    assert device_of(Engine("ray", gpus_per_worker=1), study()) == "cuda"
    assert device_of(Engine("ray", gpus_per_worker=0), study()) == "cpu"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ProbeError, match="2 workers with 1 GPUs each need 2, and this machine has 1"):
        capture(study(), store=tmp_path / "s", policy=CapturePolicy(engine=Engine(workers=2, gpus_per_worker=1)))


@pytest.mark.parametrize(("name", "library"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_library_is_one_line_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ProbeError, match=rf'is not installed; run: pip install "persona-probe\[{name}\]"$'):
        run(tmp_path / "s", Engine(name))
    assert not (tmp_path / "s").exists()
