"""The command line refuses bad input in one sentence, leaves nothing behind, and says how it ended."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from probe.store import StoreLock
from tests.tiny_models import save_tiny_model

STUDY = """\
name: small
model: {id: organism}
personas: builtin:persona-paradox
task: builtin:triage
cases: cases.jsonl
generation: {max_new_tokens: 64}
"""
CASES = (
    '{"id": "v1", "input": "A man with chest pain.", "target": "C", "metadata": {"stratum": "emergency"}}\n'
    '{"id": "v2", "input": "A woman with a cold.", "target": "A", "metadata": {"stratum": "primary_care"}}\n'
)


def probe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / ".hf"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "probe.cli", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "cases.jsonl").write_text(CASES)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if ".hf" not in path.parts}


BAD_FILES = [
    ("study.yaml", STUDY + "personas: [\n", r"study\.yaml:\d+:\d+: "),
    ("study.yaml", STUDY.replace("generation:", "generatoin:"), r"study\.yaml:6:1: .*generatoin.*generation"),
    ("study.yaml", STUDY.replace("organism", "organizm/x/y"), r"model\.id must be 'organism', an existing folder"),
    ("study.yaml", STUDY.replace("organism", "someone/some-model"), r"nor in the hub cache.*give model\.id a local"),
    ("cases.jsonl", CASES + '{"id": "v3"\n', r"cases\.jsonl:3:\d+: "),
    ("cases.jsonl", CASES.replace('"v2"', '"v1"'), r"cases\.jsonl:2:\d+: .*v1"),
    ("cases.jsonl", CASES.replace('"target": "A"', '"target": "Z"'), r"cases\.jsonl:2:\d+: .*Z.*A"),
    ("cases.jsonl", CASES.replace('"input"', '"inptu"', 1), r"cases\.jsonl:1:\d+: .*inptu.*input"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_a_bad_file_is_refused_in_one_sentence_and_nothing_is_written(
    folder: Path, name: str, content: str, message: str
) -> None:
    (folder / name).write_text(content)
    before = files(folder)
    ended = probe(folder, "run", "study.yaml")
    assert ended.returncode == 1
    assert re.search(message, ended.stderr), ended.stderr
    assert ended.stderr.startswith("probe: ")
    assert ended.stderr.count("\n") == 1
    assert "Traceback" not in ended.stderr
    assert files(folder) == before


def test_a_model_folder_without_weights_and_a_label_of_two_tokens_are_refused(folder: Path) -> None:
    save_tiny_model(folder / "model", "llama")
    study = folder / "study.yaml"
    task = '{id: q, instruction: "{case} {options}", options: {yes: go, no: stay}, letters: [QXZ, JKV]}'
    cases = CASES.replace('"C"', '"yes"').replace('"A"', '"no"')
    (folder / "cases.jsonl").write_text(cases)
    study.write_text(STUDY.replace("{id: organism}", "{id: model}").replace("builtin:triage", task))
    before = files(folder)
    ended = probe(folder, "run", "study.yaml")
    assert ended.returncode == 1
    assert re.search(r"label 'QXZ' is not one token after this prompt: .* makes \[", ended.stderr), ended.stderr
    (folder / "model" / "model.safetensors").unlink()
    ended = probe(folder, "run", "study.yaml")
    assert ended.returncode == 1
    assert "has no safetensors weights" in ended.stderr
    assert files(folder) == before - {"model/model.safetensors"}


def test_a_new_study_runs_as_it_is_and_options_change_it(folder: Path) -> None:
    assert probe(folder, "new", "fresh").returncode == 0
    assert probe(folder, "new", "fresh").returncode == 1
    shown = probe(folder, "run", "fresh/study.yaml", "--dry-run", "--limit", "4")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("tokens that are read") == 2  # the first prompt, and the first with a persona
    first = json.loads((folder / "fresh" / "cases.jsonl").read_text().splitlines()[0])
    assert f"\n{first['input']}\n" in shown.stdout  # no line break that the model would not read
    assert "<|im_start|>system\nYou are" in shown.stdout
    assert not (folder / "cache").exists()
    ended = probe(folder, "run", "fresh/study.yaml", "--limit", "4", "--set", "capture.layers=[0, 6]")
    assert ended.returncode == 0, ended.stderr
    manifest = json.loads(next((folder / "cache").glob("*/manifest.json")).read_text())
    assert manifest["capture"]["layers"] == [0, 6]
    again = probe(folder, "run", "fresh/study.yaml", "--limit", "4", "--set", "capture.layers=[0, 6]")
    assert "nothing to compute" in again.stdout
    other = probe(folder, "run", "fresh/study.yaml", "--limit", "4")
    assert other.returncode == 1
    assert "capture.layers" in other.stderr
    assert "planned:" not in ended.stdout
    planned = "confirm=[{persona: ed_nurse, metric: accuracy}]"
    fresh = probe(folder, "run", "fresh/study.yaml", "--limit", "4", "--fresh", "--set", planned)
    assert fresh.returncode == 0, fresh.stderr
    assert "planned: accuracy of ED nurse against no persona, all cases: " in fresh.stdout


def test_metrics_of_a_table_of_predictions(folder: Path) -> None:
    rows = ["case,persona,stratum,target,y_gen,y_latent"]
    rows += [f"c{i},{persona},s,{'xyz'[i % 3]},x,y" for i in range(9) for persona in ("none", "nurse")]
    (folder / "mine.csv").write_text("\n".join(rows) + "\n")
    ended = probe(folder, "metrics", "mine.csv")
    assert ended.returncode == 0, ended.stderr
    assert (folder / "figures" / "mine" / "comparisons.csv").exists()
    assert "nurse" in ended.stdout
    assert "--high-risk emergency" in ended.stdout
    options = ("--options", "x, y,z", "--high-risk", "z", "--bins", "5", "--cut", "ordinal")
    ordered = probe(folder, "metrics", "mine.csv", *options, "--out", "ordered")
    assert (ordered.returncode, ordered.stderr) == (0, "")
    assert "undefined" not in (folder / "ordered" / "metrics.csv").read_text().split("risk_log_ratio")[1].split("\n")[0]
    assert "--high-risk" not in ordered.stdout
    (folder / "theirs.csv").write_text((folder / "mine.csv").read_text().replace("case,persona", "item,arm", 1))
    named = ("--columns", "case=item", "--columns", "persona=arm", "--control", "nurse")
    theirs = probe(folder, "metrics", "theirs.csv", *named, "--ece", "equal-mass")
    assert (theirs.returncode, theirs.stderr) == (0, "")
    assert "nurse" in theirs.stdout
    for wrong, said in ((("--cut", "sharp"), "one of high-vs-rest"), (("--out", "mine.csv"), "mine.csv is a file")):
        refused = probe(folder, "metrics", "mine.csv", *wrong)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert said in refused.stderr
    (folder / "bad.csv").write_text("case,who\n1,2\n")
    refused = probe(folder, "metrics", "bad.csv")
    assert refused.returncode == 1
    assert "persona" in refused.stderr


def test_rankings_are_read_by_a_command_of_their_own(folder: Path) -> None:
    rows = [f"{i},{p},{1 + (k + (i > 2)) % 2}" for i in range(6) for k, p in enumerate(("none", "nurse"))]
    (folder / "judged.csv").write_text("\n".join(["case,persona,rank", *rows]) + "\n")
    ended = probe(folder, "rankings", "judged.csv", "--base", "none")
    assert ended.returncode == 0, ended.stderr
    assert "mean reciprocal rank" in ended.stdout
    assert (folder / "figures" / "judged" / "rankings.csv").exists()
    refused = probe(folder, "metrics", "judged.csv")
    assert (refused.returncode, "probe rankings" in refused.stderr) == (1, True)


def test_a_second_writer_is_refused_before_torch_is_imported(folder: Path) -> None:
    with StoreLock.acquire(folder / "cache" / "small"):
        started = time.perf_counter()
        ended = probe(folder, "run", "study.yaml")
        seconds = time.perf_counter() - started
    assert ended.returncode == 5
    assert f"pid {os.getpid()}" in ended.stderr
    assert seconds < 2.0
    assert probe(folder, "run", "study.yaml").returncode == 0


def test_wrong_usage_is_status_2(folder: Path) -> None:
    assert probe(folder, "run").returncode == 2
    assert probe(folder, "fly").returncode == 2
    assert probe(folder, "run", "study.yaml", "--engine", "moon").returncode == 1  # a refusal, not a wrong usage
    missing = probe(folder, "run", "nowhere.yaml")
    assert missing.returncode == 1
    assert "nowhere.yaml" in missing.stderr


def test_store_commands_tell_sound_from_damaged(folder: Path) -> None:
    assert probe(folder, "capture", "study.yaml").returncode == 0
    shown = probe(folder, "store", "ls", "cache/small")
    assert (shown.returncode, "12 of 12" in shown.stdout) == (0, True)
    assert probe(folder, "store", "verify", "cache/small").returncode == 0
    shard = next((folder / "cache" / "small" / "shards").iterdir())
    content = bytearray(shard.read_bytes())
    content[-10] ^= 4
    shard.write_bytes(content)
    damaged = probe(folder, "store", "verify", "cache/small")
    assert damaged.returncode == 1
    assert shard.name in damaged.stdout
    assert probe(folder, "doctor").returncode == 0
