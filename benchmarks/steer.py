"""Many edits of the same prompts beside what a user would pick instead, in one process, interleaved.

python benchmarks/steer.py [--quick] [--rounds 5] [--write docs/performance.md]
                           [--device cuda --dtype bfloat16 --model 7b]

A round is 8 cases of 80 to 160 tokens, new in each; a direction is added to the output of each of 8 blocks in 8
strengths: 512 edits. S1: at the last token. S2: at all tokens. S3: 2 cases, at all tokens of the case, after 160 tokens
of persona and instruction. All tools give the label distribution of every edit, and these are compared in every round.
Each tool has the batch of {8, 16, 32, 64} that was its fastest on the first block before the first round. Ratios are of
times within one round: tool / ours, median (least-greatest).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import steer_tools as tools
import torch
from capture import MODELS, around, described, installed, keep, tell
from capture_rows import CLOCKS, Machine, save_model

BATCHES = (8, 16, 32, 64)
STRENGTHS = (-4.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0)
"""In units of the typical size of the residual stream of such a model."""
TARGETS = {"S1": 15.0, "S2": 1.9}
MARKS = ("<!-- steer benchmark -->\n", "<!-- /steer benchmark -->")
AGREE = {"float32": 1e-4, "bfloat16": 0.25}


@dataclass(frozen=True)
class Workload:
    """Cases of ``case`` tokens (from least to most) after ``prefix`` tokens, edited ``everywhere`` or at their end."""

    name: str
    cases: int
    prefix: int
    case: tuple[int, int]
    everywhere: bool

    def round(self, model: Mapping[str, int], seed: int) -> tools.Round:
        """Random tokens and random directions, one for each block."""
        rng = np.random.default_rng([seed, self.cases, self.prefix])
        tokens = lambda n: tuple(rng.integers(4, model["vocab_size"], n).tolist())  # noqa: E731  # ids below are letters
        prefix = tokens(self.prefix)
        prompts = []
        for _ in range(self.cases):
            own = tokens(int(rng.integers(self.case[0], self.case[1] + 1)))
            prompts.append(tools.Steered((*prefix, *own), self.prefix, self.everywhere))
        width = model["hidden_size"]
        directions = 0.1 * rng.normal(size=(model["num_hidden_layers"], width)).astype(np.float32)
        return tools.Round(tuple(prompts), directions, STRENGTHS)

    def least(self, work: tools.Round) -> float:
        """How many times fewer blocks are run, token by token, if no block below an edit and no token before it is run
        again; the prompts' own run is not counted."""
        blocks = len(work.directions)
        whole = blocks * blocks * sum(len(each.ids) for each in work.prompts)
        rest = sum(range(blocks)) * sum(len(each.ids) - each.start for each in work.prompts)
        return whole / rest


WORKLOADS = (
    Workload("S1", 8, 0, (80, 160), False),
    Workload("S2", 8, 0, (80, 160), True),
    Workload("S3", 2, 160, (80, 160), True),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two cases a round, to see that all of it runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=[each.name for each in WORKLOADS], help="one of the tables")
    parser.add_argument("--tools", help="only tools whose names begin with one of these letters, such as a,c")
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=AGREE, default="float32")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a machine with other work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between the marks of this page")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.write:
        around(chosen.write, MARKS)  # a page without marks is refused before the hour, not after it
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder), chosen.device, chosen.dtype, chosen.clock)
        save_model(machine.folder, MODELS[chosen.model], seed=chosen.seed, device=chosen.device, dtype=chosen.dtype)
        tell(said, described(chosen))
        found = every_tool(machine, chosen.tools)
        for load in WORKLOADS:
            if chosen.only in (None, load.name):
                measure(said, replace(load, cases=2) if chosen.quick else load, found, chosen)
        del found
    if chosen.write:
        keep(chosen.write, said, MARKS)
    return 0


def every_tool(machine: Machine, wanted: str | None) -> list[tools.Steers]:
    """Ours first, then those that are installed and asked for."""
    letters = ("a", "b", "c") if wanted is None else tuple(wanted.split(","))
    found: list[tools.Steers] = [tools.Ours(machine)]
    if "a" in letters:
        found.append(tools.Hooks(machine))
    if "b" in letters and installed("transformer_lens", "transformer-lens"):
        found.append(tools.Bridge(machine))
    if "c" in letters and installed("nnsight", "nnsight"):
        found.append(tools.NNsight(machine))
    return found


def measure(said: list[str], load: Workload, found: Sequence[tools.Steers], chosen: argparse.Namespace) -> None:
    """Choose every tool's batch, run the rounds, compare what the tools gave, and tell the table."""
    model, rng = MODELS[chosen.model], np.random.default_rng(chosen.seed)
    first = load.round(model, chosen.seed)
    smaller = tools.Round(first.prompts, first.directions[:1], first.strengths)
    best = {each.name: best_batch(each, smaller) for each in found}
    seconds: dict[str, list[float]] = {each.name: [] for each in found}
    largest = 0.0
    for number in range(1, chosen.rounds + 1):
        work = load.round(model, chosen.seed + number)
        got = {}
        for index in rng.permutation(len(found)):
            each = found[int(index)]
            ran = each.run(work, best[each.name])
            seconds[each.name].append(ran.seconds)
            got[each.name] = ran.logp
            print(f"{load.name} round {number}: {each.name} {ran.seconds:.1f} s", file=sys.stderr, flush=True)
        for name, logp in got.items():
            off = float((logp - got["ours"]).abs().max())
            assert off <= AGREE[chosen.dtype], f"{name}: label log-probabilities are off by {off:.1e}"
            largest = max(largest, off)
    judged = chosen.model == "small" and chosen.device == "cpu" and not chosen.quick
    table(said, load, seconds, best, TARGETS.get(load.name) if judged else None)
    tell(
        said,
        f"{load.name}: {len(work.edits)} edits a round, {chosen.rounds} rounds. Label log-probabilities agree within "
        f"{largest:.1e}. Blocks x tokens that whole forwards run / that edits change: {load.least(work):.4g}.\n",
    )


def best_batch(tool: tools.Steers, work: tools.Round) -> int:
    """The fastest of the batch sizes on a smaller round; what is run first only warms up."""
    tool.run(replace(work, prompts=work.prompts[:1], strengths=work.strengths[:1]), 1)
    return min(BATCHES, key=lambda size: tool.run(work, size).seconds)


def table(
    said: list[str],
    load: Workload,
    seconds: Mapping[str, list[float]],
    best: Mapping[str, int],
    target: float | None,
) -> None:
    tell(said, f"| {load.name} | batch | seconds a round | tool / ours | target |\n|---|---|---|---|---|")
    for name, values in seconds.items():
        ratios = sorted(theirs / ours for theirs, ours in zip(values, seconds["ours"], strict=True))
        middle = statistics.median(ratios)
        verdict = "" if target is None else f">= {target:g}x: {'met' if middle >= target else 'MISSED'}"
        told = "|  |  |" if name == "ours" else f"| {middle:.2f}x ({ratios[0]:.2f}-{ratios[-1]:.2f}) | {verdict} |"
        tell(said, f"| {name} | {best[name]} | {statistics.median(values):.2f} {told}")
    tell(said, "")


if __name__ == "__main__":
    sys.exit(main())
