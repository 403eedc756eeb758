"""Where shards run. Knows shards, order and interruption; knows nothing of what a shard computes."""

from probe.engines.local import run_local

__all__ = ["run_local"]
