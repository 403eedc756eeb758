"""How far a plan is. Knows planned, committed and failed rows on disk; knows nothing of arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probe.store.plans import Plan, parse_plan
from probe.values import PlannedRow, StoreError

LATEST = "latest"
"""The file in ``plan/`` that holds the hash of the plan added last."""


@dataclass(frozen=True)
class Coverage:
    """Rows of the latest plan: how many it asks for, how many are committed, how many failed for good."""

    planned: int
    committed: int
    failed: int
    pending_rows: tuple[str, ...] = field(default=(), repr=False)
    failed_rows: tuple[str, ...] = field(default=(), repr=False)

    @property
    def pending(self) -> int:
        """Rows still to be captured."""
        return self.planned - self.committed - self.failed

    def __str__(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.committed} of {self.planned} rows{failed}"


def coverage_of(
    planned: Mapping[str, PlannedRow], committed: Mapping[str, object], failures: Mapping[str, Mapping[str, Any]]
) -> Coverage:
    """Divide planned rows into committed, failed and pending.

    A failure counts for the prompt text that it was recorded with: after an edit the row is pending again.
    """
    open_rows = [row_id for row_id in planned if row_id not in committed]
    failed = tuple(
        row_id
        for row_id in open_rows
        if row_id in failures and failures[row_id].get("prompt_sha") in ("", planned[row_id].prompt_sha)
    )
    pending = tuple(row_id for row_id in open_rows if row_id not in set(failed))
    return Coverage(len(planned), len(planned) - len(open_rows), len(failed), pending, failed)


def read_failures(path: Path) -> dict[str, Mapping[str, Any]]:
    """Every recorded failure by row id."""
    failures = (_json(file) for file in sorted((path / "failures").glob("*.json")))
    return {failure["row_id"]: failure for failure in failures}


def read_runs(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The record of every invocation, oldest first."""
    return tuple(_json(file) for file in sorted((path / "runs").glob("*.json")))


def read_plans(path: Path) -> tuple[Plan, ...]:
    """Every plan that was added, the latest last.

    Raises:
        StoreError: a plan is damaged, or the latest one is missing.
    """
    folder = path / "plan"
    names = sorted(file.stem for file in folder.glob("*.jsonl"))
    if len(names) > 1 or (folder / LATEST).exists():
        try:
            latest = (folder / LATEST).read_text().strip()
        except OSError as error:
            raise StoreError(f"{folder / LATEST} cannot be read; run the study again to write it") from error
        if latest not in names:
            raise StoreError(f"the latest plan {latest}.jsonl is missing from {folder}; run the study again")
        names = [name for name in names if name != latest] + [latest]
    return tuple(parse_plan(name, (folder / f"{name}.jsonl").read_bytes()) for name in names)


def _json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{file} is damaged ({error}); delete it and run the same command again") from error
    if not isinstance(content, dict):
        raise StoreError(f"{file} is damaged (no mapping); delete it and run the same command again")
    return content
