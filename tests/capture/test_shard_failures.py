"""What a pass cannot give is one failed row, never a failed run: memory that runs out, values that are not finite."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from probe.capture import Capturer, Job, JobPlanner, PassSettings, ShardResult, capture_shard, plan_jobs, shards
from probe.models import find_model
from probe.models.loading import load_backend
from probe.models.points import residual_points
from probe.prompts import LetterVocabulary, PromptBuilder, load_tokenizer
from probe.values import Case, Cell, Condition, Option, Persona, Task
from tests.tiny_models import save_tiny_model

TASK = Task(
    "triage",
    ("{case}\n\n{options} Final answer: X.",),
    (Option("home", "stay home"), Option("clinic", "routine care"), Option("emergency", "emergency")),
    ("A", "B", "C"),
    "emergency",
)
N = 8


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Capturer, tuple[Job, ...]]:
    folder = save_tiny_model(tmp_path_factory.mktemp("model"), "llama", scale=3.0)
    tokenizer = load_tokenizer(folder)
    backend = load_backend(find_model(str(folder)), backend="hf", dtype="auto", device="cpu", attention=None)
    shape = backend.facts.shape
    capturer = Capturer(
        backend=backend,
        tokenizer=tokenizer,
        vocabulary=LetterVocabulary(tokenizer, TASK.letters),
        letters=TASK.letters,
        options=TASK.option_ids,
        settings=PassSettings(residual_points(tuple(range(shape.n_layers + 1))), ("prompt_end", "answer"), 4),
        batch_size=N,
        dtype="float32",
    )
    cases = [Case(str(k), "A patient with chest pain, " + "54 years. " * (1 + k), "clinic") for k in range(N)]
    planner = JobPlanner(PromptBuilder(tokenizer, TASK), [Persona("nurse", ("You are a nurse.",))], cases)
    cells = [Cell("nurse", case.id, Condition()) for case in cases]
    planned = plan_jobs(
        planner, cells, rows_per_shard=N, planned=lambda persona, case: None, keep_text=False, shape=shape
    )
    return capturer, planned.jobs


def limited(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception, *, after: int = 0) -> None:
    """The pass runs out of memory with more than ``most`` rows at a time, when ``after`` rows have ended."""
    whole = shards.stream_pass

    def stream_pass(backend, rows, settings, vocabulary, *, batch_size):  # type: ignore[no-untyped-def]
        ended = whole(backend, rows, settings, vocabulary, batch_size=batch_size)
        if batch_size > most:
            yield from islice(ended, after)
            raise error
        yield from ended

    monkeypatch.setattr(shards, "stream_pass", stream_pass)


def assert_close(found: ShardResult, expected: ShardResult) -> None:
    assert [record.cell for record in found.records] == [record.cell for record in expected.records]
    for one, other in zip(found.records, expected.records, strict=True):
        assert one.gen_tokens == other.gen_tokens
        for position, resid in other.resid.items():
            np.testing.assert_allclose(one.resid[position], resid, rtol=1e-5, atol=1e-5 * np.abs(resid).max())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        MemoryError(),
    ],
)
def test_out_of_memory_the_same_rows_run_in_smaller_batches_and_the_sizes_are_told(scene, monkeypatch, error):
    capturer, jobs = scene
    whole = capture_shard(capturer, jobs, lambda n: None)
    assert whole.batches == (N,)
    limited(monkeypatch, 3, error)
    seen: list[int] = []
    halved = capture_shard(capturer, jobs, seen.append)
    assert halved.batches == (8, 4, 2)
    assert seen == [1] * N
    assert not halved.failed
    assert_close(halved, whole)


def test_rows_that_had_ended_when_memory_ran_out_are_not_run_again(scene, monkeypatch):
    capturer, jobs = scene
    whole = capture_shard(capturer, jobs, lambda n: None)
    limited(monkeypatch, 2, MemoryError(), after=5)
    seen: list[int] = []
    halved = capture_shard(capturer, jobs, seen.append)
    assert halved.batches == (8, 1)  # three rows were left
    assert seen == [1] * N
    assert_close(halved, whole)


def test_another_error_of_the_pass_is_not_taken_for_lack_of_memory(scene, monkeypatch):
    capturer, jobs = scene
    limited(monkeypatch, 3, RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side"):
        capture_shard(capturer, jobs, lambda n: None)


def test_one_of_several_processes_that_hold_a_model_does_not_begin_again_alone(scene, monkeypatch):
    capturer, jobs = scene
    monkeypatch.setattr(capturer.backend, "facts", replace(capturer.backend.facts, tensor_parallel=2))
    limited(monkeypatch, 3, MemoryError("no room"))
    with pytest.raises(MemoryError, match="no room"):
        capture_shard(capturer, jobs, lambda n: None)


def test_a_row_that_does_not_fit_alone_fails_and_the_others_run(scene, monkeypatch):
    capturer, jobs = scene
    whole = capture_shard(capturer, jobs, lambda n: None)
    longest = max(len(job.prompt.token_ids) for job in jobs)
    run = shards.stream_pass

    def stream_pass(backend, rows, settings, vocabulary, *, batch_size):  # type: ignore[no-untyped-def]
        if any(len(row.token_ids) == longest for row in rows):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        yield from run(backend, rows, settings, vocabulary, batch_size=batch_size)

    monkeypatch.setattr(shards, "stream_pass", stream_pass)
    result = capture_shard(capturer, jobs, lambda n: None)
    (failure,) = result.failed
    assert (failure.kind, failure.job.row.cell.case) == ("OutOfMemory", str(N - 1))
    assert f"{longest} prompt tokens" in failure.reason
    assert result.batches == (8, 4, 2, 1)
    assert_close(result, replace(whole, records=whole.records[:-1]))


def poisoned(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """The third row has one value that is not finite, at point 1 of prompt_end."""
    run = shards.stream_pass

    def stream_pass(backend, rows, settings, vocabulary, *, batch_size):  # type: ignore[no-untyped-def]
        for place, raw in run(backend, rows, settings, vocabulary, batch_size=batch_size):
            if place == 2:
                raw.values["resid", "prompt_end"] = raw.values["resid", "prompt_end"].clone()
                raw.values["resid", "prompt_end"][1, 5] = value
            yield place, raw

    monkeypatch.setattr(shards, "stream_pass", stream_pass)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_value_that_is_not_finite_fails_its_row_by_point_and_position(scene, monkeypatch, value, dtype):
    capturer, jobs = replace(scene[0], dtype=dtype), scene[1]
    poisoned(monkeypatch, value)
    result = capture_shard(capturer, jobs, lambda n: None)
    if value == 3e38:  # large, and exactly what bfloat16 is for
        assert not result.failed
        assert float(result.records[2].resid["prompt_end"][1, 5]) == pytest.approx(3e38, rel=0.01)
        return
    (failure,) = result.failed
    assert (failure.kind, failure.job.row.cell.case) == ("NonFinite", "2")
    assert failure.reason.startswith("the residual at prompt_end is not finite at point 1 (")
    assert len(result.records) == N - 1


def test_on_request_such_a_row_is_stored_with_the_number_of_its_values(scene, monkeypatch):
    capturer, jobs = replace(scene[0], allow_nonfinite=True), scene[1]
    poisoned(monkeypatch, float("nan"))
    result = capture_shard(capturer, jobs, lambda n: None)
    assert not result.failed
    assert [record.nonfinite for record in result.records] == [0, 0, 1, 0, 0, 0, 0, 0]


def test_label_reads_hold_the_variants_that_they_sum(scene):
    capturer, jobs = scene
    for job, record in zip(jobs, capture_shard(capturer, jobs, lambda n: None).records, strict=True):
        read = record.labels["prompt_end"]
        assert read.variant_ids == job.labels.ids
        summed = [np.logaddexp.reduce(values) for values in read.variant_logp]
        np.testing.assert_allclose(read.logp, summed, rtol=1e-5)
