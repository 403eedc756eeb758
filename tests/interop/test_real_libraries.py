"""What we write is read back by the tools it is for, each in an environment of its own, and does there what we say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import probe
from probe.models import find_model
from probe.models.edits import Edit
from probe.models.hf import HFBackend
from probe.models.points import HookPoint, residual_points
from probe.models.protocol import Reads
from probe.stages.direction_files import save_directions
from probe.stages.results import export_results
from probe.stages.vectors import Chosen, ForModel, export_vector
from probe.store import open_store
from probe.values import Direction, Site
from tests.interop.other_venvs import run_in, venv_with
from tests.interop.test_results import store_at
from tests.tiny_models import save_tiny_model

pytestmark = pytest.mark.slow

IDS = [5, 6, 7, 8]
REPENG = """
import json, sys
import numpy, torch
numpy.float_ = numpy.float64  # an annotation of repeng's asks for the name that numpy 2 dropped
from repeng import ControlModel, ControlVector
from transformers import AutoModelForCausalLM
vector = ControlVector.import_gguf(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[2])
ids = torch.tensor([json.loads(sys.argv[3])])
found = {"hint": vector.model_type, "layers": sorted(vector.directions)}
with torch.no_grad():
    found["plain"] = model(input_ids=ids).logits[0, -1].tolist()
    controlled = ControlModel(model, sorted(vector.directions))
    controlled.set_control(vector, float(sys.argv[4]))
    found["steered"] = controlled(input_ids=ids).logits[0, -1].tolist()
print(json.dumps(found))
"""
LM_EVAL = """
import json, sys
import torch
from lm_eval.models.hf_steered import SteeredModel
lm = SteeredModel(pretrained=sys.argv[2], steer_path=sys.argv[1], device="cpu", dtype="float32")
logits = lm._model_call(torch.tensor([json.loads(sys.argv[3])]))[0, -1]
print(json.dumps({"hooks": sorted(lm.hook_to_steer), "steered": logits.tolist()}))
"""
LM_EVAL_RESULTS = """
import json, sys
from pathlib import Path
from datasets import load_dataset
from lm_eval.result_schema import SampleResult
from lm_eval.utils import get_file_task_name, get_results_filenames, get_sample_results_filenames, make_table
from lm_eval.api.metrics import mean_stderr
files = [str(path) for path in Path(sys.argv[1]).rglob("*") if path.is_file()]
[results] = [json.loads(Path(path).read_text()) for path in get_results_filenames(files)]
tasks, lacking, cache = {}, [], sys.argv[2]
for path in get_sample_results_filenames(files):
    rows = load_dataset("json", data_files=path, split="train", cache_dir=cache)
    lacking += [key for key in SampleResult.__annotations__ if key not in rows.column_names]
    metric = rows[0]["metrics"][0]
    values = [row[metric] for row in rows]
    tasks[get_file_task_name(Path(path).name)] = [metric, sum(values) / len(values), mean_stderr(values)]
print(json.dumps({"table": make_table(results), "tasks": tasks, "lacking": lacking}))
"""
INSPECT = """
import json, sys
from inspect_ai.log import list_eval_logs, read_eval_log
from inspect_ai.scorer import SampleScore, Score, accuracy, mean_score, stderr, value_to_float
found = []
for place in list_eval_logs(sys.argv[1]):
    header, log = read_eval_log(place, header_only=True), read_eval_log(place)
    again = {}
    for scorer in log.results.scores:
        cases = {}
        for sample in log.samples:
            if scorer.name in sample.scores:
                cases.setdefault(sample.id, []).append(sample.scores[scorer.name])
        reduced = [SampleScore(score=mean_score()(scores)) for scores in cases.values()]
        again[scorer.name] = [accuracy()(reduced), stderr()(reduced)]
    said = {one.name: [one.metrics["accuracy"].value, one.metrics["stderr"].value] for one in log.results.scores}
    first = log.samples[0]
    found.append({
        "task": header.eval.task, "model": log.eval.model, "status": log.status, "n": len(log.samples),
        "epochs": log.eval.config.epochs, "said": said, "again": again, "input": first.input,
        "completion": first.output.completion, "target": first.target, "case": first.id,
    })
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama", scale=3.0)


def directions() -> list[Direction]:
    rng = np.random.default_rng(5)
    told = {"model": "tiny", "n_layers": 3}
    return [
        Direction(Site(k, "prompt_end"), rng.normal(size=32).astype(np.float32), "nurse", "none", 9, provenance=told)
        for k in range(4)
    ]


