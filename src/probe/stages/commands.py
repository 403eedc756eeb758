"""Commands on what was captured: analyse, draw, tell. Knows the order of the analyses; captures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from probe import behaviour
from probe.stages.analysis import (
    Question,
    behaviour_tables,
    cells,
    main_shifts,
    pooled,
    save_tables,
    shift_tables,
    study_of,
)
from probe.stages.arms import arms_told
from probe.stages.inside import Inside, look_inside
from probe.stages.parsing import mixed_parsers, reread
from probe.stages.places import figures_path
from probe.stages.policy import CaptureOutcome
from probe.stages.reporting import write_report
from probe.stages.targets import TABLES, open_target, read_rankings, read_table
from probe.stages.terminal import announce_capture, announce_files, say, show_metrics, show_shift
from probe.stages.terminal_tables import show_behaviour, show_floor, show_rankings, tell_comparisons
from probe.store import Store, open_store
from probe.study import Study
from probe.values import ProbeError


def tell_study(study: Study, outcome: CaptureOutcome, folder: Path, more: Sequence[Inside] = ()) -> None:
    """How a study's capture ended, and every analysis that the study names; ``more`` are those already made."""
    announce_capture(outcome)
    if outcome.committed == 0:
        return
    opened = open_store(outcome.store, warn=False)  # announced just now
    if study.given is not None and study.given.only:
        say("given texts were read and no answer was generated, so there is no metric; `store.table()` has given_logp")
        return
    wanted = set(study.analyses)
    tables = behaviour_tables(opened) if wanted & {"metrics", "report"} else None
    shifts = shift_tables(opened) if wanted & {"directions", "report"} else None
    if tables is not None:
        show_metrics(tables, cells(opened))
        for told in arms_told(opened):
            say(told)
        show_floor(tables.floor)
        if len(tables.comparisons):
            tell_comparisons(tables.comparisons)
    inside = [*look_inside(opened, study.analyses), *more]
    for each in inside:
        each.show()
    if tables is not None and shifts is not None and "report" in wanted:
        announce_files(folder, write_report(opened, tables, shifts, folder, title=study.name, inside=inside))
        return
    found = vars(tables) if tables is not None else {}
    written = save_tables(folder, found if shifts is None else {**found, "shift": shifts})
    announce_files(folder, [*written, *(path for each in inside for path in each.save(folder))])


def run_metrics(
    target: str | Path,
    question: Question,
    *,
    store: str | Path | None = None,
    out: Path | None = None,
    columns: Mapping[str, str] | None = None,
    parser: str | None = None,
) -> None:
    """What behaviour says of a study's store, or of a table of predictions; with ``parser``, of answers read anew.

    ``columns`` are the names that a table has for ours: ``{"case": "question_id"}``.
    """
    name: str
    source: Store | pd.DataFrame
    path = Path(target)
    if path.suffix.lower() in TABLES and not path.is_dir() and store is None:
        name, source = path.stem, read_table(path, columns or {})
    else:
        name, source = open_target(target, store=store)
        if columns:
            raise ProbeError(f"{target} is no table: its columns have their names already; leave --columns out")
    if parser is not None:
        source = reread(source, parser)
        say(str(source.reparsed))
    folder = figures_path(name, out)
    table = cells(source, question)
    if question.site != behaviour.DEFAULT_SITE:
        say(_told_of_site(table, question))
    if several := mixed_parsers(table):
        say(several)
    tables = behaviour_tables(source, question)
    show_metrics(tables, table, equal_mass=question.equal_mass)
    show_behaviour(tables)
    announce_files(folder, save_tables(folder, vars(tables)))


def _told_of_site(table: pd.DataFrame, question: Question) -> str:
    """Where the latent label is read, and how many cells have none there."""
    lack = int((behaviour.read_outcomes(table, **question.labels).latent < 0).sum())
    told = f"the latent label is read at the site {question.site}"
    if not lack:
        return told
    return f"{told}; {lack:,} of {len(table):,} cells lack it and enter no latent figure (a persona can be the reason)"


def run_rankings(target: Path, *, base: str | None, out: Path | None, columns: Mapping[str, str]) -> None:
    """Mean reciprocal rank of each persona in a table of judges' rankings, and how far the judges agree."""
    judged = read_rankings(target, columns)
    folder = figures_path(target.stem, out)
    found = {"rankings": behaviour.rankings(judged, base)}
    if "judge" in judged and judged["judge"].nunique() > 1:
        found["agreement"] = behaviour.agreement(judged)
    show_rankings(found, base)
    announce_files(folder, save_tables(folder, found))


def run_directions(target: str | Path, *, store: str | Path | None, base: str | None, out: Path | None) -> None:
    """Each persona's shift and its geometry, layer by layer, as tables and figures; and its directions as files."""
    from probe.stages.directions import write_directions  # scikit-learn takes a second that no other command needs

    name, opened = open_target(target, store=store)
    folder = figures_path(name, out)
    shifts = shift_tables(opened, base=base)
    if shifts.empty:
        raise ProbeError(
            "a shift needs the base persona and at least one other among the captures; name it with --base"
        )
    show_shift(pooled(main_shifts(shifts)))
    written = save_tables(folder, {"shift": shifts})
    announce_files(folder, [*written, *write_directions(opened, folder, base=base)])


def run_report(target: str | Path, *, store: str | Path | None, base: str | None, out: Path | None) -> None:
    """Figures, tables and the page of a store."""
    name, opened = open_target(target, store=store)
    folder = figures_path(name, out)
    tables, shifts = behaviour_tables(opened, Question(base=base)), shift_tables(opened, base=base)
    inside = look_inside(opened, study_of(opened).get("analyses", ()), base=base)
    announce_files(folder, write_report(opened, tables, shifts, folder, title=name, inside=inside))
