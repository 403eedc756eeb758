"""The one pass beside what a user would pick instead, on the same rows, in one process, interleaved.

python benchmarks/capture.py [--quick] [--rounds 3] [--write docs/performance.md]
                             [--device cuda --dtype bfloat16 --model 7b]

W1: 3 personas x 64 cases in a round; 160 tokens of persona and instruction before 80 to 160 of the case; 24 new tokens.
W2: 3 x 16 rows whose answers have 4 to 256 tokens, log-uniform, set for each row. Each round has new rows, and runs the
tools in a new order; each tool has the batch of {16, 32, 64} that was its fastest in a round before the first. All
give the residuals of all points at the prompt's end, the label log-probabilities and the greedy tokens, and these are
compared in every round. Ratios are of times within one round: tool / ours, median (least-greatest).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import capture_tools as tools
import numpy as np
import torch
from capture_rows import CLOCKS, Got, Machine, Row, Tool, job_of, padded, save_model

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
MODELS = {
    name: dict(zip((*SIZES, "vocab_size", "max_position_embeddings"), sizes, strict=True))
    for name, sizes in {
        "small": (512, 2048, 8, 8, 8, 4096, 1024),
        "tiny": (32, 64, 2, 4, 4, 128, 1024),
        "7b": (4096, 14336, 32, 32, 8, 32_000, 4096),
    }.items()
}
BATCHES = (16, 32, 64)
TARGETS = {
    "W1": {"floor": 0.93, "a hidden states": 4.3, "b bridge": 4.8, "c nnsight one pass": 2.1, "d nnsight trace": 4.0},
    "W2": {"floor": 0.93, "a hidden states": 4.8, "c nnsight one pass": 3.0},
}
MEMORY = 1.1
MARKS = ("<!-- capture benchmark -->\n", "<!-- /capture benchmark -->")
NEAR_TIE = {"float32": 1e-4, "bfloat16": 0.25}
"""Two tools may part after a step whose two likeliest tokens are as near as this, in nats."""
RESID = {"float32": 1e-5, "bfloat16": 0.1}
LOGP = {"float32": 1e-4, "bfloat16": 0.25}


@dataclass(frozen=True)
class Workload:
    """``personas x cases`` rows, and the tokens of each part: the cases' and answers' from least to most."""

    name: str
    personas: int
    cases: int
    prefix: int
    case: tuple[int, int]
    new: tuple[int, int]

    def rows(self, vocabulary: int, seed: int) -> list[Row]:
        """Random tokens: persona by persona, the same cases for each; answer lengths are log-uniform."""
        rng = np.random.default_rng([seed, self.personas, self.cases])
        tokens = lambda n: rng.integers(4, vocabulary, n).tolist()  # noqa: E731  # ids below are pad and letters
        cases = [tokens(int(rng.integers(self.case[0], self.case[1] + 1))) for _ in range(self.cases)]
        rows = []
        for persona in range(self.personas):
            prefix = tokens(self.prefix)
            for k, case in enumerate(cases):
                new = round(float(np.exp(rng.uniform(*np.log(self.new)))))
                rows.append(Row(job_of(f"p{persona}", f"c{seed}-{k}", prefix, case), new))
        return rows


WORKLOADS = (Workload("W1", 3, 64, 160, (80, 160), (24, 24)), Workload("W2", 3, 16, 160, (80, 160), (4, 256)))
QUICK = (Workload("W1", 3, 6, 160, (80, 160), (8, 8)), Workload("W2", 3, 4, 160, (80, 160), (4, 32)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rows, to see that all of it runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=[*(each.name for each in WORKLOADS), "memory"], help="one of the tables")
    parser.add_argument("--tools", help="only tools whose names begin with one of these letters, such as a,c")
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=NEAR_TIE, default="float32")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a machine with other work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between the marks of this page")
    parser.add_argument("--memory", nargs=2, metavar=("TOOL", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.memory:
        return tell_memory(chosen.memory[0], Machine(Path(chosen.memory[1]), chosen.device, chosen.dtype), chosen.quick)
    if chosen.write:
        around(chosen.write)  # a page without marks is refused before the hours, not after them
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder), chosen.device, chosen.dtype, chosen.clock)
        save_model(machine.folder, MODELS[chosen.model], seed=chosen.seed, device=chosen.device, dtype=chosen.dtype)
        tell(said, described(chosen))
        found = every_tool(machine, chosen.tools) if chosen.only != "memory" else []
        for load in QUICK if chosen.quick else WORKLOADS:
            if chosen.only in (None, load.name):
                measure(said, load, found, machine, chosen)
        del found
        if chosen.only in (None, "memory"):
            tell_peaks(said, machine, chosen)
    if chosen.write:
        keep(chosen.write, said)
    return 0


def every_tool(machine: Machine, wanted: str | None) -> list[Tool]:
    """Ours first, then the floor, then those that are installed and asked for."""
    letters = ("a", "b", "c", "d") if wanted is None else tuple(wanted.split(","))
    ours = tools.Ours(machine)
    found: list[Tool] = [ours, tools.Floor(ours)]
    model = machine.model()
    found += [tools.HiddenStates(machine, model), tools.HiddenStates(machine, model, by_length=True)]
    if "b" in letters and installed("transformer_lens", "transformer-lens"):
        found.append(tools.Bridge(machine))
    if {"c", "d"} & set(letters) and installed("nnsight", "nnsight"):
        wrapped = tools.NNsight.wrap(machine)
        found += [tools.NNsight(machine, wrapped, one_pass=one_pass) for one_pass in (True, False)]
    return [each for each in found if each.name in ("ours", "floor") or each.name.startswith(letters)]


def installed(module: str, package: str) -> bool:
    there = find_spec(module) is not None
    if not there:
        print(f"left out: {package} (`pip install {package}`)", file=sys.stderr)
    return there


def measure(
    said: list[str], load: Workload, found: Sequence[Tool], machine: Machine, chosen: argparse.Namespace
) -> None:
    """Choose every tool's batch, run the rounds, compare what the tools gave, and tell the table."""
    vocabulary, rounds, seed = MODELS[chosen.model]["vocab_size"], chosen.rounds, chosen.seed
    rng = np.random.default_rng(seed)
    first = load.rows(vocabulary, seed)[: max(BATCHES)]
    best = {each.name: best_batch(each, first) for each in found if each.name != "floor"}
    best["floor"] = best["ours"]  # the same schedule
    seconds: dict[str, list[float]] = {each.name: [] for each in found}
    near_ties, largest, judge = 0, 0.0, machine.model()
    for number in range(1, rounds + 1):
        rows = load.rows(vocabulary, seed + number)
        got: dict[str, list[Got]] = {}
        for index in rng.permutation(len(found)):
            each = found[int(index)]
            ran = each.run(rows, best[each.name])
            seconds[each.name].append(ran.seconds)
            got[each.name] = ran.got
            print(f"{load.name} round {number}: {each.name} {ran.seconds:.1f} s", file=sys.stderr, flush=True)
        reference = got.pop("ours")
        for name, others in got.items():
            if name != "floor":  # which reads nothing
                ties, off = compare(name, rows, reference, others, machine, judge)
                near_ties, largest = near_ties + ties, max(largest, off)
    table(said, load, seconds, best, TARGETS[load.name] if is_judged(chosen) else {})
    tell(
        said,
        f"{load.name}: {len(rows)} rows a round, {rounds} rounds. Residuals agree within {largest:.1e} of the largest "
        f"value of their point, label log-probabilities within {LOGP[machine.dtype]:g}; {near_ties} answers part, each "
        f"where the two likeliest tokens are less than {NEAR_TIE[machine.dtype]:g} apart.\n",
    )


