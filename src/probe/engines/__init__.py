"""Where shards run. Knows shards, order, death and interruption; knows nothing of what a shard computes."""

from probe.engines.local import progress, run_local
from probe.engines.specs import ENGINES, Engine
from probe.engines.supervision import Listener, Pool, RunRefused, supervise
from probe.engines.work import Receipt, Ticket, Work

__all__ = [
    "ENGINES",
    "Engine",
    "Listener",
    "Pool",
    "Receipt",
    "RunRefused",
    "Ticket",
    "Work",
    "progress",
    "run_local",
    "supervise",
]
