"""How many rows run at a time, where the study leaves it open. Knows memory; a device is asked through a meter.

It is settled once, before a store has a plan, and written into the plan; whoever continues the store takes it from
there. Memory that runs out all the same halves it for the rest of a shard, and once for the shards that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from probe.stages.costs import free_bytes, memory_bytes
from probe.stages.preparation import Preparation
from probe.stages.resolution import BYTES
from probe.store.places import Place, open_place
from probe.store.progress import plan_names, read_plan
from probe.values import StoreError

if TYPE_CHECKING:
    from probe.capture import Capturer, Job
    from probe.models.protocol import ModelFacts

MOST = 128
"""Half of the largest shard, so that others are there to follow rows that leave."""

_PROBED = (2, 8)
_SPARE = 0.8
"""Part of the free memory that is used: allocators leave gaps, and other processes grow."""


class Meter(Protocol):
    """What the devices that hold a model say of their memory, one after the other."""

    @property
    def shares(self) -> tuple[float, ...]:
        """The part of the keys and values that each device holds."""
        ...

    def free(self) -> tuple[int, ...]:
        """Bytes that this process may still take of each."""
        ...

    def peak(self, work: Callable[[], object]) -> tuple[int, ...]:
        """Bytes that some work held at most on each, beside what was held before it."""
        ...


def is_open(preparation: Preparation) -> bool:
    """Whether the study leaves the batch size to us."""
    return preparation.resolved.study.capture.batch_size == "auto"


def with_batch(preparation: Preparation, size: int) -> Preparation:
    """The same preparation, with so many rows at a time; the cut into shards stays."""
    resolved = replace(preparation.resolved, batch_size=size)
    return replace(preparation, resolved=resolved, plan=replace(preparation.plan, batch_size=size))


def planned_batch(place: Place) -> int | None:
    """The batch size of the latest plan of a store; None without one that can be read."""
    with suppress(StoreError):
        if names := plan_names(place):
            return read_plan(place, names[-1]).batch_size
    return None


def with_open_batch(preparation: Preparation, path: str | Path) -> Preparation:
    """The preparation with the batch size that a run would find, as far as that is known without the model."""
    if not is_open(preparation):
        return preparation
    place = open_place(path)
    planned = planned_batch(place) if place.list("plan") else None
    on_cpu = preparation.resolved.device == "cpu"
    size = planned or (fitting_batch(preparation, free_bytes()) if on_cpu else None)
    return preparation if size is None else with_batch(preparation, size)


def fitting_batch(preparation: Preparation, free: int) -> int:
    """The size that the device's rule names, halved until what a run is estimated to add fits into free memory."""
    resolved, size = preparation.resolved, preparation.resolved.batch_size
    while size > 1:
        estimated = memory_bytes(replace(resolved, batch_size=size), preparation.cells.jobs, 0, process=0)
        if estimated.on_device <= _SPARE * free:
            break
        size //= 2
    return size


def measured_batch(preparation: Preparation, capturer: Capturer, meter: Meter) -> int:
    """The largest power of two that fits into free memory, from what the longest rows hold while they run.

    A few of them run twice, in two numbers, with two new tokens: the difference is what a row holds. The keys and
    values of the rest of its answer are added. Of several devices the one that holds fewest rows decides.
    """
    jobs = sorted(preparation.cells.jobs, key=lambda job: -len(job.prompt.token_ids))[: _PROBED[1]]
    if len(jobs) < _PROBED[1]:
        return max(len(jobs), 1)
    few, more = (meter.peak(_pass_of(capturer, jobs[:size])) for size in _PROBED)
    resolved = preparation.resolved
    answer = resolved.study.generation.max_new_tokens * resolved.footprint.cached * BYTES[resolved.compute_dtype]
    parts = zip(few, more, meter.free(), meter.shares, strict=True)
    fits = min(_rows_within(free, one, other, share * answer) for one, other, free, share in parts)
    return next((2**power for power in range(MOST.bit_length() - 1, 0, -1) if 2**power <= fits), 1)


def _rows_within(free: int, few: int, more: int, answer: float) -> float:
    """How many rows one device has room for, by what it held under the probed numbers of rows."""
    row = max(more - few, 0) // (_PROBED[1] - _PROBED[0])
    fixed = max(few - _PROBED[0] * row, 0)
    return (_SPARE * free - fixed) / max(row + answer, 1)


def _pass_of(capturer: Capturer, jobs: Sequence[Job]) -> Callable[[], Any]:
    from probe.capture import capture_shard

    short = replace(capturer, batch_size=len(jobs), settings=replace(capturer.settings, max_new_tokens=2))
    return lambda: capture_shard(short, jobs, lambda rows: None)


@dataclass(frozen=True)
class CudaMeter:
    """The memory of CUDA devices, of which torch's allocator holds a part in reserve."""

    devices: tuple[Any, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, facts: ModelFacts) -> CudaMeter:
        """That of the devices that compute with a model."""
        laid = facts.device_map
        shares = {facts.device: 1.0} if laid is None else laid.shares(facts.device)
        return cls(tuple(shares), tuple(shares.values()))

    def free(self) -> tuple[int, ...]:
        """What each device has free, and what torch holds of it unused."""
        import torch

        reserves = [torch.cuda.memory_reserved(each) - torch.cuda.memory_allocated(each) for each in self.devices]
        frees = [torch.cuda.mem_get_info(each)[0] for each in self.devices]
        return tuple(int(free) + int(reserve) for free, reserve in zip(frees, reserves, strict=True))

    def peak(self, work: Callable[[], object]) -> tuple[int, ...]:
        """By torch's own count of what is allocated."""
        import torch

        before = [torch.cuda.memory_allocated(each) for each in self.devices]
        for each in self.devices:
            torch.cuda.reset_peak_memory_stats(each)
        work()
        return tuple(
            int(torch.cuda.max_memory_allocated(each)) - int(held)
            for each, held in zip(self.devices, before, strict=True)
        )
