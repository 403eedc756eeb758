"""Rows that have not entered yet, in the order and the groups in which they will. Knows lengths; runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from probe.capture.batching import PassInput
from probe.capture.prefixes import Cluster

_FED_AT_ONCE = {"cpu": 1024}
_FED_AT_ONCE_ELSEWHERE = 4096
"""About how many tokens one prefill feeds: more do not run faster, and take memory."""


def fed_at_once(device: str) -> int:
    """About how many tokens one prefill feeds on a kind of device; a longer prompt is fed alone."""
    return _FED_AT_ONCE.get(device, _FED_AT_ONCE_ELSEWHERE)


@dataclass(frozen=True)
class Group:
    """Rows that enter together, by index, and the cluster whose first ``n_prefix`` tokens they share."""

    rows: tuple[int, ...]
    cluster: Cluster


class Waiting:
    """Clusters of rows, taken in groups of neighbours in length. ``equal`` takes only rows of equal length together."""

    def __init__(self, rows: Sequence[PassInput], clusters: Sequence[Cluster], device: str, *, equal: bool) -> None:
        self._rows = rows
        self._clusters = [(cluster, list(cluster.rows)) for cluster in clusters]
        self._fed_at_once = fed_at_once(device)
        self._equal = equal

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self._clusters)

    @property
    def longest(self) -> int:
        """Prompt tokens of the longest row, 0 without any."""
        return max((self._rows[own[0]].length for _, own in self._clusters), default=0)

    def has_more_of(self, cluster: Cluster) -> bool:
        """Whether rows of the cluster that was taken from last still wait."""
        return bool(self._clusters) and self._clusters[0][0] is cluster

    def take(self, free: int) -> Group:
        """The next group of at most ``free`` rows."""
        cluster, rows = self._clusters[0]
        width = self._rows[rows[0]].length - cluster.n_prefix
        most = max(1, min(self._fed_at_once // width, free))
        n_groups = -(-len(rows) // most)
        size = -(-len(rows) // n_groups)
        if self._equal:
            same = [row for row in rows if self._rows[row].length == self._rows[rows[0]].length]
            size = min(most, len(same))
        taken = tuple(rows[:size])
        del rows[:size]
        if not rows:
            del self._clusters[0]
        return Group(taken, cluster)
