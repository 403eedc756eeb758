"""Figures, tables and the one-page report. Knows tidy tables and plain values; knows no store and no model."""

from probe.report.figures import draw_persona_effects, draw_reliability, draw_risk, draw_shift, study_figures
from probe.report.findings import Finding, cautions, findings
from probe.report.page import Coverage, ExampleCell, Report, render_report
from probe.report.style import save, svg
from probe.report.tables import terminal_table

__all__ = [
    "Coverage",
    "ExampleCell",
    "Finding",
    "Report",
    "cautions",
    "draw_persona_effects",
    "draw_reliability",
    "draw_risk",
    "draw_shift",
    "findings",
    "render_report",
    "save",
    "study_figures",
    "svg",
    "terminal_table",
]
