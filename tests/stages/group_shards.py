"""Shards in processes that hold a model together, one of which dies or computes otherwise. Knows the task of workers.

``elsewhere.TASK`` is set to one of these; a file beside the store says that it has happened.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from probe.engines import Ticket
from probe.engines.groups import rank
from probe.models.hf import ForwardInputs
from probe.stages.workers import run_shard

_LATE = 30
"""Forwards of a process, after which it is within its second shard or a later one."""

_logits_in = ForwardInputs.logits_in
_seen = 0


def dying(opening: str, ticket: Ticket) -> Mapping[str, Any]:
    """The second process is ended, once, in the middle of a shard."""
    mark = Path(json.loads(opening)["store"]).with_name("died")

    def counted(output: Any, at: Tensor) -> Tensor:
        global _seen
        _seen += 1
        if rank() == 1 and _seen > _LATE and ticket.shard > 0 and not mark.exists():
            mark.write_text(str(ticket.shard), "utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        return _logits_in(output, at)

    ForwardInputs.logits_in = staticmethod(counted)
    return run_shard(opening, ticket)


def differing(opening: str, ticket: Ticket) -> Mapping[str, Any]:
    """The second process reads other logits from the second shard on, by less than changes any token."""

    def other(output: Any, at: Tensor) -> Tensor:
        return _logits_in(output, at) * (1 + 1e-6 * (rank() == 1 and ticket.shard > 0))

    ForwardInputs.logits_in = staticmethod(other)
    return run_shard(opening, ticket)