def best_batch(tool: Tool, rows: Sequence[Row]) -> int:
    """The fastest of the batch sizes, on the rows of the first round's first batch; what is run first only warms up."""
    tool.run(rows[:2], 2)
    sizes = sorted({min(size, len(rows)) for size in BATCHES})
    return min(sizes, key=lambda size: tool.run(rows, size).seconds)


@torch.inference_mode()
def compare(
    name: str, rows: Sequence[Row], ours: Sequence[Got], others: Sequence[Got], machine: Machine, judge: Any
) -> tuple[int, float]:
    """How many answers part at a near tie, and the largest difference of a residual relative to its point's largest."""
    ties, largest = 0, 0.0
    for row, one, other in zip(rows, ours, others, strict=True):
        scale = other.resid.abs().amax(-1).clamp(min=1e-30)
        off = float(((one.resid - other.resid).abs().amax(-1) / scale).max())
        assert off <= RESID[machine.dtype], f"{name}: a residual is off by {off:.1e}"
        assert torch.allclose(one.logp, other.logp, rtol=0, atol=LOGP[machine.dtype]), (
            f"{name}: label log-probabilities"
        )
        assert len(one.tokens) == len(other.tokens) == row.new, f"{name}: {len(one.tokens)}, {len(other.tokens)} tokens"
        largest = max(largest, off)
        if one.tokens != other.tokens:
            step = next(k for k, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=True)) if a != b)
            ids = torch.tensor([[*row.ids, *one.tokens[:step]]], device=machine.device)
            top = judge(input_ids=ids, logits_to_keep=1).logits[0, -1].float().topk(2).values
            gap = float(top[0] - top[1])
            assert gap < NEAR_TIE[machine.dtype], f"{name}: tokens part at step {step}, where the gap is {gap:.2g}"
            ties += 1
    return ties, largest


