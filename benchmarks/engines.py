"""What workers gain and what an engine costs: the same shards in one process, in two, and on Ray.

python benchmarks/engines.py [--shards 6] [--rounds 3] [--quick] [--write docs/scale.md]

A random Llama (width 512, 8 blocks) with the organism's tokenizer; shards of 64 rows that take 10 s or more on one
thread, whose residuals at two positions are stored for all points. Each worker has one torch thread. The rate is that
between commits: with w workers and n shards, n - w shards in the time from the w-th commit to the last, so that loading
the model and rendering the prompts do not count. Engines run in a new order in each round; every store is compared
with the first one, byte for byte.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; workers inherit it
os.environ.update(RAY_worker_niceness="0")  # else Ray's workers give way to whatever else the machine does

import argparse
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from probe.engines import Engine
from probe.organism import CHECKPOINT
from probe.stages import preparation
from probe.stages.capture import CapturePolicy, capture
from probe.study import Study

MARKS = ("<!-- engines benchmark -->\n", "<!-- /engines benchmark -->")
ENGINES = {
    "this process": Engine(),
    "2 worker processes": Engine(workers=2, cpus_per_worker=1),
    "Ray, 1 worker": Engine("ray", workers=1),
    "Ray, 2 workers": Engine("ray", workers=2),
}
ROWS = 64
GAIN = 1.7
COST = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few rows, to see that all of it runs")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between the marks of this page")
    chosen = parser.parse_args()
    preparation.SHARD_ROWS = preparation.SMALLEST_SHARD if chosen.quick else ROWS
    preparation.SHARD_SECONDS = 10**6
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder) / "model", quick=chosen.quick)
        study = study_of(model, chosen.shards * preparation.SHARD_ROWS // 2, new=4 if chosen.quick else 32)
        seconds = measured(study, Path(folder), chosen.rounds)
    lines = [measured_on(chosen.shards, chosen.rounds), "", *table(seconds)]
    lines += ["", *(f"- {line}" for line in verdicts(seconds))]
    print("\n".join(lines))
    if chosen.write:
        text = chosen.write.read_text("utf-8")
        before, rest = text.split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        chosen.write.write_text(f"{before}{MARKS[0]}{chr(10).join(lines)}\n{MARKS[1]}{after}", "utf-8")
    return 0


def save_model(folder: Path, *, quick: bool) -> Path:
    """Random weights behind the organism's tokenizer and chat template."""
    shutil.copytree(CHECKPOINT, folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    width, blocks = (32, 2) if quick else (512, 8)
    config = LlamaConfig(
        vocab_size=Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size(),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=blocks,
        num_attention_heads=8,
        max_position_embeddings=1024,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def study_of(model: Path, cases: int, new: int) -> Study:
    """Two personas."""
    return Study.from_mapping(
        {
            "name": "engines",
            "model": {"id": str(model)},
            "personas": [{"id": "none", "text": None}, {"id": "nurse", "text": "You are a nurse."}],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "limit": cases,
            "capture": {"batch_size": 16},
            "generation": {"max_new_tokens": new},
        }
    )


def measured(study: Study, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds from commit to commit of a shard, by engine and round."""
    seconds: dict[str, list[float]] = {name: [] for name in ENGINES}
    reference: dict[str, bytes] = {}
    names = list(ENGINES)
    for place in range(rounds):
        order = np.random.default_rng(place).permutation(len(names))
        for name in [names[k] for k in order]:
            store = folder / "store"
            outcome = capture(study, store=store, policy=CapturePolicy(engine=ENGINES[name]))
            assert outcome.exit_status == 0
            shards = sorted((store / "shards").iterdir())
            content = {file.name: file.read_bytes() for file in shards}
            reference = reference or content
            assert content == reference, f"{name} stored other bytes"
            workers = ENGINES[name].workers or 1
            times = sorted(file.stat().st_mtime for file in shards)
            seconds[name].append((times[-1] - times[workers - 1]) / (len(times) - workers))
            print(f"round {place + 1}: {name}: {seconds[name][-1]:.2f} s a shard", file=sys.stderr)
            shutil.rmtree(store)
    return seconds


def measured_on(shards: int, rounds: int) -> str:
    """The machine and the versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "ray"))
    machine = f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"
    return f"Measured on: {machine}; {shards} shards of {preparation.SHARD_ROWS} rows, {rounds} rounds."


def table(seconds: dict[str, list[float]]) -> list[str]:
    """One line for each engine: seconds of a shard, and how much faster that is than one process, round by round."""
    lines = ["| engine | seconds a shard | faster than this process |", "|---|---|---|"]
    for name, found in seconds.items():
        ratios = [one / own for one, own in zip(seconds["this process"], found, strict=True)]
        lines.append(f"| {name} | {spread(found)} | {spread(ratios)} |")
    return lines


def verdicts(seconds: dict[str, list[float]]) -> list[str]:
    """What was asked of engines, and the median over rounds of what was found."""

    def median(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))

    gains = {name: median("this process", name) for name in ("2 worker processes", "Ray, 2 workers")}
    costs = {
        "Ray with 1 worker over this process": 100 * (median("Ray, 1 worker", "this process") - 1),
        "Ray with 2 workers over 2 worker processes": 100 * (median("Ray, 2 workers", "2 worker processes") - 1),
    }
    return [
        *(f"{name}: {gain:.2f} times one (asked: {GAIN} or more)" for name, gain in gains.items()),
        *(f"{name}: {cost:+.1f} % (asked: {COST} % or less)" for name, cost in costs.items()),
    ]


def spread(values: Sequence[float]) -> str:
    """Median (least-greatest)."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
