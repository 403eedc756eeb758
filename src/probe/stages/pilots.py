"""What the rows of a store took to capture. Knows run records and the table of cells; computes nothing with a model."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from probe.store import open_store
from probe.values import ProbeError


@dataclass(frozen=True)
class Pilot:
    """``rows`` that were captured in ``seconds`` of their workers, waiting included, with ``new`` tokens on average."""

    rows: int
    seconds: float
    new: float
    devices: tuple[str, ...]
    batches: tuple[int, ...]

    @property
    def row_seconds(self) -> float:
        """Of one row, on one worker."""
        return self.seconds / self.rows


def pilot_of(path: str | Path) -> Pilot | None:
    """What was measured in a store; None where there is none, or nothing was captured."""
    with suppress(ProbeError, OSError):
        store = open_store(path, warn=False)
        found = [(run, shard) for run in store.runs() for shard in run.get("shards", ()) if shard.get("seconds")]
        rows = sum(shard["rows"] for _, shard in found)
        if rows:
            return Pilot(
                rows,
                sum(shard["seconds"] for _, shard in found),
                float(store.table()["n_gen"].mean()),
                tuple(sorted({str(run.get("device", "unknown")) for run, _ in found})),
                tuple(sorted({int(shard["batch_size"]) for _, shard in found if "batch_size" in shard})),
            )
    return None
