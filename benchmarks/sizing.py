"""How large and how long: two models, 6 or 162 personas, 1,667 or 100,000 cases; and how far the reckoning is right.

python benchmarks/sizing.py [--measure] [--quick] [--write docs/scale.md]

The tables of sizes are reckoned, by the same code as ``probe run --dry-run``, from the published shapes of two models;
they need no GPU and are the same everywhere. ``--measure`` compares the reckoning with passes on this CPU (the organism
and random Llamas, one thread), with the bytes of real stores, and measures what a planned and a probed row take.
Seconds are CPU seconds of this process, so that other work on the machine counts less.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path

import torch
from sizing_measured import measured_tables
from transformers import LlamaConfig, LlamaForCausalLM

from probe.models.footprint import Footprint, footprint_of
from probe.stages.hardware import DEVICES, Hardware
from probe.stages.limits import Means, cache_bytes, duration, needs, size, stored_bytes
from probe.stages.outlines import Outline, Tokens, moments_bytes, row_bytes, set_bytes
from probe.stages.preparation import rows_per_shard
from probe.stages.resolution import BATCH_SIZE
from probe.stages.throughput import row_seconds

SIZES = ("<!-- sizes -->\n", "<!-- /sizes -->")
MEASURED = ("<!-- sizing benchmark -->\n", "<!-- /sizing benchmark -->")
DEVICE = "h100"
MEANS = Means(disk=10e12, memory=512e9, workers=8, days=7)
PERSONAS, CASES, ANSWERS = (6, 162), (1667, 100_000), (24, 512)
PROMPT, SHARED, STRATA = 280, 160, 2
POSITIONS, SITES, LABELS = 2, 2, 3
# The configurations that are published with Llama 3.1.
LLAMAS = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--measure", action="store_true", help="also compare with what is measured on this CPU")
    parser.add_argument("--quick", action="store_true", help="few rows, to see that all of it runs")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between the marks of this page")
    chosen = parser.parse_args()
    parts = {SIZES: size_tables()}
    if chosen.measure:
        parts[MEASURED] = measured_tables(quick=chosen.quick)
    for marks, lines in parts.items():
        print("\n".join(lines))
        if chosen.write:
            text = chosen.write.read_text("utf-8")
            before, rest = text.split(marks[0])
            chosen.write.write_text(
                f"{before}{marks[0]}{chr(10).join(lines)}\n{marks[1]}{rest.split(marks[1])[1]}", "utf-8"
            )
    return 0


def llama(name: str) -> tuple[LlamaConfig, Footprint]:
    """A published configuration, and its footprint in bfloat16 by the shapes of its weights; none is made."""
    config = LlamaConfig(vocab_size=128_256, num_key_value_heads=8, dtype="bfloat16", **LLAMAS[name])
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return config, footprint_of(config, {key: ("BF16", tuple(each.shape)) for key, each in model.named_parameters()})


def outline(name: str, personas: int, cases: int, new: int) -> Outline:
    """One study: all residual points at two positions in bfloat16, one wording and instruction."""
    config, footprint = llama(name)
    points, width, batch = config.num_hidden_layers + 1, config.hidden_size, BATCH_SIZE["cuda"]
    activations = 2 * points * width * POSITIONS
    shard = rows_per_shard(activations, footprint.parameters, new, "cuda", batch)
    own = PROMPT - SHARED
    return Outline(
        footprint=footprint,
        blocks=config.num_hidden_layers,
        itemsize=2,
        stored_itemsize=2,
        width=width,
        activations=activations,
        tensors=points * POSITIONS,
        positions=POSITIONS,
        sites=SITES,
        labels=LABELS,
        rows=personas * cases,
        shard_rows=shard,
        batch=batch,
        tokens=Tokens(
            prompt=PROMPT,
            fed=own + SHARED / shard,
            pairs=own * PROMPT + SHARED**2 / shard,
            group=min(4096 // own, batch),
            new=new,
        ),
        sets=personas * STRATA * 16,
        set_bytes=set_bytes([width] * points, POSITIONS, 64),
    )


def holding(found: Outline) -> Hardware:
    """As many devices as hold the model, its cache and a forward."""
    device = DEVICES[DEVICE]
    assert device.memory is not None
    weights = found.footprint.parameters * found.itemsize
    return replace(device, devices=ceil((weights + cache_bytes(found)) / (0.9 * device.memory)))


def studies() -> Iterator[tuple[str, int, int]]:
    yield from ((name, personas, cases) for name in LLAMAS for personas in PERSONAS for cases in CASES)


def size_tables() -> list[str]:
    """Sizes by study, seconds of a row, then what breaks first in each."""
    short, long = ANSWERS
    lines = [
        "| model | personas | cases | rows | a row | store | with `keep: moments` | shards | "
        f"{DEVICE} hours, {short} new tokens | {long} new tokens |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, personas, cases in studies():
        found, other = (outline(name, personas, cases, new) for new in ANSWERS)
        row = row_bytes(found)
        kept = stored_bytes(found, row) - found.rows * row.activations + moments_bytes(found)
        shards = f"{found.shards:,}" if found.shards == other.shards else f"{found.shards:,} ({other.shards:,})"
        lines.append(
            f"| {name} | {personas} | {cases:,} | {found.rows:,} | {size(row.stored)} | "
            f"{size(stored_bytes(found, row))} | {size(kept)} | {shards} | {hours(found)} | {hours(other)} |"
        )
    return [*lines, "", *rates(), "", *breaking()]


def breaking() -> list[str]:
    """What breaks first, and then, in each study where something does."""
    lines = ["| study | new tokens | breaks first | then | what helps with the first |", "|---|---|---|---|---|"]
    enough = []
    for name, personas, cases in studies():
        for new in ANSWERS:
            found = outline(name, personas, cases, new)
            device = holding(found)
            scarce = needs(found, row_bytes(found), row_seconds(found, device), device, MEANS)
            if not scarce[0].breaks:
                enough.append((scarce[0].share, name, personas, cases, new, scarce[0]))
                continue
            first, *others = [need for need in scarce if need.breaks]
            then = ", ".join(f"{need.what} ({need.share:.1f}x)" for need in others)
            told = f"{first.what}: {first.needed} of {first.limit} ({first.share:.1f}x)"
            lines.append(f"| {name}, {personas} x {cases:,} | {new} | {told} | {then} | {first.remedy} |")
    _, name, personas, cases, new, near = max(enough, key=lambda each: each[0])
    said = f"nearest to a limit is {name}, {personas} x {cases:,}, {new} tokens: {near.what}, {near.share:.0%} of it"
    return [*lines, "", f"In the {len(enough)} others of these 16 nothing breaks; {said}."]


def hours(found: Outline) -> str:
    """Of all devices together."""
    device = holding(found)
    whole = found.rows * row_seconds(found, device).whole * device.devices / 3600
    return f"{whole:,.0f}" if whole >= 100 else f"{whole:.2g}"


def rates() -> list[str]:
    """Seconds of a row, and what they wait for."""
    lines = ["| model | devices | new tokens | prompt | answer | the answer waits for |", "|---|---|---|---|---|---|"]
    for name in LLAMAS:
        for new in ANSWERS:
            found = outline(name, PERSONAS[0], CASES[0], new)
            device = holding(found)
            took = row_seconds(found, device)
            lines.append(
                f"| {name} | {device.devices:g} | {new} | {duration(took.prompt)} a row | "
                f"{duration(took.answer)} a row | {took.bound} |"
            )
    return lines


if __name__ == "__main__":
    sys.exit(main())
