"""One self-contained HTML page of a study. Knows tidy tables, figures as SVG and records; computes no statistic."""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from probe.report.blocks import comparison_blocks, metric_blocks
from probe.report.findings import cautions, findings
from probe.report.numbers import decimal, plural
from probe.report.style import shown

CAPTIONS: Mapping[str, tuple[str, str]] = {
    "persona_effects": (
        "Persona effects",
        "Change against the base persona in accuracy, consistency and expected calibration error, in percentage "
        "points; arrows show the better direction. Whiskers: 95 % intervals of the paired difference (for ECE a "
        "descriptive bootstrap band, no test). * Holm-adjusted p < .05 over all tests of this report. † strata and "
        "pool differ in sign, one of them with an interval that excludes 0. Diamonds: the planned difference on the "
        "same cases, where there is a plan.",
    ),
    "risk": (
        "Risk propensity and sensitivity",
        "Left: share of all cases that are given the high-urgency label, whatever the reference. Right: over-triage "
        "(type I) against under-triage (type II) errors of the stated label; drawn with one half added to both counts, "
        "because the plain ratio is undefined without a type II error. Counts and plain ratio stand beside it. Neither "
        "kind of error is better as such.",
    ),
    "reliability": (
        "Reliability",
        "Accuracy of the latent label against its softmax confidence, in equal-width bins. Grey: where a perfectly "
        "calibrated bin of this size falls 95 % of the time. The ECE of a perfectly calibrated model is not nil: its "
        "95 % range (null) stands beside each ECE.",
    ),
    "shift": (
        "Shift of the residual stream",
        "Norm of the mean paired shift from the base persona, as a share of the base's root mean square residual norm, "
        "estimated from products of different cases only, so that noise does not inflate it. Bands: jackknife over "
        "cases. Dotted: 95 % quantile at that point when the sign of each case's shift is random; the sentences above "
        "compare the largest shift with the quantile of the largest over all points.",
    ),
}
"""Title and caption of each figure that a report may hold."""


@dataclass(frozen=True, eq=False)
class ExampleCell:
    """One cell to read: the prompt, the answer with the span of its parsed letter, both labels and their read-outs.

    ``reads`` maps a site in words (``at the end of the prompt``) to the probability of each option there.
    """

    persona: str
    case: str
    stratum: str
    prompt: str
    answer: str
    status: str
    target: str
    latent: str | None
    stated: str | None
    span: tuple[int, int] | None = None
    reads: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Coverage:
    """How many cells were planned and captured, and those that failed for good, each with its reason."""

    planned: int
    captured: int
    failures: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, eq=False)
class Report:
    """All that a page is made of: plain values and tidy tables.

    ``figures`` maps a name of :data:`CAPTIONS` to SVG text. ``facts`` are the few things a reader wants to know first
    (model, personas, cases); ``records`` the rest, by heading (settings, versions, provenance). ``notes`` are warnings
    that the run knows of (placement of the persona where a template has no system role, ...). ``synthetic`` marks the
    embedded organism.
    """

    title: str
    subtitle: str
    metrics: pd.DataFrame
    comparisons: pd.DataFrame
    coverage: Coverage
    shifts: pd.DataFrame | None = None
    figures: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)
    records: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    examples: Sequence[ExampleCell] = ()
    notes: Sequence[str] = ()
    synthetic: bool = False


def render_report(report: Report) -> str:
    """The page as HTML text: one file without script or network, everything that came from outside escaped.

    The same report gives the same bytes.
    """
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, finalize=_visible, trim_blocks=True
    )
    comparisons = report.comparisons
    return environment.get_template("page.html").render(
        report=report,
        css=Markup((folder / "page.css").read_text(encoding="utf-8")),
        facts=list(report.facts.items()),
        alerts=[*_coverage_alerts(report.coverage), *report.notes],
        findings=findings(report.metrics, comparisons, report.shifts),
        cautions=cautions(report.metrics, comparisons),
        figures=[_figure(name, text) for name, text in report.figures.items()],
        planned=bool(report.metrics["planned"].notna().any()),
        metric_blocks=metric_blocks(report.metrics),
        base=shown(str(comparisons["base"].iloc[0])) if len(comparisons) else "",
        comparisons=comparison_blocks(comparisons) if len(comparisons) else [],
        examples=[_example(cell) for cell in report.examples],
        records=[(title, list(entries.items())) for title, entries in report.records.items()],
    )


def _visible(value: Any) -> Any:
    """Control characters and characters that reorder text are shown by their code, so that no name can hide."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    hidden = [c for c in set(value) if unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs") and c not in "\n\t"]
    for character in hidden:
        value = value.replace(character, f"⟨U+{ord(character):04X}⟩")
    return value


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


def _figure(name: str, svg: str) -> dict[str, str]:
    title, caption = CAPTIONS[name]
    return {"title": title, "caption": caption, "base64": base64.b64encode(svg.encode()).decode()}


def _example(cell: ExampleCell) -> dict[str, object]:
    start, end = cell.span or (len(cell.answer), len(cell.answer))
    reads = []
    for site, probabilities in cell.reads.items():
        bars = [(label, decimal(p), round(90 * p) if np.isfinite(p) else 0) for label, p in probabilities.items()]
        reads.append({"site": site, "bars": bars})
    return {
        "persona": shown(cell.persona),
        "case": cell.case,
        "stratum": shown(cell.stratum),
        "prompt": cell.prompt,
        "status": cell.status,
        "target": cell.target,
        "latent": cell.latent or "none",
        "stated": cell.stated or "none",
        "before": cell.answer[:start],
        "letter": cell.answer[start:end],
        "after": cell.answer[end:],
        "reads": reads,
    }
