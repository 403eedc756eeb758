"""What a study needs beside what there is, what breaks first, and what helps. Knows sizes and limits."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from probe.stages.costs import working_bytes
from probe.stages.hardware import Hardware
from probe.stages.outlines import Outline, RowBytes, moments_bytes
from probe.stages.throughput import RowSeconds

PLANNED_BYTES = 5300
"""Main memory of a planned row and its prompt, in every process that plans (measured: 3.6 to 5.3 KB)."""

PLANNED_SECONDS = 7e-4
"""To render a prompt and check its labels, likewise."""

PROBED_BYTES = 20
"""Peak bytes of a nested ridge for each value of one layer at one position (measured: 17 to 22)."""

COMMITTED_BYTES = 7e8
"""A second: packed, hashed, written and made durable by one worker (measured: docs/performance.md)."""

MANY_FILES = 100_000
"""Shards in one folder (assumed): listing and opening then take minutes, at .8 ms a shard (docs/performance.md)."""

_SPARE = 0.9


@dataclass(frozen=True)
class Means:
    """What there is: bytes of disk and of main memory, workers, and the days that a capture may take."""

    disk: float
    memory: float
    workers: int = 1
    days: float = 7


@dataclass(frozen=True)
class Need:
    """One quantity against its limit, both in words and as the share that is taken; ``basis`` is how it is known."""

    what: str
    share: float
    needed: str
    limit: str
    basis: str
    remedy: str

    @property
    def breaks(self) -> bool:
        """Whether it is more than there is."""
        return self.share > 1


def needs(
    outline: Outline, row: RowBytes, took: RowSeconds | None, device: Hardware | None, means: Means
) -> list[Need]:
    """Every quantity, the scarcest first; those of time and of the device only where these are known."""
    found = [_disk(outline, row, means), _files(outline), *_host(outline, means)]
    if took is not None and device is not None:
        found += [_time(outline, took, device, means), _writing(row, took)]
        if device.memory is not None:
            found.append(_device(outline, device))
    return sorted(found, key=lambda need: -need.share)


def stored_bytes(outline: Outline, row: RowBytes) -> int:
    """Of the whole store: shards and plan."""
    return outline.rows * (row.stored + row.plan)


def cache_bytes(outline: Outline) -> int:
    """Keys and values, and what a forward holds beside them, for a full batch at the end of its answers."""
    rows = max(min(outline.batch, outline.shard_rows), 1)
    columns = ceil(outline.tokens.prompt + outline.tokens.new)
    fed = ceil(outline.tokens.group * outline.tokens.fed)
    held = rows * columns * outline.footprint.cached * outline.itemsize
    return held + working_bytes(outline.footprint, rows, fed, columns, outline.itemsize)


def _disk(outline: Outline, row: RowBytes, means: Means) -> Need:
    needed, moments = stored_bytes(outline, row), moments_bytes(outline)
    remedies = ["fewer capture.layers or capture.positions"]
    if outline.stored_itemsize > 2:
        remedies.append(f"capture.dtype: bfloat16 ({size(needed - outline.rows * row.activations / 2)})")
    kept = outline.rows * (row.stored - row.activations + row.plan) + moments
    if not outline.moments and kept < needed:
        remedies.append(f"capture.keep: moments ({size(kept)})")
    basis = "counted"
    return Need("disk", needed / means.disk, size(needed), size(means.disk), basis, "; ".join(remedies))


def _files(outline: Outline) -> Need:
    remedy = "fewer layers or positions (more rows fit into a shard), or one study for each part of the personas"
    share, limit = outline.shards / MANY_FILES, f"{MANY_FILES:,} (assumed)"
    return Need("shards in a folder", share, f"{outline.shards:,}", limit, "counted", remedy)


def _host(outline: Outline, means: Means) -> list[Need]:
    plan, probed = outline.rows * PLANNED_BYTES, outline.rows * outline.width * PROBED_BYTES
    parts = ceil(plan / (_SPARE * means.memory))
    remedy = f"{parts} studies, each with its part of the personas" if parts > 1 else "fewer cases (--limit)"
    rows = _SPARE * means.memory / (outline.width * PROBED_BYTES)
    judged = (
        f"probe a selection of at most {rows:,.0f} rows; directions need no probes and work on capture.keep: moments"
    )
    basis = "measured bytes of a row"
    return [
        Need("memory of the plan", plan / means.memory, size(plan), size(means.memory), basis, remedy),
        Need("memory of a probe", probed / means.memory, size(probed), size(means.memory), basis, judged),
        Need(
            "time to plan",
            outline.rows * PLANNED_SECONDS / 3600,
            duration(outline.rows * PLANNED_SECONDS),
            "1 h (assumed)",
            "measured seconds of a row",
            "several studies, planned side by side",
        ),
    ]


def _time(outline: Outline, took: RowSeconds, device: Hardware, means: Means) -> Need:
    whole = outline.rows * took.whole
    allowed = 86400 * means.days
    workers = ceil(whole / allowed)
    remedy = f"--workers {workers}" if workers > means.workers else "more workers"
    if took.answer > took.prompt:
        remedy += ", or shorter answers (generation.max_new_tokens)"
        remedy += ", or a larger batch" if took.bound != "arithmetic" else ""
    workers_text = f"{means.workers:,} workers" if means.workers > 1 else "1 worker"
    return Need(
        "time",
        whole / means.workers / allowed,
        f"{duration(whole / means.workers)} on {workers_text} with {device.devices:g} x {device.name}",
        f"{means.days:g} days (assumed)",
        "modelled",
        remedy,
    )


def _writing(row: RowBytes, took: RowSeconds) -> Need:
    rate = row.stored / max(took.whole, 1e-9)
    limit, remedy = f"{size(COMMITTED_BYTES)}/s (measured)", "fewer capture.layers or capture.positions"
    return Need("writing of a worker", rate / COMMITTED_BYTES, f"{size(rate)}/s", limit, "modelled", remedy)


def _device(outline: Outline, device: Hardware) -> Need:
    assert device.memory is not None
    weights = outline.footprint.parameters * outline.itemsize
    needed, there = weights + cache_bytes(outline), device.devices * device.memory * _SPARE
    more = ceil(needed / (_SPARE * device.memory))
    remedy = f"{more} devices that hold the model together (--device-map auto)"
    remedy = f"a smaller batch, or {remedy}" if weights < there else remedy
    return Need("memory of the device", needed / there, size(needed), size(there), "counted", remedy)


def size(count: float) -> str:
    """Bytes as people read them, in powers of 1000."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    for limit, unit, of in ((1, "ms", 1e-3), (120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / of:.3g} {unit}"
    return f"{seconds / 86400:,.3g} days"
