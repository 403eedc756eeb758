"""What a run needs: bytes of disk and of memory, from plan, configuration and headers. Knows sizes; loads no weights.

It assumes the most that the study allows: answers of ``max_new_tokens`` and every site present.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probe.capture import Job
    from probe.models.footprint import Footprint
    from probe.stages.resolution import Resolved

ROW_OVERHEAD_BYTES = 4096
"""Rough bytes of a row beside its residuals: tokens, text, label reads, checksums and its line of the row table."""

LIBRARIES = 430 * 2**20
"""What the process of a run on the CPU holds beside its plan, as measured: interpreter, torch, transformers."""

_PLANNED_TOKEN, _PLANNED_ROW = 40, 4096
"""What a plan holds of each prompt token (an integer and a reference to it, and its text), and of each row."""

_FP32 = 4
_LOGIT_COPIES = 3
"""The logits of a step, in fp32, and what is made of them to read labels."""

_SHARDS_HELD = 3
"""The shard that computes, and the one that is written, as records and packed."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a run. ``weights``, ``cache`` and ``working`` lie on the device that computes, ``records``
    in main memory; on the CPU these are one, and ``process`` is what the process itself holds. ``files`` are weights
    that are held beside what is made of them, before anything runs."""

    process: int
    weights: int
    files: int
    cache: int
    working: int
    records: int
    on_cpu: bool

    @property
    def on_device(self) -> int:
        """At the peak on the device that computes."""
        running = self.cache + self.working
        if not self.on_cpu:
            return self.weights + running
        return self.process + self.weights + max(running + self.records, self.files)


def disk_bytes(resolved: Resolved, jobs: Sequence[Job]) -> int:
    """What the rows take at most, beside the plan."""
    tokens = sum(len(job.prompt.token_ids) + resolved.study.generation.max_new_tokens for job in jobs)
    return len(jobs) * (resolved.row_bytes + ROW_OVERHEAD_BYTES) + 4 * tokens


def memory_bytes(resolved: Resolved, jobs: Sequence[Job], rows_per_shard: int, *, libraries: int = LIBRARIES) -> Memory:
    """The peak of a run that holds ``batch_size`` rows at a time, in a process that holds its ``libraries``."""
    from probe.stages.resolution import BYTES

    footprint, itemsize = resolved.footprint, BYTES[resolved.compute_dtype]
    rows = min(resolved.batch_size, len(jobs))
    return Memory(
        process=libraries + sum(_PLANNED_ROW + _PLANNED_TOKEN * len(job.prompt.token_ids) for job in jobs),
        weights=resolved.weight_bytes,
        files=resolved.source.weight_bytes if footprint.stored != resolved.compute_dtype else 0,
        cache=rows * _columns(resolved, jobs) * footprint.cached * itemsize,
        working=working_bytes(footprint, rows, _fed(resolved, jobs), _columns(resolved, jobs), itemsize),
        records=_SHARDS_HELD * min(rows_per_shard, len(jobs)) * resolved.row_bytes,
        on_cpu=resolved.device == "cpu",
    )


def working_bytes(footprint: Footprint, rows: int, fed: int, columns: int, itemsize: int) -> int:
    """What a forward holds beside weights and cache: ``fed`` tokens inside a block, or one layer's keys and values of
    ``rows`` as attention takes them, and the logits."""
    inside = max(fed * footprint.fed, rows * columns * footprint.attended) * itemsize
    return inside + rows * footprint.vocab * (itemsize + _LOGIT_COPIES * _FP32)


def _columns(resolved: Resolved, jobs: Sequence[Job]) -> int:
    """The tokens that the cache has room for in each row: those of the longest prompt and answer."""
    longest = max((len(job.prompt.token_ids) for job in jobs), default=0) + resolved.study.generation.max_new_tokens
    return longest if resolved.shape.context is None else min(longest, resolved.shape.context)


def _fed(resolved: Resolved, jobs: Sequence[Job]) -> int:
    """How many tokens the largest prefill feeds."""
    from probe.capture.waiting import fed_at_once

    longest = max((len(job.prompt.token_ids) for job in jobs), default=0)
    return min(max(fed_at_once(resolved.device), longest), resolved.batch_size * longest)


def free_bytes() -> int:
    """Main memory that can be had without swapping; where the system does not tell, half of what there is."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text("ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
