"""Whole commands: capture, analyse, draw, tell. Knows the order of the stages."""

from __future__ import annotations

from pathlib import Path

from probe.stages.analysis import behaviour_tables, save_tables, shift_tables
from probe.stages.capture import CaptureOutcome, capture
from probe.stages.reporting import SHIFT_POSITION, write_report
from probe.stages.targets import READERS, open_target, read_table
from probe.stages.terminal import announce_capture, announce_files, show_metrics, show_shift
from probe.store import open_store
from probe.study import Study
from probe.values import ProbeError


def figures_path(name: str, out: Path | None) -> Path:
    """Where a study's tables, figures and report go: ``figures/<name>`` unless told otherwise."""
    return out if out is not None else Path("figures") / name


def run_study(
    study: Study, *, store: Path | None = None, out: Path | None = None, fresh: bool = False
) -> CaptureOutcome:
    """Every stage that a study names, in their order; the captures resume."""
    outcome = capture(study, store=store, fresh=fresh)
    announce_capture(outcome)
    if outcome.committed == 0:
        return outcome
    opened = open_store(outcome.store)
    folder = figures_path(study.name, out)
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
    return outcome


def run_metrics(target: Path, *, store: Path | None, base: str | None, out: Path | None) -> None:
    """The metrics of a study's store, or of a table of predictions."""
    if target.is_file() and target.suffix in READERS:
        name, table = target.stem, read_table(target)
        tables = behaviour_tables(table, base=base)
    else:
        name, opened = open_target(target, store=store)
        table, tables = opened.table(), behaviour_tables(opened, base=base)
    show_metrics(tables, table)
    folder = figures_path(name, out)
    announce_files(folder, save_tables(folder, vars(tables)))


def run_directions(target: Path, *, store: Path | None, base: str | None, out: Path | None) -> None:
    """The size of each persona's shift, layer by layer, as a table here and as CSV."""
    name, opened = open_target(target, store=store)
    shifts = shift_tables(opened, base=base)
    if shifts.empty:
        raise ProbeError(
            "a shift needs the base persona and at least one other among the captures; name it with --base"
        )
    pooled = shifts[(shifts["stratum"] == "all") & (shifts["position"] == SHIFT_POSITION)]
    show_shift(pooled)
    folder = figures_path(name, out)
    announce_files(folder, save_tables(folder, {"shift": shifts}))


def run_report(target: Path, *, store: Path | None, base: str | None, out: Path | None) -> None:
    """Figures, tables and the page of a store."""
    name, opened = open_target(target, store=store)
    folder = figures_path(name, out)
    tables, shifts = behaviour_tables(opened, base=base), shift_tables(opened, base=base)
    announce_files(folder, write_report(opened, tables, shifts, folder, title=name))
