"""What a run asks of the inside of its store, analysis by analysis: tables, figures, sentences. Captures nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from probe import report
from probe.stages.analysis import Question, save_tables
from probe.stages.terminal import say
from probe.store import Store
from probe.values import ALL, ProbeError

INSIDE = ("directions", "probes", "lens", "relate")
"""The analyses of the residual stream that a study may name, in the order in which they are made."""

PERMUTATIONS = 99
"""Behind each p of what residuals predict, in a run: half of those of `probe relate`, and half of its time."""


@dataclass(frozen=True, eq=False)
class Inside:
    """What one analysis gave: tables and figures by file name, sentences for the report, and how a terminal shows it.

    ``save_more`` writes what is neither table nor figure into a folder.
    """

    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, report.Drawn]
    show: Callable[[], None]
    findings: Sequence[report.Finding] = ()
    save_more: Callable[[Path], list[Path]] = field(default=lambda folder: [])

    def save(self, folder: Path) -> list[Path]:
        """Tables as CSV, figures as SVG, PDF, PNG and their numbers, and what else there is."""
        drawn = [path for name, figure in self.figures.items() for path in report.save(figure, folder, name)]
        return [*save_tables(folder, self.tables), *drawn, *self.save_more(folder)]


def look_inside(store: Store, analyses: Sequence[str], *, base: str | None = None) -> list[Inside]:
    """What these analyses give, against the study's base or ``base``; one that the captures do not allow says why, and
    the others stand."""
    found = []
    for name in INSIDE:
        if name in analyses:
            try:
                found.append(_MADE[name](store, base))
            except ProbeError as error:
                say(f"{name}: {error}")
    return found


def _directions(store: Store, base: str | None) -> Inside:
    from probe.stages.directions import geometry_figures, geometry_tables, make_directions, save_made
    from probe.stages.terminal_geometry import show_geometry

    tables, made = geometry_tables(store, base=base), make_directions(store, base=base)
    return Inside(
        {**vars(tables), "directions": made.table},
        geometry_figures(tables),
        lambda: show_geometry(tables, made.table),
        save_more=lambda folder: save_made(folder, made),
    )


def _probes(store: Store, _base: str | None) -> Inside:
    from probe.report.probes import draw_probes
    from probe.stages.probes import probe_store, transfer
    from probe.stages.terminal_probes import show_probes, show_transfer

    table, moved = probe_store(store), transfer(store)

    def show() -> None:
        show_probes(table)
        show_transfer(moved)

    return Inside({"probes": table, "probes_transfer": moved}, draw_probes(table), show)


def _lens(store: Store, base: str | None) -> Inside:
    from probe.stages.lens import lens_drawn, lens_tables, named
    from probe.stages.terminal_lens import show_lens

    tables = lens_tables(store, base=base, readable=True)
    return Inside(named(tables), lens_drawn(tables), lambda: show_lens(tables))


def _relate(store: Store, base: str | None) -> Inside:
    from probe.report.relation import relation_figures
    from probe.report.relation_sentences import relation_sentence
    from probe.stages.relate import Asked, relate
    from probe.stages.terminal_relation import show_relation

    tables = relate(store, Question(base=base), Asked(permutations=PERMUTATIONS))
    own = tables.relation[tables.relation["base"] == tables.relation["base"].iloc[0]]
    told = [relation_sentence(row) for _, row in own[own["stratum"] == ALL].iterrows()]
    lead = (
        "L is the persona's change of the latent label, D what writing the answer adds, T = L + D. They say where an "
        "effect is visible, not where it is caused."
    )
    return Inside(
        vars(tables),
        relation_figures(tables.relation, tables.flips, tables.sides, tables.prediction),
        lambda: show_relation(tables),
        [report.Finding("Where a persona acts", tuple(told), lead)],
    )


_MADE: Mapping[str, Callable[[Store, str | None], Inside]] = dict(
    zip(INSIDE, (_directions, _probes, _lens, _relate), strict=True)
)
