"""The analysis stages: from an open store, or a table, to tidy tables. Imports no torch; captures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probe import behaviour, mechanism
from probe.behaviour import Settings
from probe.store import Store
from probe.values import ALL, ProbeError

DEFAULT_BASE = "none"

MAIN_POSITION = "prompt_end"
"""Where the figure and the terminal show the residual shift, if it was captured; the table has every position."""


@dataclass(frozen=True, eq=False)
class BehaviourTables:
    """What a table of cells says: metrics by persona and stratum, differences from the base, bins of reliability.

    ``comparisons`` is empty where the table has no base persona, or no other.
    """

    metrics: pd.DataFrame
    comparisons: pd.DataFrame
    reliability: pd.DataFrame


def study_of(store: Store) -> Mapping[str, Any]:
    """The study of the store's latest run; of the manifest where no run was recorded."""
    for run in reversed(store.runs()):
        if run.get("study"):
            return dict(run["study"])
    return dict(store.manifest.get("study", {}))


def cells(source: Store | pd.DataFrame) -> pd.DataFrame:
    """The table of cells behind an analysis.

    Raises:
        ProbeError: there is no row to analyse.
    """
    table = source.table() if isinstance(source, Store) else source
    if table.empty:
        raise ProbeError("there is no captured cell to analyse yet; run `probe capture` first")
    return table


def behaviour_tables(
    source: Store | pd.DataFrame,
    *,
    base: str | None = None,
    options: Sequence[str] | None = None,
    high_risk: str | None = None,
    settings: Settings | None = None,
) -> BehaviourTables:
    """Metrics, comparisons with the base persona, and reliability bins of a store or of a user's own table.

    ``base`` is the persona that the others are compared with: by default the study's own, else ``none``. Without that
    default in the table there is no comparison. ``options`` in rising urgency and ``high_risk`` are a store's own
    unless they are given; ``settings`` hold the bins of the ECE and the cut between over- and under-triage.

    Raises:
        ProbeError: the base that was asked for is not in the table, or the table breaks a rule of ``read_outcomes``.
    """
    table, settings = cells(source), settings or Settings()
    measured = behaviour.metrics(table, options=options, high_risk=high_risk, settings=settings)
    personas = list(measured["persona"].unique())
    chosen = _base(source, base, personas)
    compared = pd.DataFrame()
    if chosen in personas and len(personas) > 1:
        compared = behaviour.compare(table, chosen, options=options, high_risk=high_risk, settings=settings)
    return BehaviourTables(measured, compared, behaviour.reliability(table, options=options, n_bins=settings.n_bins))


def _base(source: Store | pd.DataFrame, asked: str | None, personas: Sequence[str]) -> str:
    """The base persona. One that was asked for must be there; the default need not."""
    if asked is None:
        default = study_of(source).get("base", DEFAULT_BASE) if isinstance(source, Store) else DEFAULT_BASE
        return str(default)
    if asked not in personas:
        from probe.study.located import nearest  # late: only a refusal needs it

        raise ProbeError(f"the base persona {asked!r} is not in the table. {nearest(asked, personas, 'persona')}")
    return asked


def shift_tables(store: Store, *, base: str | None = None) -> pd.DataFrame:
    """Size of every persona's residual shift from the base, by residual point, at every captured position.

    Empty where the study's base persona was not captured.

    Raises:
        ProbeError: the base that was asked for was not captured.
    """
    personas = list(dict.fromkeys(cells(store)["persona"]))
    base = _base(store, base, personas)
    if base not in personas:
        return pd.DataFrame()
    capture = store.manifest["capture"]
    views = {persona: store.select(persona=persona) for persona in personas}
    tables = {persona: view.table() for persona, view in views.items()}
    for table in tables.values():
        table.attrs = {}  # pandas copies them, a whole study, with every selection of rows

    def read(persona: str, layer: int, position: str) -> tuple[pd.DataFrame, np.ndarray]:
        resid = views[persona].resid(layer=layer, position=position, missing="drop")
        return tables[persona].iloc[resid.kept], np.asarray(resid)

    parts = [
        mechanism.shift_by_layer(read, personas, capture["layers"], base=base, position=position)
        for position in capture["positions"]
    ]
    return pd.concat([part for part in parts if len(part)], ignore_index=True) if any(map(len, parts)) else parts[0]


def main_shifts(shifts: pd.DataFrame) -> pd.DataFrame:
    """The shifts at ``prompt_end``, or at the first position that has any where that was not captured."""
    if shifts.empty:
        return shifts
    found = list(dict.fromkeys(shifts["position"]))
    return shifts[shifts["position"] == (MAIN_POSITION if MAIN_POSITION in found else found[0])]


def pooled(table: pd.DataFrame) -> pd.DataFrame:
    """The rows over all strata."""
    return table[table["stratum"] == ALL]


def save_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Each table as ``<name>.csv`` in a folder; a text that a spreadsheet would run as a formula is quoted."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, table in tables.items():
        if table.empty:
            continue
        path = folder / f"{name}.csv"
        table.map(_inert).to_csv(path, index=False)
        written.append(path)
    return written


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