def is_judged(chosen: argparse.Namespace) -> bool:
    """Whether this is what the targets were set for."""
    return chosen.model == "small" and chosen.device == "cpu" and not chosen.quick


def table(
    said: list[str],
    load: Workload,
    seconds: Mapping[str, list[float]],
    best: Mapping[str, int],
    targets: Mapping[str, float],
) -> None:
    tell(said, f"| {load.name} | batch | seconds a round | tool / ours | target |\n|---|---|---|---|---|")
    for name, values in seconds.items():
        ratios = sorted(theirs / ours for theirs, ours in zip(values, seconds["ours"], strict=True))
        middle = statistics.median(ratios)
        target = targets.get(name)
        verdict = "" if target is None else f">= {target:g}x: {'met' if middle >= target else 'MISSED'}"
        ratio = "" if name == "ours" else f"{middle:.2f}x ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        tell(said, f"| {name} | {best[name]} | {statistics.median(values):.1f} | {ratio} | {verdict} |")
    tell(said, "")


def tell_peaks(said: list[str], machine: Machine, chosen: argparse.Namespace) -> None:
    """Peak memory above the loaded model, each tool in a fresh process of its own."""
    ours, bare = (memory_of(name, machine, chosen.quick) for name in ("ours", "generate"))
    verdict = f", target <= {MEMORY:g}x: {'met' if ours / bare <= MEMORY else 'MISSED'}" if is_judged(chosen) else ""
    tell(
        said,
        f"Peak memory above the loaded model, one batch of {max(BATCHES)} rows like those of W1: ours "
        f"{ours / 1e6:.0f} MB, a bare `generate` {bare / 1e6:.0f} MB: {ours / bare:.2f}x{verdict}.",
    )


def memory_of(name: str, machine: Machine, quick: bool) -> float:
    command = [sys.executable, __file__, "--memory", name, str(machine.folder), "--device", machine.device]
    command += ["--dtype", machine.dtype, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.splitlines()[-1])


def tell_memory(name: str, machine: Machine, quick: bool) -> int:
    """Bytes that one batch adds to what a process holds that has loaded the model and run two short rows."""
    load = Workload("memory", 1, max(BATCHES), *((160, (80, 160), (24, 24)) if not quick else (40, (20, 40), (8, 8))))
    vocabulary = json.loads((machine.folder / "config.json").read_text("utf-8"))["vocab_size"]
    rows = load.rows(vocabulary, 1)
    ours = tools.Ours(machine) if name == "ours" else None
    model = machine.model() if ours is None else None

    def work(some: Sequence[Row]) -> None:
        if ours is not None:
            ours.run(some, len(some))
        else:
            tools.generated(model, some, padded(some, machine))

    work([Row(rows[0].job, 2), Row(rows[1].job, 2)])
    if machine.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work(rows)
        print(torch.cuda.max_memory_allocated() - before)
        return 0
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident("VmRSS")
    work(rows)
    print(resident("VmHWM") - before)
    return 0


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) * 1024 for text in lines if text.startswith(f"{name}:"))


def described(chosen: argparse.Namespace) -> str:
    sizes = MODELS[chosen.model]
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    device = torch.cuda.get_device_name(chosen.device) if chosen.device.startswith("cuda") else "one thread"
    versions = [f"{name} {version(name)}" for name in ("torch", "transformers")]
    versions += [f"{n} {version(n)}" for n in ("transformer-lens", "nnsight") if find_spec(n.replace("-", "_"))]
    return (
        f"Measured on: {platform.machine()}, {os.cpu_count()} cores, {memory_gb:.0f} GB of memory, {device}, "
        f"{chosen.dtype}, {chosen.clock} time; Python {platform.python_version()}, {', '.join(versions)}. "
        f"Random Llama: {sizes['num_hidden_layers']} layers, width {sizes['hidden_size']}, "
        f"vocabulary {sizes['vocab_size']:,}.\n"
    )


def tell(said: list[str], text: str) -> None:
    said.append(text)
    print(text, flush=True)


def keep(page: Path, said: Sequence[str], marks: tuple[str, str] = MARKS) -> None:
    """Put what was said between the marks of a page."""
    before, after = around(page, marks)
    page.write_text(before + "\n".join(said).rstrip("\n") + "\n" + after, "utf-8")


def around(page: Path, marks: tuple[str, str] = MARKS) -> tuple[str, str]:
    """A page up to the end of its first mark, and from its second on."""
    before, start, rest = page.read_text("utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    assert start and end, f"{page} lacks the marks {' '.join(mark.strip() for mark in marks)}"
    return before + start, end + after


if __name__ == "__main__":
    sys.exit(main())
