"""Results in other tools' logs: what a log says is what the store says, and the case stays the unit."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import probe
from probe.interop.inspect_logs import inspect_log
from probe.interop.lm_eval_results import INVALID, lm_eval_files
from probe.interop.results import Evaluation, Sample, clustered_error
from probe.stages.results import export_results, samples_of
from probe.store import Plan, StoreLock, open_store, open_writer
from probe.values import Condition, ProbeError
from tests.store import store_samples

OPTIONS = ("home", "clinic", "emergency")
OF = Evaluation(
    "odd study",
    "owner/model",
    OPTIONS,
    ("stay home", "see a clinic", "emergency"),
    "2026-11-20T22:55:00.123+00:00",
    "2026-11-20T23:01:00.000+00:00",
    "persona-probe 0.1.0",
)


def sample(case: str, stated: str | None, latent: str | None, *, condition: str = "system", **changed: Any) -> Sample:
    logp = None if latent is None else tuple(-0.1 if option == latent else -3.0 for option in OPTIONS)
    base = Sample(
        case=case,
        condition=condition,
        prompt=f"<s>{case} {condition}",
        letters=("A", "B", "C"),
        target="clinic",
        answer="B." if stated else "no idea",
        status="parsed" if stated else "unparsable",
        stated=stated,
        latent=latent,
        logp=logp,
        greedy=None if latent is None else tuple(option == latent for option in OPTIONS),
        stop="end",
        n_prompt=5,
        n_gen=2,
        told={"stratum": "primary"},
    )
    return replace(base, **changed)


ROWS = [
    sample("c1", "clinic", "clinic"),
    sample("c1", "home", "clinic", condition="system/rotation=1", letters=("B", "C", "A")),
    sample("c2", "clinic", "home"),
    sample("c2", "clinic", "clinic", condition="system/rotation=1", letters=("B", "C", "A")),
    sample("c3", None, None),
]


def test_an_inspect_log_averages_conditions_within_a_case_before_cases() -> None:
    log = inspect_log("nurse", ROWS, OF)
    assert log["version"] == 2
    assert log["eval"]["config"]["epochs"] == 2
    assert [(one["id"], one["epoch"]) for one in log["samples"]] == [
        ("c1", 1), ("c1", 2), ("c2", 1), ("c2", 2), ("c3", 1)
    ]  # fmt: skip
    scores = {one["name"]: one for one in log["results"]["scores"]}
    by_case = {"stated": [0.5, 1.0, 0.0], "latent": [1.0, 0.5], "agreement": [0.5, 0.5]}
    for name, expected in by_case.items():
        values = scores[name]["metrics"]
        assert values["accuracy"]["value"] == pytest.approx(np.mean(expected))
        assert values["stderr"]["value"] == pytest.approx(np.std(expected, ddof=1) / math.sqrt(len(expected)))
        assert (scores[name]["scored_samples"], scores[name]["unscored_samples"]) == (len(expected), 3 - len(expected))
    letters = [{name: score["value"] for name, score in one["scores"].items()} for one in log["samples"]]
    assert letters[1] == {"stated": "I", "latent": "C", "agreement": "I"}
    assert letters[4] == {"stated": "N"}  # no answer, and no read to compare it with


def test_a_row_without_a_target_is_logged_and_scored_for_agreement_alone() -> None:
    log = inspect_log("nurse", [sample("c1", "clinic", "clinic", target=None)], OF)
    assert set(log["samples"][0]["scores"]) == {"agreement"}
    [score] = log["results"]["scores"]
    assert (score["name"], score["metrics"]["accuracy"]["value"]) == ("agreement", 1.0)
    files = lm_eval_files({"nurse": [sample("c1", "clinic", "clinic", target=None)]}, OF)
    assert json.loads(next(iter(files.values())))["results"] == {}


def lm_eval_of(rows: list[Sample]) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    files = {path.name: content for path, content in lm_eval_files({"nurse": rows}, OF).items()}
    [results] = [json.loads(content) for name, content in files.items() if name.startswith("results_")]
    logged = {
        name.removeprefix("samples_").rpartition("_")[0]: [json.loads(line) for line in content.splitlines()]
        for name, content in files.items()
        if name.startswith("samples_")
    }
    return results, logged


def test_lm_eval_samples_hold_the_latent_read_as_a_choice_and_the_answer_as_it_was_parsed() -> None:
    results, logged = lm_eval_of(ROWS)
    assert set(logged) == {"odd_study_nurse_latent", "odd_study_nurse_stated"} == set(results["results"])
    latent, stated = logged["odd_study_nurse_latent"], logged["odd_study_nurse_stated"]
    assert len(latent) == 4
    assert [row["acc"] for row in latent] == [1.0, 1.0, 0.0, 1.0]
    turned = latent[1]
    assert [turned["arguments"][f"gen_args_{k}"]["arg_1"] for k in range(3)] == ["B", "C", "A"]
    assert turned["target"] == "1"
    assert turned["filtered_resps"] == [["-3.0", "False"], ["-0.1", "True"], ["-3.0", "False"]]
    assert turned["resps"] == [[read] for read in turned["filtered_resps"]]
    assert [row["filtered_resps"] for row in stated] == [["clinic"], ["home"], ["clinic"], ["clinic"], [INVALID]]
    assert results["results"]["odd_study_nurse_stated"]["exact_match,parser"] == pytest.approx(3 / 5)
    assert results["results"]["odd_study_nurse_latent"]["acc,none"] == pytest.approx(3 / 4)
    assert results["n-samples"]["odd_study_nurse_stated"] == {"original": 5, "effective": 5}
    assert len({row["doc_hash"] for row in stated}) == 5


def test_two_arms_whose_names_only_differ_in_signs_are_two_tasks() -> None:
    files = lm_eval_files({"a b": ROWS, "a-b": ROWS}, OF)
    assert sum("_latent" in path.name for path in files) == 2


def test_the_error_of_a_mean_counts_cases_and_is_the_ordinary_one_where_each_has_one_row() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, 40).astype(float).tolist()
    cases = [f"c{k}" for k in range(40)]
    plain = np.std(values, ddof=1) / math.sqrt(40)
    assert clustered_error(values, cases) == pytest.approx(plain)
    assert clustered_error(values * 3, cases * 3) == pytest.approx(plain)  # copies of a case add nothing
    assert clustered_error(values * 3, [f"{k}" for k in range(120)]) < 0.7 * plain  # the control
    assert clustered_error([1.0, 0.0], ["c", "c"]) is None


def store_at(path: Path) -> Path:
    """Two personas on six cases, the first saying nothing; one persona under two rotations and on given texts."""
    manifest = {**store_samples.manifest(), "study": {"name": "odd"}}
    plan = store_samples.plan()
    texts = ("N/A", *(f"a man with pain {k}" for k in range(1, 6)))
    cases = tuple({**case, "text": text} for case, text in zip(plan.cases, texts, strict=True))
    more = [
        replace(row, cell=replace(row.cell, condition=changed), prompt_sha=row.prompt_sha[::-1])
        for row in plan.rows
        if row.cell.persona == "nurse"
        for changed in (Condition(rotation=1), Condition(given="me"))
    ]
    plan = Plan((*plan.rows, *more), plan.personas, cases, 0, 4)
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, manifest, lock=lock)
        writer.add_plan(plan)
        for shard in sorted({row.shard for row in plan.rows}):
            writer.commit([_recorded(row) for row in plan.rows if row.shard == shard])
    return path


def _recorded(row: Any) -> Any:
    record = store_samples.record(row)
    if not row.cell.condition.given:
        return record
    return replace(record, given_logp=(-1.0,) * len(record.gen_tokens))


def test_logs_of_a_store_say_what_its_metrics_say_and_leave_given_texts_out(tmp_path: Path) -> None:
    store = open_store(store_at(tmp_path / "store"))
    written = export_results(tmp_path / "store", "inspect", tmp_path / "logs")
    logs = [json.loads(path.read_text("utf-8")) for path in written]
    assert {log["eval"]["task"] for log in logs} == {"odd/nurse", "odd/none"}
    found = probe.metrics(store)
    for log in logs:
        persona = log["eval"]["task_args"]["persona"]
        assert len(log["samples"]) == {"nurse": 10, "none": 5}[persona]
        assert log["eval"]["metadata"]["store_identity_sha256"] == store.layout.identity
        for name, metric in {"stated": "accuracy", "latent": "accuracy_latent"}.items():
            [score] = [one for one in log["results"]["scores"] if one["name"] == name]
            row = found[(found["metric"] == metric) & (found["persona"] == persona) & (found["stratum"] == "all")]
            assert score["metrics"]["accuracy"]["value"] == pytest.approx(row["value"].item())
    with pytest.raises(ProbeError, match="never writes over"):
        export_results(tmp_path / "store", "inspect", tmp_path / "logs")


def test_samples_of_a_store_hold_its_prompts_answers_letters_and_reads(tmp_path: Path) -> None:
    store = open_store(store_at(tmp_path / "store"))
    arms = samples_of(store.select(), store)
    table, texts = store.table(), store.select().texts()
    for arm, rows in arms.items():
        for row in rows:
            [at] = table.index[table["row_id"] == row.told["row_id"]]
            assert (arm, row.case, row.prompt, row.answer) == (
                table["persona"][at], table["case"][at], texts["prompt"][at], texts["gen_text"][at]
            )  # fmt: skip
            assert row.logp is not None
            assert OPTIONS[int(np.argmax(row.logp))] == row.latent == table["y_latent"][at]
            assert row.letters == (("B", "C", "A") if row.told["rotation"] else ("A", "B", "C"))
    json.dumps({arm: [dict(row.told) for row in rows] for arm, rows in arms.items()}, allow_nan=False)


def test_a_steered_run_is_an_arm_of_its_own(tmp_path: Path) -> None:
    plan = store_samples.plan(("none",))
    more = [
        replace(row, cell=replace(row.cell, condition=Condition(intervention="ab" * 32)), prompt_sha=row.prompt_sha)
        for row in plan.rows
    ]
    store_samples.write_store(tmp_path / "store", plan_=Plan((*plan.rows, *more), plan.personas, plan.cases, 0, 4))
    store = open_store(tmp_path / "store")
    arms = samples_of(store.select(), store)
    assert {arm: len(rows) for arm, rows in arms.items()} == {"none": 6, f"none + {'ab' * 32}": 6}


def test_lm_eval_files_of_a_store_lie_in_a_folder_named_by_the_model(tmp_path: Path) -> None:
    store_at(tmp_path / "store")
    written = export_results(tmp_path / "store", "lm-eval", tmp_path / "out", personas=["nurse"])
    assert {path.parent.name for path in written} == {"tiny"}
    assert sorted(path.name.split("_2")[0] for path in written) == [
        "results", "samples_odd_nurse_latent", "samples_odd_nurse_stated"
    ]  # fmt: skip
    for wrong, match in (("inpsect", r"no format 'inpsect'.*inspect"), ("inspect", "never writes over")):
        with pytest.raises(ProbeError, match=match):
            export_results(tmp_path / "store", wrong, tmp_path / "out")
