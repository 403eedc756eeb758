"""How large a study is and how long it takes: against real passes and stores, and worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from probe.cli import app
from probe.models.footprint import Footprint
from probe.models.hf import HFBackend
from probe.stages.capture import capture
from probe.stages.hardware import DEVICES, Hardware, hardware_named, measured_cpu
from probe.stages.limits import Means, cache_bytes, duration, needs, size, stored_bytes
from probe.stages.outlines import Outline, Tokens, moments_bytes, outline_of, row_bytes, set_bytes
from probe.stages.pilots import pilot_of
from probe.stages.preparation import prepare
from probe.stages.throughput import ROW, row_seconds
from probe.store import open_store
from probe.store.sums import names_at, tensors_of
from probe.study import Study
from probe.values import ProbeError
from probe.values.sums import sums_of

LONG = " ".join(["You have worked for many years in a small town and know its people."] * 6)


def study(**settings: Any) -> Study:
    return Study.from_mapping(
        {
            "name": "sizing",
            "model": {"id": "organism"},
            "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": LONG}],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "limit": 12,
            "generation": {"max_new_tokens": 40},
            **settings,
        }
    )


FOOTPRINT = Footprint(
    dtype="bfloat16", stored="bfloat16", parameters=1200, cached=8, attended=16, fed=30, vocab=10, recurrent=False,
    per_token=1000, per_read=100, per_pair=32, idle=0,
)  # fmt: skip
OUTLINE = Outline(
    footprint=FOOTPRINT, blocks=2, itemsize=2, stored_itemsize=2, width=10, activations=120, tensors=6, positions=2,
    sites=2, labels=3, rows=64, shard_rows=16, batch=4,
    tokens=Tokens(prompt=50, fed=20, pairs=1000, group=4, new=11), sets=8, set_bytes=400,
)  # fmt: skip
FAST = Hardware("fast", 1e6, 1e6, 1e6, "made up", compute=0.5, stream=0.5, launch=1e-9)


def test_a_prompt_is_bound_by_arithmetic_and_an_answer_by_memory_as_worked_out_by_hand() -> None:
    computing = replace(FAST, bandwidth=1e12)
    took = row_seconds(OUTLINE, computing)
    prompt = 2 * (20 * 1000 + 100 + 1000 * 32) / 5e5
    step = 2 * (1000 + 100 + (50 + 5.5) * 32) / 5e5
    assert took.prompt == pytest.approx(ROW + prompt, rel=1e-3)
    assert (took.answer, took.bound) == (pytest.approx(10 * step, rel=1e-3), "arithmetic")  # the first token is free
    moving = replace(FAST, flops=1e12)
    took = row_seconds(OUTLINE, moving)
    moved = 4 * 30 * 2 * 2
    step = (2 * (1000 + 100) + 4 * 55.5 * 8 * 2 + 4 * moved) / 5e5 / 4  # weights once for four rows
    assert (took.answer, took.bound) == (pytest.approx(10 * step, rel=1e-3), "memory")


def test_a_larger_batch_shortens_an_answer_while_weights_are_what_is_waited_for_and_not_where_it_is_arithmetic() -> (
    None
):
    larger = replace(OUTLINE, batch=16)
    heavy = replace(FOOTPRINT, per_token=10**7)
    moving, computing = replace(FAST, flops=1e15), replace(FAST, bandwidth=1e15)
    few, many = (row_seconds(replace(each, footprint=heavy), moving).answer for each in (OUTLINE, larger))
    assert many == pytest.approx(few / 4, rel=0.01)
    few, many = (row_seconds(replace(each, footprint=heavy), computing).answer for each in (OUTLINE, larger))
    assert many == pytest.approx(few, rel=0.01)


def test_the_host_is_hidden_behind_a_device_that_computes_meanwhile_and_added_where_it_does_not() -> None:
    still = row_seconds(OUTLINE, FAST)
    slow = replace(FAST, launch=1e-3)
    assert row_seconds(OUTLINE, slow).answer == still.answer
    added = row_seconds(OUTLINE, replace(slow, overlaps=False)).answer - still.answer
    assert added == pytest.approx(10 * 2 * 1e-3 / 4, rel=1e-3)
    waits = row_seconds(OUTLINE, replace(FAST, launch=10.0))
    assert (waits.bound, waits.answer) == ("the host", pytest.approx(10 * 2 * 10 / 4))


def test_answers_of_no_token_take_no_time_and_a_full_shard_is_no_slower_than_one_whose_last_batch_is_not_full() -> None:
    assert row_seconds(replace(OUTLINE, tokens=replace(OUTLINE.tokens, new=0)), FAST).answer == 0
    full, ragged = row_seconds(OUTLINE, FAST), row_seconds(replace(OUTLINE, shard_rows=13), FAST)
    assert ragged.answer == pytest.approx(full.answer * 16 / 13)


@pytest.mark.parametrize("limit", [4, 12])
def test_tokens_are_counted_as_the_pass_then_feeds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    asked = study(limit=limit, generation={"max_new_tokens": 1})
    tokens = outline_of(prepare(asked)).tokens
    fed, usual = list[tuple[int, ...]](), HFBackend.forward

    def forward(self: HFBackend, ids: Any, *rest: Any, **named: Any) -> Any:
        if named.get("cache") is not None:  # without one, it asks for the form of a cache or of the readout
            fed.append(tuple(ids.shape))
        return usual(self, ids, *rest, **named)

    monkeypatch.setattr("probe.models.loading.check_backend", lambda *given: None)
    monkeypatch.setattr(HFBackend, "forward", forward)
    assert capture(asked, store=tmp_path / "s").exit_status == 0
    rows = 2 * limit
    assert tokens.fed * rows == pytest.approx(sum(n * width for n, width in fed))
    assert tokens.group == pytest.approx(rows / len(fed))
    assert tokens.fed < tokens.prompt  # the long persona is shared, else nothing was tested
    assert any(n == 1 and width > 64 for n, width in fed)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"capture": {"positions": ["prompt_end", "case_mean"], "layers": [0, 3]}},
        {"capture": {"positions": ["prompt_end"], "dtype": "bfloat16", "streams": ["resid", "mlp_out"]}},
    ],
)
def test_the_bytes_of_a_store_are_told_within_5_percent(tmp_path: Path, settings: dict[str, Any]) -> None:
    asked = study(**settings, limit=24)
    assert capture(asked, store=tmp_path / "s").exit_status == 0
    new = float(open_store(tmp_path / "s").table()["n_gen"].mean())
    outline = outline_of(prepare(asked), new)
    row = row_bytes(outline)
    shards = sum(file.stat().st_size for file in (tmp_path / "s" / "shards").iterdir())
    assert outline.rows * row.stored == pytest.approx(shards, rel=0.05)
    # Without any one part of it that would not be so.
    for part in (row.labels, row.tokens, row.beside):
        assert abs(outline.rows * (row.stored - part) / shards - 1) > 0.02


@pytest.mark.parametrize(("width", "axes"), [(12, 5), (12, 12), (12, 64), (7, 0)])
def test_a_sum_takes_the_bytes_of_its_tensors(width: int, axes: int) -> None:
    x, own = np.random.default_rng(0).standard_normal((6, width)), min(axes, width)
    sums = sums_of(x, np.zeros(6, dtype=int), own)
    held = sum(array.nbytes for array in tensors_of(sums, names_at("resid.prompt_end.L00", own)).values())
    assert set_bytes([width], 1, axes) == held
    assert set_bytes([width, width], 3, axes) == 6 * held


def test_moments_are_less_than_rows_where_sets_are_large_and_more_where_they_are_small() -> None:
    many = replace(OUTLINE, rows=10**6, shard_rows=256, sets=100)
    assert moments_bytes(many) < many.rows * many.activations
    alone = replace(OUTLINE, sets=10**6)
    assert moments_bytes(alone) == alone.rows * alone.set_bytes > alone.rows * alone.activations
    kept = replace(many, moments=True)  # its sets are those of each shard
    assert moments_bytes(kept) == 100 * kept.set_bytes < moments_bytes(many)
    assert row_bytes(replace(kept, sets=10**5)).activations == 10**5 * kept.set_bytes / kept.rows


AMPLE = Means(disk=1e15, memory=1e15)


def breaking(outline: Outline, device: Hardware, means: Means = AMPLE) -> list[str]:
    took = row_seconds(outline, device)
    return [need.what for need in needs(outline, row_bytes(outline), took, device, means) if need.breaks]


def test_nothing_breaks_with_ample_means_and_each_scarce_quantity_is_named_alone() -> None:
    device = replace(FAST, flops=1e12, bandwidth=1e12, memory=1e9)
    assert breaking(OUTLINE, device) == []
    row = row_bytes(OUTLINE)
    assert breaking(OUTLINE, device, replace(AMPLE, disk=stored_bytes(OUTLINE, row) * 0.99)) == ["disk"]
    assert breaking(OUTLINE, device, replace(AMPLE, disk=stored_bytes(OUTLINE, row) * 1.01)) == []
    assert breaking(OUTLINE, device, replace(AMPLE, memory=64 * 5000)) == ["memory of the plan"]
    wide = replace(OUTLINE, width=10_000)
    assert breaking(wide, device, replace(AMPLE, memory=64 * 10_000 * 19)) == ["memory of a probe"]
    assert breaking(OUTLINE, device, replace(AMPLE, days=1e-9)) == ["time"]
    assert breaking(OUTLINE, replace(device, memory=2 * 1200 + cache_bytes(OUTLINE))) == ["memory of the device"]
    assert breaking(OUTLINE, replace(device, memory=2 * 1200 + cache_bytes(OUTLINE), devices=2)) == []
    assert breaking(replace(OUTLINE, activations=10**9), device) == ["writing of a worker"]
    assert breaking(replace(OUTLINE, rows=200_000, shard_rows=1), device) == ["shards in a folder"]
    assert breaking(replace(OUTLINE, rows=10**7, shard_rows=1000), device) == ["time to plan"]


def test_the_remedies_are_sufficient_by_the_same_reckoning() -> None:
    device = replace(FAST, flops=1e9, bandwidth=1e9, memory=1e9)
    outline = replace(OUTLINE, rows=10**5, stored_itemsize=4, activations=2400)
    days = outline.rows * row_seconds(outline, device).whole / 86400 / 6.5
    found = needs(outline, row_bytes(outline), row_seconds(outline, device), device, replace(AMPLE, days=days))
    assert found[0].what == "time" and found[0].remedy.startswith("--workers 7")
    assert "time" not in breaking(outline, device, replace(AMPLE, days=days, workers=7))
    assert "time" in breaking(outline, device, replace(AMPLE, days=days, workers=6))
    disk = next(need for need in found if need.what == "disk")
    half = replace(outline, stored_itemsize=2, activations=1200)
    assert f"bfloat16 ({size(stored_bytes(half, row_bytes(half)))})" in disk.remedy
    assert "bfloat16" not in next(
        need.remedy for need in needs(half, row_bytes(half), None, None, AMPLE) if need.what == "disk"
    )


def test_a_device_is_named_and_its_figures_are_inputs() -> None:
    def here() -> Hardware:
        return replace(FAST, name="cpu", step_flops=7.0)

    assert hardware_named("h100", here) == DEVICES["h100"]
    changed = hardware_named("h100, compute=.25, devices=2", here)
    assert (changed.compute, changed.devices, changed.flops) == (0.25, 2, DEVICES["h100"].flops)
    assert changed.known.endswith("given: compute, devices")
    assert hardware_named("cpu", here).step_flops == 7.0
    assert hardware_named("cpu,flops=1e12", here).step_flops is None
    for wrong, words in {
        "h10": "'h100'",
        "h100,compue=.5": "'compute'",
        "h100,compute": "compute is a number above 0",
        "h100,compute=-1": "compute is a number above 0",
        "h100,compute=nan": "compute is a number above 0",
    }.items():
        with pytest.raises(ProbeError, match=words):
            hardware_named(wrong, here)


def test_this_processor_multiplies_many_columns_no_slower_than_one_and_says_that_it_was_measured() -> None:
    cpu = measured_cpu(1, 3 * 1024**2, fed=512)
    assert cpu.step_flops is not None and 0 < cpu.step_flops < cpu.flops
    assert "measured here" in cpu.known and not any("measured" in device.known for device in DEVICES.values())


def test_a_pilot_is_what_the_runs_of_a_store_recorded_and_there_is_none_without_rows(tmp_path: Path) -> None:
    assert pilot_of(tmp_path / "s") is None
    asked = study(limit=4)
    capture(asked, store=tmp_path / "s")
    store = open_store(tmp_path / "s")
    found = pilot_of(tmp_path / "s")
    assert found is not None and found.rows == 8 == len(store.table())
    assert found.seconds == pytest.approx(sum(shard["seconds"] for run in store.runs() for shard in run["shards"]))
    assert found.new == pytest.approx(store.table()["n_gen"].mean())


def test_a_dry_run_tells_sizes_for_the_device_that_is_named_and_takes_lengths_from_rows_that_are_there(
    tmp_path: Path,
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: s\nmodel: {id: organism}\npersonas: builtin:persona-paradox\ntask: builtin:triage\n"
        "cases: builtin:triage\nlimit: 4\ngeneration: {max_new_tokens: 60}\n",
        "utf-8",
    )

    def shown(*more: str) -> tuple[int, str]:
        words = ["run", str(file), "--dry-run", "--store", str(tmp_path / "s"), *more]
        ended = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
        return ended.exit_code, " ".join((ended.output + str(ended.exception or "")).split())

    status, text = shown("--hardware", "h200,compute=.3", "--workers", "4")
    assert status == 0
    for words in ("answers of 60 tokens (the most", "4 workers with 1 x h200", "989 TFLOP/s x 0.3", "data sheet"):
        assert words in text
    assert "time, measured" not in text and "nothing breaks; nearest" in text
    capture(Study.load(file), store=tmp_path / "s")
    status, text = shown("--hardware", "h100")
    found = pilot_of(tmp_path / "s")
    assert found is not None and found.new < 60
    assert f"answers of {found.new:.3g} tokens (measured)" in text and "time, measured" in text
    assert duration(found.row_seconds) in text
    status, text = shown("--hardware", "h10")
    assert status != 0 and "'h100'" in text
    refused = CliRunner().invoke(app, ["run", str(file), "--hardware", "h100"])
    assert isinstance(refused.exception, ProbeError) and "add --dry-run" in str(refused.exception)
