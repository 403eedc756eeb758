"""The verbs of ``import probe``. Knows the stages; a script needs no other module."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from probe.stages.analysis import behaviour_tables, shift_tables, study_of
from probe.stages.reporting import write_report as _write_report
from probe.store import Store, open_store
from probe.study import Study
from probe.values import ProbeError


def run(study: Study, *, store: str | Path | None = None, fresh: bool = False) -> Store:
    """Capture every cell of a study that its store does not hold yet, and return the open store.

    Calling it again resumes. ``store`` is by default ``cache/<study name>``. Rows that failed for good are listed by
    ``store.failures()``.

    Raises:
        ProbeError: the study, the model or the store refuses; nothing was written then.
    """
    from probe.stages.capture import capture

    return open_store(capture(study, store=None if store is None else Path(store), fresh=fresh).store)


def metrics(source: Store | pd.DataFrame) -> pd.DataFrame:
    """Every metric by persona and stratum, tidy: metric, persona, stratum, value, low, high, n, planned, ...

    ``source`` is an open store, or a table of your own in the columns of ``Store.table()``.
    """
    return behaviour_tables(source).metrics


def compare(source: Store | pd.DataFrame, base: str | None = None) -> pd.DataFrame:
    """Difference of every persona from the base persona, paired by case, with intervals, raw and Holm-adjusted p.

    Raises:
        ProbeError: the base persona is not in the table.
    """
    compared = behaviour_tables(source, base=base).comparisons
    if compared.empty:
        raise ProbeError("a comparison needs the base persona and at least one other in the table; name it with base=")
    return compared


def shift(store: Store, base: str | None = None) -> pd.DataFrame:
    """Size of every persona's residual shift from the base, by residual point, position and stratum.

    Raises:
        ProbeError: the store holds no cell.
    """
    return shift_tables(store, base=base)


def write_report(store: Store, folder: str | Path, *, base: str | None = None) -> list[Path]:
    """Write figures (PNG, SVG), tables (CSV) and ``report.html`` into a folder; returns every path written.

    Raises:
        ProbeError: the store holds no cell.
    """
    tables, shifts = behaviour_tables(store, base=base), shift_tables(store, base=base)
    title = str(study_of(store).get("name", store.path.name))
    return _write_report(store, tables, shifts, Path(folder), title=title)
