"""Shards computed and committed, wherever that is. Knows batches and what is told of them; knows no order of shards."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from probe.stages.absent_sites import count_absent
from probe.store import StoreWriter

if TYPE_CHECKING:
    from probe.capture import Capturer, Job, ShardResult


@dataclass(frozen=True, eq=False)
class Computed:
    """A shard that is not committed yet: its jobs, what became of them, and the seconds that it took."""

    jobs: Sequence[Job]
    result: ShardResult
    seconds: float

    @property
    def digest(self) -> bytes:
        """The sha256 of what was found: rows, answers, label log-probabilities and activations, to the bit."""
        found = hashlib.sha256()
        for record in self.result.records:
            found.update(f"{record.cell.row_id} {record.gen_tokens} {record.positions}".encode())
            for site, read in sorted(record.labels.items()):
                found.update(f"{site} {read.mass!r} {read.entropy!r}".encode() + read.logp.tobytes())
            for stream, arrays in sorted({"resid": record.resid, **record.streams}.items()):
                for position, array in sorted(arrays.items()):
                    found.update(f"{stream} {position}".encode() + array.tobytes())
        for failure in self.result.failed:
            found.update(f"{failure.job.row.cell.row_id} {failure.kind}".encode())
        return found.digest()


class ShardRunner:
    """Computes shards one after the other with one loaded model, and commits them to one store.

    Where memory runs out the shard goes on with half the batch, and the next one begins with it. Without a writer it
    commits nothing.
    """

    def __init__(self, capturer: Capturer, writer: StoreWriter | None) -> None:
        self._capturer = self._fitting = capturer
        self._writer = writer

    def compute(self, jobs: Sequence[Job], on_rows: Callable[[int], None]) -> Computed:
        """One shard; ``on_rows`` is told of each row that has ended."""
        from probe.capture import capture_shard

        started = time.monotonic()
        result = capture_shard(self._fitting, jobs, on_rows)
        if len(result.batches) > 1:
            self._fitting = replace(self._capturer, batch_size=result.batches[1])
        return Computed(jobs, result, time.monotonic() - started)

    def commit(self, shard: Computed) -> dict[str, Any]:
        """Make a shard's rows durable, put those that failed on record, and return what is told of the shard."""
        assert self._writer is not None
        result = shard.result
        facts: dict[str, Any] = {
            "shard": shard.jobs[0].row.shard,
            "batch_size": self._capturer.batch_size,
            "batches": list(result.batches),
            "seconds": round(shard.seconds, 3),
        }
        if absent := count_absent(record.extra for record in result.records):
            facts["absent_sites"] = absent
        if result.records:
            self._writer.commit(result.records, facts)
        for failure in result.failed:
            row = failure.job.row
            self._writer.fail(row.cell, failure.kind, failure.reason, prompt_sha=row.prompt_sha)
        return facts


def told_of_memory(batches: Sequence[int]) -> str:
    """That a shard ran out of memory, in a sentence; empty where it did not."""
    if len(batches) < 2:
        return ""
    return (
        f"out of memory with batches of {batches[0]}; the rest of the shard ran with {batches[-1]}, and the next "
        f"begins with {batches[1]} (the run's record has each; --batch-size sets another)"
    )
