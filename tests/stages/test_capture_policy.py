"""How a capture treats what it finds: edited texts, other numerics, values that are not finite, several writers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import probe
from probe.capture import shards
from probe.cli import app
from probe.stages.capture import capture
from probe.stages.numerics import what_moved
from probe.stages.policy import CapturePolicy
from probe.store import Share, StoreLock, open_store
from probe.store.repair import repair
from probe.study import Study
from probe.values import ChangedPrompt, ProbeError, StoreError, StoreMismatch

FACTS = {
    "versions": {"torch": "2.9", "transformers": "5.23", "numpy": "2.3"},
    "backend": "hf",
    "device": "cpu",
    "device_name": "x86_64",
    "device_map": None,
    "dtype": "float32",
    "attention": "sdpa",
    "batch_size": 4,
    "threads": 1,
}


def study(**settings: object) -> Study:
    return Study.from_mapping(
        {
            "name": "policy",
            "model": {"id": "organism"},
            "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": "You are a nurse."}],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "limit": 4,
            "capture": {"batch_size": 4},
            "generation": {"max_new_tokens": 16},
            **settings,
        }
    )


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "store"
    assert capture(study(), store=path).committed == 8
    return path


@pytest.fixture
def store(captured: Path, tmp_path: Path) -> Path:
    shutil.copytree(captured, tmp_path / "store")
    return tmp_path / "store"


def content(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != ".lock"}


EDITED = [{"id": "none", "text": None}, {"id": "nurse", "text": "You are a very experienced nurse."}]


@pytest.mark.parametrize(("choice", "superseded"), [("recapture", 4), ("new-condition", 0)])
def test_an_edited_persona_is_refused_before_the_model_loads_and_captured_on_request(
    store: Path, choice: str, superseded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, before = study(personas=EDITED), content(store)
    with monkeypatch.context() as patch:
        patch.setattr("probe.models.loading.load_backend", None)
        with pytest.raises(ChangedPrompt, match=r"^4 rows changed since capture \(first: nurse/"):
            capture(changed, store=store)
    assert content(store) == before
    outcome = capture(changed, store=store, policy=CapturePolicy(on_changed=choice))
    assert (outcome.committed, outcome.resumed, outcome.exit_status) == (8, 4, 0)
    opened = open_store(store)
    assert opened.coverage().superseded == superseded
    assert opened.verify() == []
    editions = opened.table().set_index("persona")["condition"].str.contains("edition=")
    assert editions["nurse"].all() == (choice == "new-condition")
    assert not editions["none"].any()
    assert capture(changed, store=store, policy=CapturePolicy(on_changed=choice)).resumed == 8


def test_other_numerics_are_told_and_recorded_or_refused_on_request(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = study(limit=6, capture={"batch_size": 2})
    with pytest.raises(StoreMismatch, match=r"--strict-numerics: .*batch_size was 4, is 2"):
        capture(more, store=store, policy=CapturePolicy(strict_numerics=True))
    capsys.readouterr()
    assert capture(more, store=store).committed == 12
    assert capsys.readouterr().err.count("batch_size was 4, is 2") == 1
    first, last = open_store(store).runs()
    assert (first["numerics_moved"], last["numerics_moved"]) == ([], ["batch_size was 4, is 2"])
    assert last["shards"][0]["batches"] == [2]
    assert capture(study(limit=7, capture={"batch_size": 2}), store=store, policy=CapturePolicy(strict_numerics=True))


@pytest.mark.parametrize("name", sorted({*FACTS} - {"versions"}))
def test_each_thing_that_moves_low_bits_is_named(name: str) -> None:
    before = {**FACTS, "shards": [{"name": "x"}]}
    assert what_moved([before], FACTS) == []
    assert what_moved([before], {**FACTS, name: "other"}) == [f"{name} was {FACTS[name]}, is other"]
    assert what_moved([{**before, name: "other"}, before, {**before, name: "idle", "shards": []}], FACTS) == []


def test_versions_of_torch_and_transformers_count_and_numpy_does_not() -> None:
    before = {**FACTS, "shards": [{"name": "x"}]}
    for package, counts in (("torch", True), ("transformers", True), ("numpy", False)):
        now = {**FACTS, "versions": {**FACTS["versions"], package: "9"}}  # type: ignore[dict-item]
        assert bool(what_moved([before], now)) == counts


def test_a_row_that_is_not_finite_fails_the_run_goes_on_and_it_is_stored_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shards.stream_pass

    def stream_pass(backend, rows, settings, vocabulary, *, batch_size):  # type: ignore[no-untyped-def]
        for place, raw in run(backend, rows, settings, vocabulary, batch_size=batch_size):
            if place in (0, 5):
                raw.values["resid", "prompt_end"] = raw.values["resid", "prompt_end"] * torch.nan
            yield place, raw

    monkeypatch.setattr(shards, "stream_pass", stream_pass)
    outcome = capture(study(), store=tmp_path / "s")
    assert (outcome.committed, outcome.failed, outcome.exit_status) == (6, 2, 3)
    failures = open_store(tmp_path / "s", warn=False).failures()
    assert set(failures["kind"]) == {"NonFinite"}
    assert failures["reason"].str.contains("prompt_end is not finite at point 0, 1").all()
    assert capture(study(), store=tmp_path / "s").exit_status == 3  # it is not tried again
    assert capture(study(), store=tmp_path / "s", policy=CapturePolicy(retry_failed=True)).failed == 1  # of two
    outcome = capture(study(), store=tmp_path / "s", policy=CapturePolicy(allow_nonfinite=True))
    assert (outcome.committed, outcome.failed, outcome.exit_status) == (8, 0, 0)
    marked = [record.nonfinite > 0 for record in open_store(tmp_path / "s").select().records()]
    assert sum(marked) == 1
    assert open_store(tmp_path / "s").verify() == []


def test_writers_of_two_shares_fill_one_store_with_the_bytes_of_a_lone_one(captured: Path, tmp_path: Path) -> None:
    for index in range(2):
        outcome = capture(study(), store=tmp_path / "s", policy=CapturePolicy(share=Share(index, 2)))
        assert (outcome.left, outcome.exit_status) == (0, 0)
    assert {f.name for f in (tmp_path / "s" / "shards").iterdir()} == {f.name for f in (captured / "shards").iterdir()}
    with pytest.raises(ProbeError, match="--fresh"):
        capture(study(), store=tmp_path / "s", fresh=True, policy=CapturePolicy(share=Share(0, 2)))


def test_a_sealed_store_is_left_as_it_is_and_loads_no_model(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe.store.seal_store(store)
    before = content(store)
    monkeypatch.setattr("probe.models.loading.load_backend", None)
    assert capture(study(), store=store).committed == 8
    for changed in ({"study": study(limit=6)}, {"study": study(), "fresh": True}):
        with pytest.raises(StoreError, match="is sealed"):
            capture(changed.pop("study"), store=store, **changed)
    assert content(store) == before


def test_a_readout_that_repair_moved_away_is_written_again_by_a_run_with_nothing_else_to_do(store: Path) -> None:
    whole = (store / "readout.safetensors").read_bytes()
    (store / "readout.safetensors").write_bytes(whole[:-1])
    with StoreLock.acquire(store) as lock:
        assert repair(lock).moved == ("readout.safetensors",)
    assert capture(study(), store=store).committed == 8
    assert (store / "readout.safetensors").read_bytes() == whole


def test_too_little_space_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("probe.stages.capture.shutil.disk_usage", lambda path: usage._replace(free=1000))
    assert capture(study(), store=tmp_path / "s").committed == 8
    assert "the 8 rows still to capture need ~" in capsys.readouterr().err
    monkeypatch.undo()
    capture(study(), store=tmp_path / "t")
    assert "need ~" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "found"),
    [
        ("--writer", "2/2", "--writer is i/n with 0 <= i < n"),
        ("--on-changed", "overwrite", "--on-changed is one of error, recapture, new-condition; found 'overwrite'"),
    ],
)
def test_an_option_that_says_nothing_known_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str, found: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "name: s\nmodel: {id: organism}\npersonas: builtin:persona-paradox\n"
    (tmp_path / "study.yaml").write_text(text + "task: builtin:triage\ncases: builtin:triage\n")
    for command in ("run", "capture"):
        ended = CliRunner().invoke(app, [command, "study.yaml", option, value])
        assert found in str(ended.exception)
    assert [file.name for file in tmp_path.iterdir()] == ["study.yaml"]