def ours(folder: Path, points: tuple[int, ...], strength: float) -> torch.Tensor:
    """The logits with our own interventions at some points."""
    backend = HFBackend.load(find_model(str(folder)), dtype="auto", device="cpu", attention=None)
    ids = torch.tensor([IDS])
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    edits = tuple(
        Edit(HookPoint("resid", k), "add", everywhere, strength * torch.from_numpy(directions()[k].vector)[None])
        for k in points
    )
    reads = Reads(residual_points((3,)), torch.tensor([[len(IDS) - 1]]))
    return backend.forward(ids, torch.ones_like(ids), reads, edits=edits).logits[0, -1]


def test_repeng_reads_our_control_vector_and_steers_with_it_as_we_do(folder: Path, tmp_path: Path) -> None:
    python = venv_with("repeng", "gguf==0.19.0", without_dependencies=("repeng==0.4.0",), lend=True)
    source = save_directions(tmp_path / "ours.safetensors", directions())
    written = export_vector(source, "gguf", tmp_path / "nurse.gguf", Chosen(), ForModel(), model_hint="llama")
    found = run_in(python, REPENG, tmp_path / "nurse.gguf", folder, IDS, 1.5)
    assert (found["hint"], found["layers"]) == ("llama", [1, 2])
    steered = torch.tensor(found["steered"])
    torch.testing.assert_close(steered, ours(folder, tuple(written.vectors), 1.5), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(steered, torch.tensor(found["plain"]), atol=0.1)
    assert not torch.allclose(steered, ours(folder, (1, 2), 1.5), atol=0.1)  # the control: one point off


@pytest.mark.parametrize("points", [(2,), (1, 2, 3)])
def test_lm_eval_steers_with_our_file_as_we_do(folder: Path, tmp_path: Path, points: tuple[int, ...]) -> None:
    python = venv_with("lm-eval", "lm-eval[hf]==0.4.13", lend=True)
    source = save_directions(tmp_path / "ours.safetensors", directions())
    chosen, model = Chosen(points=points), ForModel(str(folder))
    export_vector(source, "lm-eval", tmp_path / "steer.pt", chosen, model, coefficient=1.5)
    found = run_in(python, LM_EVAL, tmp_path / "steer.pt", folder, IDS)
    assert found["hooks"] == [f"layers.{point - 1}" for point in points]
    steered = torch.tensor(found["steered"])
    torch.testing.assert_close(steered, ours(folder, points, 1.5), rtol=1e-4, atol=1e-4)
    off = tuple(point - 1 for point in points)
    assert not torch.allclose(steered, ours(folder, off, 1.5), atol=0.1)


def test_lm_eval_tables_our_results_and_its_reader_loads_our_samples(tmp_path: Path) -> None:
    python = venv_with("lm-eval", "lm-eval[hf]==0.4.13", lend=True)
    store_at(tmp_path / "store")
    export_results(tmp_path / "store", "lm-eval", tmp_path / "out")
    found = run_in(python, LM_EVAL_RESULTS, tmp_path / "out", tmp_path / "datasets")
    assert found["lacking"] == []
    metrics = probe.metrics(open_store(tmp_path / "store"))
    pooled = metrics[metrics["stratum"] == "all"].set_index(["metric", "persona"])["value"]
    for persona in ("nurse", "none"):
        for task, ours_, theirs in (("stated", "accuracy", "exact_match"), ("latent", "accuracy_latent", "acc")):
            metric, value, error = found["tasks"][f"odd_{persona}_{task}"]
            assert metric == theirs
            assert value == pytest.approx(pooled[ours_, persona])
            assert f"odd_{persona}_{task}" in found["table"]
            if persona == "none":  # one row for each case: our error is theirs
                assert f"{error:.4f}" in found["table"]


def test_inspect_lists_and_reads_our_logs_and_computes_the_same_scores(tmp_path: Path) -> None:
    python = venv_with("inspect", "inspect-ai==0.3.285")
    store = open_store(store_at(tmp_path / "store"))
    export_results(tmp_path / "store", "inspect", tmp_path / "logs")
    logs = {log["task"]: log for log in run_in(python, INSPECT, tmp_path / "logs")}
    assert set(logs) == {"odd/nurse", "odd/none"}
    texts = store.select(persona="none").texts().iloc[1:].reset_index(drop=True)  # the first case says nothing
    for log in logs.values():
        assert (log["model"], log["status"]) == ("tiny", "success")
        assert set(log["said"]) == {"stated", "latent", "agreement"}
        for name, said in log["said"].items():
            np.testing.assert_allclose(said, log["again"][name], rtol=1e-9)
    plain = logs["odd/none"]
    assert (plain["input"], plain["completion"]) == (texts["prompt"][0], texts["gen_text"][0])
    assert (plain["case"], plain["epochs"], logs["odd/nurse"]["epochs"]) == (texts["case"][0], 1, 2)
