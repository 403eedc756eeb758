"""How a capture treats what it finds, and how it ended. Knows numbers and names; runs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from probe.engines.specs import Engine
from probe.stages.absent_sites import Absent
from probe.store import OnChanged, Share
from probe.study import Study


@dataclass(frozen=True)
class CapturePolicy:
    """How a capture treats what it finds.

    ``on_changed`` is what happens to cells whose text was edited under its id (see :class:`probe.store.OnChanged`).
    ``share`` makes this one of several writers. ``allow_nonfinite`` stores rows with NaN or infinities, marked, which
    otherwise fail. ``strict_numerics`` refuses to continue a store under other versions, devices or batch sizes.
    ``retry_failed`` captures rows again that failed before, such as those that ran out of memory. ``engine`` is where
    the shards run, by default in this process.
    """

    on_changed: OnChanged = "error"
    share: Share | None = None
    allow_nonfinite: bool = False
    strict_numerics: bool = False
    retry_failed: bool = False
    engine: Engine = field(default_factory=Engine)

    def of(self, study: Study) -> CapturePolicy:
        """The same for the workers of a study: groups of processes where they hold its model together."""
        return replace(self, engine=replace(self.engine, group=study.model.tensor_parallel or 1))

    def tries_again(self, kind: str) -> bool:
        """Whether rows that failed in this way are captured again."""
        return self.retry_failed or (self.allow_nonfinite and kind == "NonFinite")


@dataclass(frozen=True)
class CaptureOutcome:
    """How a capture ended: rows planned, committed (``resumed`` of them by earlier runs) and failed, and seconds.

    ``left`` rows are still to be captured by this writer; where several share the store, the others' do not count.
    ``absent`` counts the rows of this run that lack an answer site, by site and reason.
    """

    store: str | Path
    planned: int
    committed: int
    resumed: int
    failed: int
    seconds: float = field(compare=False)
    left: int = 0
    share: Share | None = None
    absent: Absent = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """0 where every row was captured (by one of several writers: all of its own, and no row failed), else 3."""
        done = self.left == 0 and self.failed == 0 if self.share else self.committed == self.planned
        return 0 if done else 3
