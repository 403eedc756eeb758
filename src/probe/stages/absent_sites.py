"""How many rows lack an answer site, and why. Knows what rows and runs record; reads no tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Absent = Mapping[str, Mapping[str, int]]
"""Site, reason (``probe.values.AbsentSite``), number of rows."""


def count_absent(extras: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Of some rows' ``extra`` how many lack each site, by the reason; empty where none does."""
    pairs = Counter(pair for extra in extras for pair in (extra.get("absent_sites") or {}).items())
    found: dict[str, dict[str, int]] = {}
    for (site, reason), n in sorted(pairs.items()):
        found.setdefault(site, {})[reason] = n
    return found


def absent_in_run(run: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """The sum over the shards that a run committed."""
    found: dict[str, dict[str, int]] = {}
    for shard in run.get("shards", ()):
        for site, reasons in (shard.get("absent_sites") or {}).items():
            own = found.setdefault(site, {})
            for reason, n in reasons.items():
                own[reason] = own.get(reason, 0) + n
    return found


def absent_sentences(absent: Absent, rows: int) -> Sequence[str]:
    """One line for each site that rows lack."""
    return [
        f"{site} is absent in {sum(reasons.values()):,} of {rows:,} cells: "
        + ", ".join(f"{n:,} {reason}" for reason, n in reasons.items())
        for site, reasons in absent.items()
    ]
