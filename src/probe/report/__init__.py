"""Figures, tables and the one-page report. Knows tidy tables and plain values; knows no store and no model."""

from probe.report.calibration import draw_reliability
from probe.report.cautions import cautions, warnings
from probe.report.cells import ReadCell, cell_pages
from probe.report.consistency import draw_causes, draw_sites
from probe.report.drawn import Drawn, save
from probe.report.effects import draw_forest, draw_persona_effects
from probe.report.figures import Tables, draw_shift, study_figures
from probe.report.findings import Finding, findings
from probe.report.page import Coverage, Picture, Report, render_report
from probe.report.risk import draw_risk, draw_risk_plane
from probe.report.style import pdf, png, svg
from probe.report.tables import terminal_table

__all__ = [
    "Coverage",
    "Drawn",
    "Finding",
    "Picture",
    "ReadCell",
    "Report",
    "Tables",
    "cautions",
    "cell_pages",
    "draw_causes",
    "draw_forest",
    "draw_persona_effects",
    "draw_reliability",
    "draw_risk",
    "draw_risk_plane",
    "draw_shift",
    "draw_sites",
    "findings",
    "pdf",
    "png",
    "render_report",
    "save",
    "study_figures",
    "svg",
    "terminal_table",
    "warnings",
]
