"""The same planted study in a store that keeps rows and in one that keeps sums. Used by tests of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from probe.store import Plan, StoreLock, open_writer
from probe.values import Cell, CellRecord, Condition, PlannedRow, sha256_of
from probe.values.blocks import block_of
from tests.store import store_samples as samples

D, LAYERS, SEED = 12, 2, 3
PERSONAS = {"none": ("", 1), "nurse": ("clinician", 2), "doctor": ("clinician", 1), "neutral": ("control", 3)}
"""Of each persona its role and how many wordings it has."""


def manifest(covariance: int | None) -> dict[str, Any]:
    """Of a store that keeps sums, or every row where ``covariance`` is None."""
    found = samples.manifest(layers=LAYERS, d_model=D)
    moments = {"blocks": 16, "seed": SEED, "covariance": covariance}
    capture = {**found["capture"], **({} if covariance is None else {"moments": moments})}
    return {**found, "study": {"name": "sums", "base": "none"}, "capture": capture}


def plan(n_cases: int = 96, *, per_shard: int = 24, rotations: int = 2, edition: str = "") -> Plan:
    """Four personas, their wordings and ``rotations`` on cases in families of two."""
    cells = [
        Cell(persona, f"case-{k:04d}", Condition(wording=wording, rotation=rotation))
        for persona, (_, wordings) in PERSONAS.items()
        for wording in range(wordings)
        for rotation in range(rotations)
        for k in range(n_cases)
    ]
    cases = tuple(
        {
            "id": f"case-{k:04d}",
            "family": f"family-{k // 2}",
            "stratum": "odd" if (k // 2) % 2 else "even",
            "target": samples.OPTIONS[k % 3],
            "sha256": sha256_of(k),
        }
        for k in range(n_cases)
    )
    groups = {case["id"]: group_of(case) for case in cases}
    order = sorted(cells, key=lambda cell: (cell.persona, cell.condition.name, groups[cell.case]))
    shard = {cell.row_id: at // per_shard for at, cell in enumerate(order)}
    rows = tuple(
        PlannedRow(cell, shard[cell.row_id], sha256_of([edition, cell.row_id]), sha256_of(cell.case), 5, "a prompt")
        for cell in cells
    )
    personas = tuple(
        {"id": name, "role": role, "style": "", "sha256": sha256_of(name)} for name, (role, _) in PERSONAS.items()
    )
    return Plan(rows, personas, cases, SEED, 4)


def group_of(case: dict[str, Any]) -> str:
    return f"{case['stratum']}/{block_of(case['family'], SEED)}"


def record(row: PlannedRow, case: dict[str, Any], *, answer: bool = True) -> CellRecord:
    """A residual that is the case's own part, its rotation's, the persona's shift, and noise of the row."""
    own, noise = (np.random.default_rng(int(sha256_of(one)[:12], 16)) for one in (case["id"], row.cell.row_id))
    found = samples.record(row, layers=LAYERS, d_model=D, answer=answer)
    spread = np.linspace(0.5, 4, D)
    x = 20 + spread * own.normal(size=(LAYERS, D)) + 0.3 * row.cell.condition.rotation
    x += 0.5 * noise.normal(size=(LAYERS, D))
    x[1] += {"none": 0, "neutral": 0.2, "nurse": 2, "doctor": 3}[row.cell.persona] * np.eye(D)[len(row.cell.persona)]
    resid = {site: (x + at).astype(np.float32) for at, site in enumerate(found.resid)}
    return replace(found, resid=resid, group=group_of(case))


def records(plan_: Plan, answer: Callable[[PlannedRow], bool] = lambda row: True) -> dict[int, list[CellRecord]]:
    """The records of every shard of a plan; ``answer``: which rows have an answer."""
    cases = {case["id"]: dict(case) for case in plan_.cases}
    found: dict[int, list[CellRecord]] = {}
    for row in plan_.rows:
        found.setdefault(row.shard, []).append(record(row, cases[row.cell.case], answer=answer(row)))
    return dict(sorted(found.items()))


def write(path: Path, plan_: Plan, shards: Iterable[list[CellRecord]], covariance: int | None = 64) -> Path:
    """Commit shards in the order given into a new store, or into the one that is there."""
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, manifest(covariance), lock=lock)
        writer.add_plan(plan_)
        for shard in shards:
            writer.commit(shard)
    return path
