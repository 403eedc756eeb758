"""How far a plan is. Knows planned, committed and failed rows on disk; knows nothing of arrays."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probe.store.places import Place, open_place
from probe.store.plans import Plan, parse_plan
from probe.values import PlannedRow, StoreError

LATEST = "latest"
"""The file in ``plan/`` that holds the hash of the plan added last."""


@dataclass(frozen=True)
class Coverage:
    """Rows of the latest plan: how many it asks for, how many are committed, how many failed for good.

    ``superseded`` rows were captured under an earlier text of a planned cell; they are kept, and not read.
    """

    planned: int
    committed: int
    failed: int
    superseded: int = 0
    pending_rows: tuple[str, ...] = field(default=(), repr=False)
    failed_rows: tuple[str, ...] = field(default=(), repr=False)

    @property
    def pending(self) -> int:
        """Rows still to be captured."""
        return self.planned - self.committed - self.failed

    def __str__(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        superseded = f", {self.superseded} of earlier texts kept" if self.superseded else ""
        return f"{self.committed} of {self.planned} rows{failed}{superseded}"


def coverage_of(
    planned: Mapping[str, PlannedRow],
    committed: Collection[tuple[str, str]],
    failures: Mapping[str, Mapping[str, Any]],
) -> Coverage:
    """Divide planned rows into committed, failed and pending; ``committed`` holds row ids with their ``prompt_sha``.

    A row counts for the prompt text that it was captured or failed with: after an edit it is pending again.
    """
    open_rows = [row_id for row_id, row in planned.items() if (row_id, row.prompt_sha) not in committed]
    failed = tuple(
        row_id
        for row_id in open_rows
        if row_id in failures and failures[row_id].get("prompt_sha") in ("", planned[row_id].prompt_sha)
    )
    settled = set(failed)
    return Coverage(
        planned=len(planned),
        committed=len(planned) - len(open_rows),
        failed=len(failed),
        superseded=sum(row_id in planned and planned[row_id].prompt_sha != sha for row_id, sha in committed),
        pending_rows=tuple(row_id for row_id in open_rows if row_id not in settled),
        failed_rows=failed,
    )


def read_failures(place: Path | Place) -> dict[str, Mapping[str, Any]]:
    """Every recorded failure by row id.

    Raises:
        StoreError: one of them is damaged.
    """
    return {failure["row_id"]: failure for failure in _records(place, "failures", needs="row_id")}


def read_runs(place: Path | Place) -> tuple[Mapping[str, Any], ...]:
    """The record of every invocation, oldest first.

    Raises:
        StoreError: one of them is damaged.
    """
    return tuple(_records(place, "runs", needs="id"))


def plan_names(place: Path | Place) -> tuple[str, ...]:
    """The name of every plan that was added, the latest last.

    Raises:
        StoreError: the latest one is missing, or not known.
    """
    place = open_place(place)
    try:  # before the listing: a writer adds a plan first, and calls it the latest then
        latest = place.read(f"plan/{LATEST}").decode().strip()
    except FileNotFoundError:
        latest = ""
    except (OSError, ValueError) as error:
        raise StoreError(f"{place.url}/plan/{LATEST} cannot be read; run the study again to write it") from error
    names = sorted(name.removesuffix(".jsonl") for name in place.list("plan") if name.endswith(".jsonl"))
    if not latest and len(names) > 1:
        raise StoreError(f"{place.url}/plan/{LATEST} is missing; run the study again to write it")
    if latest and latest not in names:
        raise StoreError(f"the latest plan {latest}.jsonl is missing from {place.url}/plan; run the study again")
    return (*(name for name in names if name != latest), latest) if latest else tuple(names)


def read_plan(place: Path | Place, name: str) -> Plan:
    """One plan by its name.

    Raises:
        StoreError: it is damaged.
    """
    return parse_plan(name, open_place(place).read(f"plan/{name}.jsonl"))


def read_plans(place: Path | Place) -> tuple[Plan, ...]:
    """Every plan that was added, the latest last.

    Raises:
        StoreError: a plan is damaged, or the latest one is missing.
    """
    return tuple(read_plan(place, name) for name in plan_names(place))


def asked_for(place: Place) -> set[tuple[str, str]]:
    """Row id and ``prompt_sha`` of each row of the latest plan; none where there is no plan that can be read."""
    with suppress(StoreError, OSError):
        for name in plan_names(place)[-1:]:
            return {(row.cell.row_id, row.prompt_sha) for row in read_plan(place, name).rows}
    return set()


def read_record(place: Place, name: str, *, needs: str) -> Mapping[str, Any]:
    """One failure or run record.

    Raises:
        StoreError: it is not the JSON mapping with the key ``needs`` that was written.
    """
    try:
        content = json.loads(place.read(name))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{place.url}/{name} is damaged ({error}); {_REMEDY}") from error
    if not isinstance(content, dict) or not isinstance(content.get(needs), str):
        raise StoreError(f"{place.url}/{name} is damaged (it has no {needs!r}); {_REMEDY}")
    return content


_REMEDY = "`probe store repair` moves it out of the store"


def _records(place: Path | Place, folder: str, *, needs: str) -> list[Mapping[str, Any]]:
    place = open_place(place)
    names = sorted(name for name in place.list(folder) if name.endswith(".json"))
    return [read_record(place, f"{folder}/{name}", needs=needs) for name in names]
