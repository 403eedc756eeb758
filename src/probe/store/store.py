"""An open store. Knows plans, shards and failures on disk; takes no lock and never writes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from probe.store.frames import Frame
from probe.store.index import read_index
from probe.store.locations import Row
from probe.store.manifests import Layout, layout_of, read_manifest
from probe.store.places import Place, open_place
from probe.store.plans import Plan, cell_name
from probe.store.progress import Coverage, coverage_of, plan_names, read_failures, read_plan, read_plans, read_runs
from probe.store.provenance import provenance_table
from probe.store.readout import read_readout
from probe.store.seal import check_seal, read_seal
from probe.store.shards import Key, Located, Shard, local_path, locate, shards_in
from probe.store.sites import Sites
from probe.store.verify import Level, Problem, verify
from probe.store.views import Selectable, View
from probe.values import CorruptShard, PlannedRow, ProbeWarning, StoreError

if TYPE_CHECKING:
    import pandas as pd


OnCorrupt = Literal["raise", "skip"]


def open_store(
    path: str | Path | Place,
    *,
    require_complete: bool = False,
    on_corrupt: OnCorrupt = "raise",
    index: bool = True,
    warn: bool = True,
) -> Store:
    """Open a store for reading; which shards there are is fixed now, and nothing more is read before it is asked for.

    ``path`` is a folder or a URL. An incomplete store warns once, with counts, when its rows are first asked for,
    unless ``warn`` is false. With ``on_corrupt="skip"`` shards whose header is damaged are left out, with a warning;
    a damaged row in the others is refused when it is read. Without ``index`` every header is read from its own shard.

    Raises:
        StoreError: there is no store, its manifest is damaged, or its schema is newer than this tool; or rows are
            missing and ``require_complete`` is true.
        MissingShard: the store is sealed, and lacks a shard.
    """
    place = open_place(path)
    manifest = read_manifest(place)
    layout = layout_of(manifest)
    seal = read_seal(place)
    found = shards_in(place, layout.identity, read_index(place) if index else None)
    if seal is not None and on_corrupt == "raise":
        check_seal(seal, {f"{shard.name}.safetensors": shard.file.entry for shard in found}, place.url)
    sound = found if on_corrupt == "raise" else tuple(shard for shard in found if _is_sound(shard))
    store = Store(place, manifest, layout, sound, on_corrupt, index, warn)
    listed = {*(shard.name for shard in found), *(shard.name for shard in (seal.shards if seal else ()))}
    if lost := sorted(listed - {shard.name for shard in sound}):
        _warn_of_lost(store, lost)
    if require_complete and (coverage := store.coverage()).committed < coverage.planned:
        raise StoreError(
            f"the store {place.url} holds {coverage}; run the study again, or open it without require_complete"
        )
    return store


@dataclass(frozen=True, eq=False)
class Store(Selectable):
    """What was captured, as it stood when the store was opened. Rows are those of the latest plan, in its order."""

    place: Place
    manifest: Mapping[str, Any]
    layout: Layout
    shards: tuple[Shard, ...]
    on_corrupt: OnCorrupt = "raise"
    index: bool = True
    warn: bool = True

    @property
    def path(self) -> Path:
        """The folder of a store on this machine; ``place.url`` names any store.

        Raises:
            StoreError: the store is remote.
        """
        return local_path(self.place)

    @property
    def name(self) -> str:
        """The last part of its path or URL."""
        return self.place.url.rstrip("/").rpartition("/")[2]

    @property
    def study(self) -> Mapping[str, Any]:
        """What the manifest records of the study: its ``name`` and what reports need; empty where there is nothing."""
        recorded = self.manifest.get("study", {})
        return recorded if isinstance(recorded, Mapping) else {"name": str(recorded)}

    @property
    def plan(self) -> Plan:
        """The plan added last.

        Raises:
            StoreError: nothing was ever planned.
        """
        return self._latest

    def plans(self) -> tuple[Plan, ...]:
        """Every plan that was added, the latest last."""
        return read_plans(self.place)

    def _view(self) -> View:
        return self._all

    def coverage(self) -> Coverage:
        """How many rows the latest plan asks for, and how many of them are committed or failed."""
        return coverage_of(self._planned, self._located, read_failures(self.place))

    def failures(self) -> pd.DataFrame:
        """Rows of the latest plan that failed for good, with ``kind`` and ``reason``."""
        import pandas as pd

        recorded, columns = read_failures(self.place), ["row_id", "persona", "case", "condition", "kind", "reason"]
        failed = [recorded[row_id] for row_id in self.coverage().failed_rows]
        lines = [{**failure, "condition": self._planned[failure["row_id"]].cell.condition.name} for failure in failed]
        return pd.DataFrame(lines, columns=pd.Index(columns))

    def runs(self) -> tuple[Mapping[str, Any], ...]:
        """The record of every invocation, oldest first; one without ``ended`` was killed or still runs."""
        return read_runs(self.place)

    def provenance(self, rows: View | Sequence[str] | None = None) -> pd.DataFrame:
        """Where rows come from: one line per row, in the order given; without ``rows`` every row.

        Columns: ``row_id shard runs time device dtype batch_size versions imported``. ``runs`` are the ids of the
        invocations that committed the shard (several, where one was killed in between), the others are those of the
        first of them, and None where no run recorded it.

        Raises:
            UnknownName: a row id that is not among the committed rows.
        """
        return provenance_table(self._all, rows, self.runs())

    def readout(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Tensors and metadata of ``readout.safetensors``, checked against the sha256 in its header.

        Raises:
            StoreError: the store has none.
            CorruptShard: its bytes are not those that were written.
        """
        return read_readout(self.place, self.layout.identity)

    def verify(self, level: Level = "full") -> list[Problem]:
        """Read every byte of the store and list what is not as it was committed; empty where all is well."""
        return verify(self.place, self.layout.identity, shards_in(self.place, self.layout.identity), level)

    def refresh(self) -> Store:
        """The same store as it stands now."""
        return open_store(self.place, on_corrupt=self.on_corrupt, index=self.index, warn=self.warn)

    @cached_property
    def _latest(self) -> Plan:
        names = plan_names(self.place)
        if not names:
            raise StoreError(f"the store {self.place.url} has no plan yet; run the study")
        return read_plan(self.place, names[-1])

    @cached_property
    def _planned(self) -> dict[str, PlannedRow]:
        return {row.cell.row_id: row for row in self.plan.rows}

    @cached_property
    def _located(self) -> dict[Key, Located]:
        return locate(self.shards)

    @cached_property
    def _all(self) -> View:
        plan = self.plan
        personas = {persona["id"]: persona for persona in plan.personas}
        cases = {case["id"]: case for case in plan.cases}
        rows = tuple(
            Row(planned, personas[planned.cell.persona], cases[planned.cell.case], self._located[key])
            for row_id, planned in self._planned.items()
            if (key := (row_id, planned.prompt_sha)) in self._located
        )
        if self.warn and len(rows) < len(plan.rows):
            warnings.warn(
                f"the store {self.place.url} holds {self.coverage()}; run the study again to capture the others",
                ProbeWarning,
                stacklevel=5,  # whoever called select() or table()
            )
        attrs = {"options": list(self.layout.options), "high_risk": self.manifest["labels"].get("high_risk")}
        if "study" in self.manifest:
            attrs["study"] = self.manifest["study"]
        return View(rows, Frame(self.layout, plan, Sites(self.layout, self.shards), attrs))


def _is_sound(shard: Shard) -> bool:
    try:
        return bool(shard.header)
    except CorruptShard:
        return False


def _warn_of_lost(store: Store, names: Sequence[str]) -> None:
    """Say which shards are left out, and which planned rows are not there."""
    pending = store.coverage().pending_rows
    planned = {row.cell.row_id: row.cell for row in store.plan.rows}
    first = ", ".join(cell_name(planned[row_id]) for row_id in pending[:5])
    warnings.warn(
        f"{len(names)} shards of {store.place.url} are damaged or missing and left out (first: {names[0]}): "
        f"{len(pending)} planned rows are not read (first: {first}); `probe store verify` says what is wrong, and "
        "`probe store repair` mends it",
        ProbeWarning,
        stacklevel=3,  # whoever called open_store()
    )
