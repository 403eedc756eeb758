"""One self-contained HTML page of a study. Knows tidy tables, figures as SVG and records; computes no statistic."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from probe.report.blocks import comparison_blocks, metric_blocks
from probe.report.cautions import cautions, warnings
from probe.report.cells import ReadCell, section
from probe.report.effects import main_base
from probe.report.figures import Tables
from probe.report.findings import Finding, findings
from probe.report.further import further_blocks
from probe.report.numbers import plural
from probe.report.style import shown
from probe.report.templates import render


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure on the page: its file name without ending, its words, and the drawing as SVG text."""

    name: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True, eq=False)
class Coverage:
    """How many cells were planned and captured, and those that failed for good, each with its reason."""

    planned: int
    captured: int
    failures: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, eq=False)
class Report:
    """All that a page is made of: plain values and tidy tables.

    ``facts`` are the few things a reader wants to know first (model, personas, cases); ``records`` the rest, by heading
    (settings, versions, provenance). ``notes`` are warnings that the run knows of (placement of the persona where a
    template has no system role, ...). ``findings`` are sentences beside those that the tables give. ``cells`` are cells
    to read on the page itself; ``more_cells`` says where all of them are (a relative address), empty where the page has
    all. ``synthetic`` marks the embedded organism.
    """

    title: str
    subtitle: str
    tables: Tables
    coverage: Coverage
    figures: Sequence[Picture] = ()
    findings: Sequence[Finding] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    records: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    cells: Sequence[ReadCell] = ()
    more_cells: str = ""
    notes: Sequence[str] = ()
    synthetic: bool = False


def render_report(report: Report) -> str:
    """The page as HTML text: one file without script or network, everything that came from outside escaped.

    The same report gives the same bytes.
    """
    tables = report.tables
    compared = tables.comparisons
    told = [*findings(tables), *report.findings]
    return render(
        "page.html",
        report=report,
        facts=list(report.facts.items()),
        alerts=[*_coverage_alerts(report.coverage), *warnings(tables), *report.notes],
        decided=[finding for finding in told if finding.decided],
        explored=[finding for finding in told if not finding.decided],
        cautions=cautions(tables),
        figures=[embedded(picture) for picture in report.figures],
        planned=bool(tables.metrics["planned"].notna().any()),
        metric_blocks=metric_blocks(tables.metrics),
        further=further_blocks(tables),
        base=shown(main_base(compared)) if len(compared) else "",
        comparisons=comparison_blocks(compared) if len(compared) else [],
        section=section(report.cells),
        records=[(title, list(entries.items())) for title, entries in report.records.items()],
    )


def _coverage_alerts(coverage: Coverage) -> list[str]:
    alerts = []
    missing = coverage.planned - coverage.captured - len(coverage.failures)
    if missing > 0:
        alerts.append(
            f"Incomplete: {coverage.captured:,} of {plural(coverage.planned, 'planned cell')} were captured and "
            f"{missing:,} are still to do; run the same command again to finish."
        )
    if coverage.failures:
        told = [f"{cell} ({reason})" for cell, reason in coverage.failures[:5]]
        more = len(coverage.failures) - len(told)
        alerts.append(
            f"{plural(len(coverage.failures), 'cell')} failed for good, counted in no number below: "
            f"{', '.join(told)}{f', and {more:,} more' if more else ''}."
        )
    return alerts


def embedded(picture: Picture) -> dict[str, str]:
    """A picture for a template: its words, and the drawing in base64."""
    encoded = base64.b64encode(picture.svg.encode()).decode()
    return {"name": picture.name, "title": picture.title, "caption": picture.caption, "base64": encoded}
