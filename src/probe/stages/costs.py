"""What a run needs: bytes of disk and of memory, from plan, configuration and headers. Knows sizes; loads no weights.

It assumes the most that the study allows: answers of ``max_new_tokens`` and every site present.
"""

from __future__ import annotations

import os
import resource
import sys
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

_FP32 = 4
_LOGIT_COPIES = 3
"""The logits of a step, in fp32, and what is made of them to read labels."""

_SHARDS_HELD = 3
"""The shard that computes, and the one that is written, as records and packed."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a run. ``weights``, ``cache`` and ``working`` lie on the device that computes, ``records``
    in main memory; on the CPU these are one, and ``process`` is what the process holds before it loads the model.
    ``files`` are weights that are held beside what is made of them, before anything runs."""

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
    return tensor_bytes(resolved, jobs) + len(jobs) * ROW_OVERHEAD_BYTES + 4 * tokens


def tensor_bytes(resolved: Resolved, jobs: Sequence[Job]) -> int:
    """What the activations take at most: of every row, or of every sum that a shard holds in place of its rows."""
    from probe.stages.outlines import set_bytes

    capture = resolved.study.capture
    if capture.keep == "rows":
        return len(jobs) * resolved.row_bytes
    sets = {(job.row.shard, job.row.cell.persona, job.row.cell.condition, job.group) for job in jobs}
    widths = [resolved.widths[point.stream] for point in resolved.points]
    return len(sets) * set_bytes(widths, len(capture.positions), capture.covariance)


def memory_bytes(resolved: Resolved, jobs: Sequence[Job], rows_per_shard: int, *, process: int) -> Memory:
    """The peak of a run that holds ``batch_size`` rows at a time, in a process that holds ``process`` bytes before."""
    from probe.stages.resolution import BYTES

    footprint, itemsize = resolved.footprint, BYTES[resolved.compute_dtype]
    rows = min(resolved.batch_size, len(jobs))
    return Memory(
        process=process,
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
    """The tokens that the cache has room for in each row, where the longest prompt has the longest answer."""
    from probe.capture.slots import columns_at_most

    longest = max((len(job.prompt.token_ids) for job in jobs), default=0)
    new, context = resolved.study.generation.max_new_tokens, resolved.shape.context
    return columns_at_most(longest, new if context is None else max(min(new, context - longest), 0))


def _fed(resolved: Resolved, jobs: Sequence[Job]) -> int:
    """How many tokens the largest prefill feeds."""
    from probe.capture.waiting import fed_at_once

    longest = max((len(job.prompt.token_ids) for job in jobs), default=0)
    return min(max(fed_at_once(resolved.device), longest), resolved.batch_size * longest)


def held_bytes() -> int:
    """Main memory that this process holds at the moment; where the system does not tell, the most that it ever held."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def free_bytes() -> int:
    """Main memory that can be had without swapping; where the system does not tell, half of what there is."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text("ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
