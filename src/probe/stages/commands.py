"""Commands on what was captured: analyse, draw, tell. Knows the order of the analyses; captures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from probe.behaviour import Settings
from probe.stages.analysis import (
    behaviour_tables,
    cells,
    main_shifts,
    pooled,
    save_tables,
    shift_tables,
)
from probe.stages.capture import CaptureOutcome
from probe.stages.places import figures_path
from probe.stages.reporting import write_report
from probe.stages.targets import TABLES, open_target, read_table
from probe.stages.terminal import announce_capture, announce_files, show_metrics, show_shift
from probe.store import Store, open_store
from probe.study import Study
from probe.values import ProbeError


def tell_study(study: Study, outcome: CaptureOutcome, folder: Path) -> None:
    """How a study's capture ended, and every analysis that the study names."""
    announce_capture(outcome)
    if outcome.committed == 0:
        return
    opened = open_store(outcome.store)
    wanted = set(study.analyses)
    tables = behaviour_tables(opened) if wanted & {"metrics", "report"} else None
    shifts = shift_tables(opened) if wanted & {"directions", "report"} else None
    if tables is not None:
        show_metrics(tables, opened.table())
    if tables is not None and shifts is not None and "report" in wanted:
        announce_files(folder, write_report(opened, tables, shifts, folder, title=study.name))
    else:
        found = vars(tables) if tables is not None else {}
        announce_files(folder, save_tables(folder, found if shifts is None else {**found, "shift": shifts}))


def run_metrics(
    target: Path,
    *,
    store: Path | None,
    base: str | None,
    out: Path | None,
    options: Sequence[str] | None = None,
    high_risk: str | None = None,
    settings: Settings | None = None,
) -> None:
    """The metrics of a study's store, or of a table of predictions."""
    name: str
    source: Store | pd.DataFrame
    if target.suffix.lower() in TABLES and not target.is_dir():
        name, source = target.stem, read_table(target)
    else:
        name, source = open_target(target, store=store)
    folder = figures_path(name, out)
    tables = behaviour_tables(source, base=base, options=options, high_risk=high_risk, settings=settings)
    show_metrics(tables, cells(source))
    announce_files(folder, save_tables(folder, vars(tables)))


def run_directions(target: Path, *, store: Path | None, base: str | None, out: Path | None) -> None:
    """The size of each persona's shift, layer by layer, as a table here and as CSV."""
    name, opened = open_target(target, store=store)
    folder = figures_path(name, out)
    shifts = shift_tables(opened, base=base)
    if shifts.empty:
        raise ProbeError(
            "a shift needs the base persona and at least one other among the captures; name it with --base"
        )
    show_shift(pooled(main_shifts(shifts)))
    announce_files(folder, save_tables(folder, {"shift": shifts}))


def run_report(target: Path, *, store: Path | None, base: str | None, out: Path | None) -> None:
    """Figures, tables and the page of a store."""
    name, opened = open_target(target, store=store)
    folder = figures_path(name, out)
    tables, shifts = behaviour_tables(opened, base=base), shift_tables(opened, base=base)
    announce_files(folder, write_report(opened, tables, shifts, folder, title=name))
