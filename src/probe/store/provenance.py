"""Which run captured a row, and on what. Knows run records; reads no activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from probe.store.names import require_known
from probe.store.views import View

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("row_id", "shard", "runs", "time", "device", "dtype", "batch_size", "versions", "imported")


def provenance_table(view: View, rows: View | Sequence[str] | None, runs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One line per row in ``COLUMNS``, in the order of ``rows``: row ids, a selection, or None for all of ``view``.

    Raises:
        UnknownName: a row id that is not in ``view``.
    """
    import pandas as pd

    located = {row.planned.cell.row_id: row.located for row in (rows if isinstance(rows, View) else view).rows}
    asked = list(located) if rows is None or isinstance(rows, View) else list(rows)
    for row_id in asked:
        require_known("row", row_id, located)
    by_shard: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for run in runs:
        for commit in run.get("shards", ()):
            by_shard.setdefault(commit["name"], []).append((run, commit))
    lines = []
    for row_id in asked:
        shard = located[row_id].shard.name
        commits = by_shard.get(shard, [])
        run, commit = commits[0] if commits else ({}, {})
        lines.append(
            {
                "row_id": row_id,
                "shard": shard,
                "runs": tuple(run["id"] for run, _ in commits),
                "time": commit.get("time", run.get("started")),
                "device": run.get("device"),
                "dtype": run.get("dtype"),
                "batch_size": commit.get("batch_size", run.get("batch_size")),
                "versions": run.get("versions"),
                "imported": bool(run.get("imported")),
            }
        )
    return pd.DataFrame(lines, columns=pd.Index(COLUMNS), dtype=object)
