"""How long a pass takes, by operations and bytes. Knows an outline and a device's rates; measures nothing.

A forward multiplies every token that it feeds with the weights, two operations each, and every two tokens of which one
attends to the other with each other; it reads the weights once, and the keys and values of its rows; and what is
neither (norms, rotations, activation functions, sums) reads and writes each token's vectors. These three follow one
another, and each takes as long as the slower of computing and moving. A prompt is fed in large
forwards, where computing is the slower one; an answer token by token, each step for all rows of the batch, where it is
reading, until the batch is large. On a device that computes while the host prepares, a forward takes at least the
host's time; elsewhere that is added.
"""

from __future__ import annotations

from dataclasses import dataclass

from probe.stages.hardware import Hardware
from probe.stages.outlines import Outline

_MOVED = 4
"""How often a block reads or writes what it holds of a token beside its products (counted in transformers' Llama: 32
times the width and 5 times the inner width, of 3 and 3 that it holds)."""

ROW = 1e-3
"""Seconds that the host needs for a row, to parse its answer and pack it (measured by ``benchmarks/sizing.py``)."""


@dataclass(frozen=True)
class RowSeconds:
    """Seconds of one row on one device (or on those that hold the model together): ``prompt`` and ``answer``."""

    prompt: float
    answer: float
    bound: str
    """What the steps of the answer wait for: arithmetic, memory or the host."""

    @property
    def whole(self) -> float:
        """Of the row."""
        return self.prompt + self.answer


def row_seconds(outline: Outline, hardware: Hardware) -> RowSeconds:
    """Seconds of a row on average, if every answer takes the tokens that the outline says."""
    tokens, footprint = outline.tokens, outline.footprint
    group, moved = max(tokens.group, 1e-9), _MOVED * footprint.fed * outline.blocks * outline.itemsize
    prompt = _Forward(
        linear=group * (tokens.fed * footprint.per_token + footprint.per_read),
        attention=group * tokens.pairs * footprint.per_pair,
        weights=footprint.streamed * outline.itemsize,
        cached=group * tokens.prompt * footprint.cached * outline.itemsize,
        moved=group * tokens.fed * moved,
    )
    batch = max(min(outline.batch, outline.shard_rows, outline.rows), 1)
    rounds = -(-outline.shard_rows // batch) * batch / outline.shard_rows  # the last rows of a shard run with fewer
    columns = tokens.prompt + tokens.new / 2
    step = _Forward(
        linear=batch * (footprint.per_token + footprint.per_read),
        attention=batch * columns * footprint.per_pair,
        weights=footprint.streamed * outline.itemsize,
        cached=batch * columns * footprint.cached * outline.itemsize,
        moved=batch * moved,
    )
    steps = max(tokens.new - 1, 0)  # the first token comes from the prompt's forward
    took, bound = step.seconds(hardware, outline.blocks, hardware.step_flops)
    return RowSeconds(
        ROW + prompt.seconds(hardware, outline.blocks)[0] / group,
        steps * rounds * took / batch,
        bound if steps else "",
    )


@dataclass(frozen=True)
class _Forward:
    """Multiplications with weights and of attention; bytes of weights, of keys and values, and of all the rest."""

    linear: float
    attention: float
    weights: float
    cached: float
    moved: float

    def seconds(self, hardware: Hardware, blocks: int, flops: float | None = None) -> tuple[float, str]:
        """How long it takes, and what it waits for most."""
        usual = hardware.flops * hardware.compute
        rate, speed = (flops or hardware.flops) * hardware.compute, hardware.bandwidth * hardware.stream
        arithmetic = 2 * self.linear / rate, 2 * self.attention / usual
        memory = self.weights / speed, self.cached / speed
        rest = self.moved / speed
        device = sum(map(max, arithmetic, memory)) + rest
        host = blocks * hardware.launch
        bound = "arithmetic" if sum(arithmetic) >= sum(memory) + rest else "memory"
        if hardware.overlaps:
            return max(device, host), "the host" if host > device else bound
        return device + host, "the host" if host > device else bound
