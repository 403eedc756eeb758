"""Small plans and records with planted values, equal for equal seeds. Used by the store's tests and their writers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from probe.store import Plan, StoreLock, open_writer
from probe.values import Cell, CellRecord, Condition, LabelRead, PlannedRow, sha256_of

OPTIONS = ("home", "clinic", "emergency")
POSITIONS = ("prompt_end", "answer")


def manifest(dtype: str = "float32", layers: int = 3, d_model: int = 8) -> dict[str, Any]:
    return {
        "created_by": "tests",
        "model": {"id": "tiny", "revision": "r1", "weights_sha256": "ab" * 32, "config_sha256": "cd" * 32},
        "tokenizer_sha256": "11" * 32,
        "chat_template_sha256": "22" * 32,
        "capture": {"layers": list(range(layers)), "positions": list(POSITIONS), "dtype": dtype, "d_model": d_model},
        "labels": {"options": list(OPTIONS), "high_risk": "emergency", "letters": ["A", "B", "C"]},
        "generation": {"max_new_tokens": 8},
        "study": "sample",
    }


def plan(
    personas: tuple[str, ...] = ("nurse", "none"),
    n_cases: int = 6,
    *,
    per_shard: int = 4,
    edition: str = "",
    placement: str = "system",
) -> Plan:
    rows = []
    for persona in personas:
        for k in range(n_cases):
            cell = Cell(persona, f"case-{k:04d}", Condition(placement=placement))
            text = f"{edition}{persona} sees case {k}"
            planned = {"direct": [0.2, 0.3, 0.5], "reasoned": [0.0, 0.25, 0.75]} if persona != "none" else None
            rows.append(
                PlannedRow(cell, len(rows) // per_shard, sha256_of(text), sha256_of([k]), 5 + k % 3, text, planned)
            )
    return Plan(
        rows=tuple(rows),
        personas=tuple(
            {"id": name, "role": name if name != "none" else "", "style": "", "sha256": sha256_of(name)}
            for name in personas
        ),
        cases=tuple(
            {
                "id": f"case-{k:04d}",
                "family": f"family-{k // 2}",
                "stratum": "emergency" if k % 2 else "primary",
                "target": OPTIONS[k % 3],
                "sha256": sha256_of(k),
            }
            for k in range(n_cases)
        ),
        split_seed=0,
        batch_size=4,
    )


def record(
    row: PlannedRow, *, dtype: str = "float32", layers: int = 3, d_model: int = 8, answer: bool = True
) -> CellRecord:
    """What a pass might have recorded: every value is drawn from the row's own id, so that a mix-up shows."""
    rng = np.random.default_rng(int(row.cell.row_id, 16))
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    sites = POSITIONS if answer else POSITIONS[:1]
    reads = {site: _read(rng) for site in sites}
    n_gen = int(rng.integers(1, 6))
    label = OPTIONS[int(rng.integers(3))] if answer else None
    return CellRecord(
        cell=row.cell,
        prompt_sha=row.prompt_sha,
        tokens_sha=row.tokens_sha,
        prompt_tokens=tuple(int(token) for token in rng.integers(0, 50_000, row.n_tokens)),
        positions={"prompt_end": row.n_tokens - 1, "answer": row.n_tokens + 1 if answer else -1},
        resid={site: (100 * rng.standard_normal((layers, d_model))).astype(kind) for site in sites},
        labels=reads,
        gen_tokens=tuple(int(token) for token in rng.integers(0, 50_000, n_gen)),
        gen_text="" if n_gen == 1 else f"Réponse {n_gen} \u2028 «{row.cell.case}» 🩺",
        status="parsed" if answer else "unparsable",
        label=label,
        letter="ABC"[OPTIONS.index(label)] if label else None,
        span=(0, 1) if label else None,
        letter_first=bool(rng.integers(2)) and answer,
        extra={"steps": n_gen} if n_gen > 3 else {},
    )


def _read(rng: np.random.Generator) -> LabelRead:
    share = rng.dirichlet(np.ones(4)).astype(np.float32)
    return LabelRead(np.log(share[:3]), float(share[:3].sum()), float(np.float32(rng.random())), (7, 8), (-0.5, -1.5))


def content(path: Path) -> dict[str, bytes]:
    """Every byte of a store but its lock."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


def write_store(path: Path, dtype: str = "float32", plan_: Plan | None = None, absent: str = "") -> Path:
    """Write a whole plan, shard by shard; the cases named ``absent`` have no answer site."""
    planned = plan_ or plan()
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, manifest(dtype), lock=lock)
        writer.add_plan(planned)
        for shard in sorted({row.shard for row in planned.rows}):
            rows = [row for row in planned.rows if row.shard == shard]
            writer.commit([record(row, dtype=dtype, answer=row.cell.case != absent) for row in rows])
    return path
