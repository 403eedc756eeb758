"""The verbs of ``import probe``. Knows the stages; a script needs no other module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from probe.behaviour import Settings
from probe.stages.analysis import behaviour_tables, shift_tables, study_of
from probe.stages.places import figures_path
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


def metrics(
    source: Store | pd.DataFrame,
    *,
    options: Sequence[str] | None = None,
    high_risk: str | None = None,
    settings: Settings | None = None,
) -> pd.DataFrame:
    """Every metric by persona and stratum, tidy: metric, persona, stratum, value, low, high, n, planned, ...

    ``source`` is an open store, or a table of your own in the columns of ``Store.table()``; the options of a table, in
    rising urgency, come from ``options`` or from its ``logp_<label>`` columns, and without either the risk metrics are
    undefined. ``settings`` (:class:`probe.behaviour.Settings`) hold what the paper leaves open: the bins of the ECE and
    the cut between over- and under-triage.

    Raises:
        ProbeError: the table breaks a rule of :func:`probe.behaviour.read_outcomes`.
    """
    return behaviour_tables(source, options=options, high_risk=high_risk, settings=settings).metrics


def compare(
    source: Store | pd.DataFrame,
    base: str | None = None,
    *,
    options: Sequence[str] | None = None,
    high_risk: str | None = None,
    settings: Settings | None = None,
) -> pd.DataFrame:
    """Difference of every persona from the base persona, in pairs, with intervals, raw and Holm-adjusted p.

    A pair is one case under one condition (instruction, rotation, ...); intervals and tests cluster by case.
    ``options``, ``high_risk`` and ``settings`` as in :func:`metrics`.

    Raises:
        ProbeError: the base persona is not in the table, or stands there alone.
    """
    tables = behaviour_tables(source, base=base, options=options, high_risk=high_risk, settings=settings)
    compared = tables.comparisons
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
        ProbeError: the store holds no cell, the base was not captured, or a file stands where the folder should.
    """
    folder = figures_path("", Path(folder))
    tables, shifts = behaviour_tables(store, base=base), shift_tables(store, base=base)
    title = str(study_of(store).get("name", store.path.name))
    return _write_report(store, tables, shifts, folder, title=title)
