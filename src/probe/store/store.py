"""An open store. Knows plans, shards and failures on disk; takes no lock and never writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.store.manifests import Layout, layout_of, read_manifest
from probe.store.plans import Plan
from probe.store.progress import Coverage, coverage_of, read_failures, read_plans, read_runs
from probe.store.readout import read_readout
from probe.store.shards import Located, Shard, locate, shards_in
from probe.store.tables import Row
from probe.store.verify import Problem, verify
from probe.store.views import Frame, Names, View
from probe.values import PlannedRow, StoreError

if TYPE_CHECKING:
    import pandas as pd


def open_store(path: str | Path) -> Store:
    """Open a store for reading; the list of shards is fixed now, headers and rows are read when they are asked for.

    Raises:
        StoreError: there is no store, its manifest is damaged, or its schema is newer than this tool.
    """
    path = Path(path)
    manifest = read_manifest(path)
    layout = layout_of(manifest)
    return Store(path, manifest, layout, shards_in(path, layout.identity))


@dataclass(frozen=True, eq=False)
class Store:
    """What was captured, as it stood when the store was opened. Rows are those of the latest plan, in its order."""

    path: Path
    manifest: Mapping[str, Any]
    layout: Layout
    shards: tuple[Shard, ...]

    @property
    def plan(self) -> Plan:
        """The plan added last.

        Raises:
            StoreError: nothing was ever planned.
        """
        if not self._plans:
            raise StoreError(f"the store {self.path} has no plan yet; run the study")
        return self._plans[-1]

    def plans(self) -> tuple[Plan, ...]:
        """Every plan that was added, the latest last."""
        return self._plans

    def select(
        self,
        *,
        persona: Names | None = None,
        case: Names | None = None,
        stratum: Names | None = None,
        family: Names | None = None,
        role: Names | None = None,
        style: Names | None = None,
        placement: Names | None = None,
        where: str | None = None,
    ) -> View:
        """Committed rows that match every argument, as ``View.select``; without arguments all of them."""
        return self._all.select(
            persona=persona,
            case=case,
            stratum=stratum,
            family=family,
            role=role,
            style=style,
            placement=placement,
            where=where,
        )

    def table(self) -> pd.DataFrame:
        """One line per committed row of the latest plan, in plan order; docs/FORMAT.md describes the columns."""
        return self._all.table()

    def coverage(self) -> Coverage:
        """How many rows the latest plan asks for, and how many of them are committed or failed."""
        return coverage_of(self._planned, self._located, read_failures(self.path))

    def failures(self) -> pd.DataFrame:
        """Rows of the latest plan that failed for good, with ``kind`` and ``reason``."""
        import pandas as pd

        recorded, columns = read_failures(self.path), ["row_id", "persona", "case", "condition", "kind", "reason"]
        failed = [recorded[row_id] for row_id in self.coverage().failed_rows]
        lines = [{**failure, "condition": self._planned[failure["row_id"]].cell.condition.name} for failure in failed]
        return pd.DataFrame(lines, columns=pd.Index(columns))

    def runs(self) -> tuple[Mapping[str, Any], ...]:
        """The record of every invocation, oldest first; one without ``ended`` was killed or still runs."""
        return read_runs(self.path)

    def readout(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Tensors and metadata of ``readout.safetensors``, checked against the sha256 in its header.

        Raises:
            StoreError: the store has none.
            CorruptShard: its bytes are not those that were written.
        """
        return read_readout(self.path, self.layout.identity)

    def verify(self) -> list[Problem]:
        """Read every byte of the store and list what is not as it was committed; empty where all is well."""
        return verify(self.path, self.layout.identity, self.shards)

    def refresh(self) -> Store:
        """The same store as it stands now."""
        return open_store(self.path)

    @cached_property
    def _plans(self) -> tuple[Plan, ...]:
        return read_plans(self.path)

    @cached_property
    def _planned(self) -> dict[str, PlannedRow]:
        return {row.cell.row_id: row for row in self.plan.rows}

    @cached_property
    def _located(self) -> dict[str, Located]:
        return locate(self.shards)

    @cached_property
    def _all(self) -> View:
        plan = self.plan
        personas = {persona["id"]: persona for persona in plan.personas}
        cases = {case["id"]: case for case in plan.cases}
        rows = tuple(
            Row(planned, personas[planned.cell.persona], cases[planned.cell.case], self._located[row_id])
            for row_id, planned in self._planned.items()
            if row_id in self._located
        )
        known = {
            "persona": list(personas),
            "case": list(cases),
            "placement": list(dict.fromkeys(row.cell.condition.placement for row in plan.rows)),
        }
        for key, entries in (
            ("role", plan.personas),
            ("style", plan.personas),
            ("stratum", plan.cases),
            ("family", plan.cases),
        ):
            known[key] = list(dict.fromkeys(str(entry.get(key, "")) for entry in entries))
        attrs = {"options": list(self.layout.options), "high_risk": self.manifest["labels"].get("high_risk")}
        if "study" in self.manifest:
            attrs["study"] = self.manifest["study"]
        return View(rows, Frame(self.layout, self.shards, known, attrs))
