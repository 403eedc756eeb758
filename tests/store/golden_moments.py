"""Write the golden store of sums of schema persona-acts/1, and beside it what a reader must find in it.

    python -m tests.store.golden_moments OUT

What must be found is reckoned from the rows, value by value and by the text of docs/FORMAT.md, with nothing of the
package. It was run once, before the first release; the files under `tests/store/golden/` are never written again, so
that every later version is held to what this one wrote.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np

from probe.store import Plan, StoreLock, open_writer
from probe.values import Cell, CellRecord, Condition, PlannedRow, sha256_of
from probe.values.blocks import block_of
from tests.store import store_samples as samples

NAME = "v1-moments"
SEED, COVARIANCE = 3, 4
D, LAYERS, HEADS, BLOCK = 7, 2, 3, 1
"""The residual is wider than the second moments, which are projected; the heads, of one block, are not."""

Site = tuple[str, str, int]


def main(out: Path) -> None:
    plan_ = plan()
    records = [record(row) for row in plan_.rows]
    shards = [[one for one, row in zip(records, plan_.rows, strict=True) if row.shard == shard] for shard in range(3)]
    store = out / NAME
    with StoreLock.acquire(store) as lock:
        writer = open_writer(store, manifest(), lock=lock)
        writer.add_plan(plan_)
        for rows in (shards[0][:5], shards[0][5:], *shards):  # one was divided, and is there whole as well
            writer.commit(rows)
    for folder in ("tmp", "runs", "failures"):
        (store / folder).rmdir()
    (store / ".lock").unlink()
    expected = json.dumps(expectations(plan_, records), ensure_ascii=False).replace("}, {", "},\n{")
    (out / f"{NAME}.expected.json").write_text(f"{expected}\n", encoding="utf-8")


def manifest() -> dict[str, Any]:
    found = samples.manifest(layers=LAYERS, d_model=D)
    moments = {"blocks": 16, "seed": SEED, "covariance": COVARIANCE}
    streams = {"head_out": {"layers": [BLOCK], "width": HEADS}}
    return {**found, "capture": {**found["capture"], "streams": streams, "moments": moments}}


def plan() -> Plan:
    """Two personas, one of them in two wordings, on cases in families of four."""
    cells = [("none", 0), ("nurse", 0), ("nurse", 1)]
    cases = tuple(
        {
            "id": f"case-{k:04d}",
            "family": f"family-{k // 4}",
            "stratum": "odd" if (k // 4) % 2 else "even",
            "target": samples.OPTIONS[k % 3],
            "sha256": sha256_of(k),
        }
        for k in range(12)
    )
    order = sorted(cases, key=group_of)
    rows = tuple(
        PlannedRow(cell, shard, sha256_of(cell.row_id), sha256_of(cell.case), 5, "a prompt")
        for shard, (persona, wording) in enumerate(cells)
        for cell in (Cell(persona, str(case["id"]), Condition(wording=wording)) for case in order)
    )
    personas = tuple({"id": name, "role": "", "style": "", "sha256": sha256_of(name)} for name in ("none", "nurse"))
    return Plan(rows, personas, cases, SEED, 4)


def group_of(case: Mapping[str, Any]) -> str:
    return f"{case['stratum']}/{block_of(case['family'], SEED)}"


def record(row: PlannedRow) -> CellRecord:
    """Activations that are far from 0, as those of models are; the nurse does not answer the case 3."""
    number = int(row.cell.case[-4:])
    found = samples.record(row, layers=LAYERS, d_model=D, answer=(row.cell.persona, number) != ("nurse", 3))
    rng = np.random.default_rng(int(row.cell.row_id, 16) + 2)
    heads = {at: (5 + rng.standard_normal((1, HEADS))).astype(np.float32) for at in found.resid}
    resid = {at: (300 + x).astype(np.float32) for at, x in found.resid.items()}
    case = {"family": f"family-{number // 4}", "stratum": "odd" if (number // 4) % 2 else "even"}
    return replace(found, resid=resid, streams={"head_out": heads}, group=group_of(case))


def expectations(plan_: Plan, records: Sequence[CellRecord]) -> list[dict[str, Any]]:
    """For each persona, wording, stratum and block its rows and the sums at every site."""
    cases = {str(case["id"]): case for case in plan_.cases}
    groups: dict[tuple[Any, ...], list[CellRecord]] = {}
    for one in records:
        case = cases[one.cell.case]
        key = (one.cell.persona, one.cell.condition.wording, case["stratum"], block_by_the_book(str(case["family"])))
        groups.setdefault(key, []).append(one)
    names = ("persona", "wording", "stratum", "block")
    return [{**dict(zip(names, key, strict=True)), "sites": sites(rows)} for key, rows in sorted(groups.items())]


def sites(rows: Sequence[CellRecord]) -> list[dict[str, Any]]:
    found = []
    for stream, layers in (("resid", range(LAYERS)), ("head_out", [BLOCK])):
        for position in samples.POSITIONS:
            own = [row for row in rows if position in row.resid]
            for at, layer in enumerate(layers):
                x = [[float(value) for value in row.at(stream)[position][at]] for row in own]
                told = {"stream": stream, "position": position, "layer": layer}
                found.append({**told, "rows": [row.cell.row_id for row in own], **by_the_book(x)})
    return found


def by_the_book(x: list[list[float]]) -> dict[str, Any]:
    """The sums that docs/FORMAT.md defines."""
    n, width = len(x), len(x[0])
    mean = [fsum(row[i] for row in x) / n for i in range(width)]
    apart = [[row[i] - mean[i] for i in range(width)] for row in x]
    axes = projection_by_the_book(width) if width > COVARIANCE else None
    y = apart if axes is None else [[fsum(map(times, axis, row)) for axis in axes] for row in apart]
    k, lengths = len(y[0]), [fsum(value**2 for value in row) for row in y]
    return {
        "mean": mean,
        "squares": [fsum(row[i] ** 2 for row in apart) for i in range(width)],
        "products": [[fsum(row[i] * row[j] for row in y) for j in range(k)] for i in range(k)],
        "cubes": [fsum(length * row[i] for length, row in zip(lengths, y, strict=True)) for i in range(k)],
        "fourths": fsum(length**2 for length in lengths),
    }


def projection_by_the_book(width: int) -> list[list[float]]:
    text = f"persona-acts projection {COVARIANCE} x {width}".encode()
    digest = hashlib.shake_256(text).digest(COVARIANCE * width)
    bits = "".join(f"{byte:08b}" for byte in digest)[: COVARIANCE * width]
    signs = [(-1.0) ** int(bit) / COVARIANCE**0.5 for bit in bits]
    return [signs[at : at + width] for at in range(0, len(signs), width)]


def block_by_the_book(family: str) -> int:
    return int(hashlib.sha256(f"{SEED}\x1f{family}".encode()).hexdigest()[:13], 16) * 16 // 16**13


def times(one: float, other: float) -> float:
    return one * other


if __name__ == "__main__":
    main(Path(sys.argv[1]))
