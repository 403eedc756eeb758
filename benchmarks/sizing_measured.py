"""How far the reckoning of sizes is right on this CPU: passes, bytes of stores, memory. Knows no table of sizes."""

from __future__ import annotations

import gc
import platform
import shutil
import tempfile
import time
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from probe.capture import capture_shard
from probe.mechanism.linear.ridge import nested
from probe.organism import CHECKPOINT
from probe.stages import preparation
from probe.stages.capture import capture
from probe.stages.costs import held_bytes
from probe.stages.hardware import measured_cpu
from probe.stages.limits import duration, size
from probe.stages.outlines import outline_of, row_bytes
from probe.stages.preparation import prepare
from probe.stages.running import capturer_of, load_model
from probe.stages.throughput import row_seconds
from probe.store import open_store
from probe.study import Study


@dataclass(frozen=True)
class Pass:
    """A pass that is reckoned and measured: width and blocks of a random Llama (0: the organism), cases for each of
    two personas, rows at a time, and new tokens."""

    name: str
    width: int
    blocks: int
    cases: int
    batch: int
    new: int


PASSES = (
    Pass("organism, 0.7M", 0, 0, 32, 64, 1),
    Pass("organism, 0.7M", 0, 0, 32, 64, 200),
    Pass("organism, 0.7M", 0, 0, 8, 1, 200),
    Pass("Llama, 113M", 768, 12, 8, 16, 1),
    Pass("Llama, 113M", 768, 12, 8, 16, 24),
    Pass("Llama, 113M", 768, 12, 2, 1, 24),
)


def measured_tables(*, quick: bool) -> list[str]:
    """The reckoning beside passes, bytes and memory of this machine."""
    torch.set_num_threads(1)
    preparation.SHARD_SECONDS = 10**6
    lines = [
        "| model | rows | batch | new tokens | CPU seconds a row, reckoned | measured | reckoned / measured |",
        "|---|---|---|---|---|---|---|",
    ]
    bytes_ = ["| shards of | rows | bytes, reckoned | found | reckoned / found |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for each in PASSES:
            asked = replace(each, width=each.width and 64, blocks=each.blocks and 2, cases=2) if quick else each
            model = (
                saved_model(Path(folder) / f"m{asked.width}", asked.width, asked.blocks) if asked.width else "organism"
            )
            lines.append(pass_line(each.name, study_of(model, asked)))
        for place, each in enumerate((PASSES[1], PASSES[4])):
            asked = replace(each, width=each.width and 64, blocks=each.blocks and 2, cases=2) if quick else each
            model = Path(folder) / f"m{asked.width}" if asked.width else "organism"
            bytes_.append(bytes_line(each.name, study_of(model, asked), Path(folder) / f"s{place}"))
    said = f"Measured with torch {torch.__version__} on one thread of {platform.machine()}, in CPU seconds, float32."
    return [said, "", *lines, "", *bytes_, "", *constants(quick=quick)]


def saved_model(folder: Path, width: int, blocks: int) -> Path:
    """Random weights behind the organism's tokenizer and chat template; its answers never end by themselves."""
    if folder.exists():
        return folder
    shutil.copytree(CHECKPOINT, folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    config = LlamaConfig(
        vocab_size=Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size(),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        max_position_embeddings=2048,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[config.eos_token_id] = 0  # another is always likelier
    model.save_pretrained(folder)
    return folder


def study_of(model: Path | str, asked: Pass) -> Study:
    return Study.from_mapping(
        {
            "name": "sizing",
            "model": {"id": str(model)},
            "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": "You are a nurse."}],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "limit": asked.cases,
            "capture": {"batch_size": asked.batch},
            "generation": {"max_new_tokens": asked.new},
        }
    )


def pass_line(name: str, study: Study) -> str:
    """One pass over one shard, its answers taken as long as they were."""
    prepared = prepare(study)
    capturer = capturer_of(prepared.resolved, load_model(prepared.resolved))
    jobs = [job for job in prepared.cells.jobs if job.row.shard == 0]
    capture_shard(capturer, jobs[:2], lambda rows: None)
    started = time.process_time()
    result = capture_shard(capturer, jobs, lambda rows: None)
    found = (time.process_time() - started) / len(jobs)
    new = float(np.mean([len(record.gen_tokens) for record in result.records]))
    own = outline_of(prepared, new)
    batch, fed = min(own.batch, len(jobs)), max(round(own.tokens.group * own.tokens.fed), 1)
    cpu = measured_cpu(batch, own.footprint.per_token, fed=fed, clock=time.process_time)
    told = row_seconds(own, cpu).whole
    seconds = f"{duration(told)} | {duration(found)} | {told / found:.2f}"
    return f"| {name} | {len(jobs)} | {own.batch} | {new:.3g} | {seconds} |"


def bytes_line(name: str, study: Study, store: Path) -> str:
    """The shards of a store at two positions that all rows have: a random Llama writes no letter to be read at."""
    study = replace(study, capture=replace(study.capture, positions=("prompt_end", "case_mean")))
    capture(study, store=store)
    table = open_store(store).table()
    own = outline_of(prepare(study), float(table["n_gen"].mean()))
    told = own.rows * row_bytes(own).stored
    found = sum(file.stat().st_size for file in (store / "shards").iterdir())
    return f"| {name} | {own.rows} | {size(told)} | {size(found)} | {told / found:.2f} |"


def constants(*, quick: bool) -> list[str]:
    """What a planned row and a probed value take."""
    study = Study.from_mapping(
        {
            "name": "planned",
            "model": {"id": "organism"},
            "personas": "builtin:persona-paradox",
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "limit": 20 if quick else 300,
        }
    )
    prepare(replace(study, cases=study.cases[:2]))
    gc.collect()
    before, started = held_bytes(), time.process_time()
    prepared = prepare(study)
    seconds = time.process_time() - started
    gc.collect()
    after, rows = held_bytes(), len(prepared.cells.rows)
    rng = np.random.default_rng(0)
    n, width = (200, 16) if quick else (6000, 512)
    x, y = rng.standard_normal((n, width)).astype(np.float32), rng.standard_normal((n, 11))
    tracemalloc.start()
    nested(x, y, np.arange(n) % 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return [
        "| measured here | |",
        "|---|---|",
        f"| a planned row: main memory | {(after - before) / rows:,.0f} bytes ({rows:,} rows) |",
        f"| a planned row: to render its prompt | {1e3 * seconds / rows:.2f} ms of CPU |",
        f"| a probed value: peak of a nested ridge | {peak / (n * width):.1f} bytes ({n:,} rows x {width}) |",
    ]
