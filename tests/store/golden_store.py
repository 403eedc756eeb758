"""Write the golden store of schema persona-acts/1, and beside it what a reader must find, taken from the records alone.

    python tests/store/golden_store.py OUT

It was run once, before the first release; the files under `tests/store/golden/` are never written again, so that every
later version is held to what this one wrote.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import store_samples as samples

from probe.store import StoreLock, open_writer
from probe.store.seal import seal_store
from probe.values import Cell, CellRecord, Condition, LabelRead, PlannedRow, sha256_of


def main(out: Path) -> None:
    plan = samples.plan()
    late = Cell("nurse", "case-0000", Condition(wording=2, rotation=1, seed=3))
    rows = (*plan.rows, PlannedRow(late, 3, sha256_of("late"), sha256_of([9]), 6, None, None))
    lost = Cell("none", "case-0001", Condition(placement="user"))
    rows = (*rows, PlannedRow(lost, 3, sha256_of("lost"), sha256_of([8]), 6, None, None))
    plan = replace(plan, rows=rows)
    store = out / "v1"
    with StoreLock.acquire(store) as lock:
        writer = open_writer(store, samples.manifest("bfloat16"), lock=lock)
        writer.start_run({"argv": ["golden"], "versions": {"persona-probe": "0.1.0"}})
        old = samples.plan(n_cases=2, edition="an older text: ")
        writer.add_plan(old)
        writer.commit([samples.record(row, dtype="bfloat16") for row in old.rows])
        writer.add_plan(plan, on_changed="recapture")
        for shard in range(4):
            committed = [row for row in plan.rows if row.shard == shard and row.cell != lost]
            writer.commit([record(row) for row in committed], {"batch_size": 4})
        writer.fail(lost, "PromptTooLong", "9120 tokens > 8192", prompt_sha=sha256_of("lost"))
        writer.write_readout({"unembed.weight": np.arange(24, dtype=np.float32).reshape(3, 8)}, {"norm.kind": "rms"})
        writer.finish_run(3)
    seal_store(store, incomplete=True)
    for rest in (".lock", "tmp"):
        path = store / rest
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    expected = [expectation(record(row)) for row in plan.rows if row.cell != lost]
    (out / "v1.expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def record(row: PlannedRow) -> CellRecord:
    """A sample whose label reads tell the variants of each label."""
    made = samples.record(row, dtype="bfloat16", answer=row.cell.case != "case-0003")
    return replace(made, labels={site: with_variants(read) for site, read in made.labels.items()})


def with_variants(read: LabelRead) -> LabelRead:
    logp = tuple(float(x) for x in read.logp)
    ids = ((11, 21), (12,), (13, 23))
    return replace(
        read, variant_ids=ids, variant_logp=tuple(tuple(x - 0.7 for _ in k) for x, k in zip(logp, ids, strict=True))
    )


def expectation(made: CellRecord) -> dict[str, Any]:
    """Every value of a record, in JSON; numbers of bfloat16 and float32 are exact in it."""
    return {
        "persona": made.cell.persona,
        "case": made.cell.case,
        "row_id": made.cell.row_id,
        "resid": {site: np.asarray(x, np.float32).tolist() for site, x in made.resid.items()},
        "logp": {site: np.asarray(read.logp, np.float32).tolist() for site, read in made.labels.items()},
        "variants": {
            site: [
                list(map(list, read.variant_ids)),
                [[float(np.float32(x)) for x in row] for row in read.variant_logp],
            ]
            for site, read in made.labels.items()
        },
        "positions": dict(made.positions),
        "gen_text": made.gen_text,
        "label": made.label,
        "letter": made.letter,
        "status": made.status,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
