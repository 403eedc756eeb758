"""How figures look and are saved. Knows colours, names and files; knows no metric."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.text import Text

from probe.values import ALL
from probe.values.visible import visible

TEXT_WIDTH = 6.9
"""Width of a full text column in inches; figures are made at their print size."""

PAGE_HEIGHT = 9.2
"""What a page can hold, in inches; a taller figure is drawn one stratum at a time."""

BASE_COLOUR = "#6b6b6b"
INK = "#222222"
SOFT = "#8a8a8a"
BAND = "#d9d9d9"

# Okabe & Ito's palette for colour-blind readers, without its yellow and black, which vanish on paper or in text.
_HUES = ("#CC79A7", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#E69F00")
HUES = len(_HUES)
"""Personas with a colour of their own; beyond them hues repeat and the marker tells them apart."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_LONGEST_NAME = 28
_HEAD = 17
_NAMES = {"none": "no persona", ALL: "all cases"}
_ACRONYMS = {"ed": "ED", "gp": "GP", "icu": "ICU", "ai": "AI", "ecg": "ECG"}

METRIC_NAMES: Mapping[str, str] = {
    "accuracy": "Accuracy",
    "accuracy_latent": "Accuracy (latent)",
    "consistency": "Consistency",
    "consistency_strict": "Consistency (strict)",
    "consistency_both": "Consistency (parsed in both)",
    "consistency_letter_first": "Consistency, letter first",
    "consistency_later_letter": "Consistency, letter later",
    "kappa": "Kappa, latent and stated",
    "ece": "ECE",
    "ece_equal_mass": "ECE (equal mass)",
    "ece_debiased_sq": "ECE², debiased",
    "ece_classwise": "ECE (classwise)",
    "smooth_ece": "Smooth ECE",
    "overconfidence": "Overconfidence",
    "brier": "Brier score",
    "log_loss": "Log loss (nats)",
    "stated_ece": "ECE (stated)",
    "stated_overconfidence": "Overconfidence (stated)",
    "stated_brier": "Brier score (stated)",
    "risk_propensity": "Risk propensity",
    "risk_propensity_latent": "Risk propensity (latent)",
    "risk_sensitivity": "Risk sensitivity I/II",
    "risk_sensitivity_latent": "Risk sensitivity I/II (latent)",
    "risk_log_ratio": "Log risk ratio, smoothed",
    "over_triage_rate": "Over-triage rate",
    "under_triage_rate": "Under-triage rate",
    "expected_urgency_latent": "Expected urgency (latent)",
    "expected_urgency_stated": "Expected urgency (stated)",
    "parse_rate": "Parse rate",
    "refusal_rate": "Refusal rate",
    "unparsable_rate": "Unparsable rate",
    "truncated_rate": "Truncated rate",
    "conflicting_rate": "Conflicting rate",
    "label_mass": "Label mass",
    "low_mass_rate": "Label mass < .5",
    "entropy": "Entropy (nats)",
    "margin": "Margin (nats)",
}
"""What a reader sees for each metric."""


def metric_name(metric: str) -> str:
    """A metric as a reader sees it; one without a name of its own in plain words."""
    if metric in METRIC_NAMES:
        return METRIC_NAMES[metric]
    if metric.startswith("probability_"):
        option, _, channel = metric.removeprefix("probability_").rpartition("_")
        return f"P({visible(option)}), {channel}"
    words = visible(metric).replace("_", " ")
    return words[:1].upper() + words[1:]


def shown(name: str) -> str:
    """A persona or stratum as a reader sees it: words for underscores, shortened where it would not fit."""
    words = [_ACRONYMS.get(word, word) for word in visible(name).replace("_", " ").split()]
    text = _NAMES.get(name, " ".join(words)) or "(unnamed)"
    return shortened(text)


def shortened(text: str) -> str:
    """A name that fits beside a row: its beginning and its end."""
    if len(text) <= _LONGEST_NAME:
        return text
    # Long names of one study share their beginning more often than their end: keep both.
    return f"{text[:_HEAD]}…{text[_HEAD + 1 - _LONGEST_NAME :]}"


def drawable(text: str) -> str:
    """A text for a figure: characters that its font lacks are shown by their code, not by a box that hides them.

    The font is DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, Arabic and more, no CJK or Devanagari.
    """
    lacking = {character for character in text if ord(character) not in _glyphs() and character not in "\n\t"}
    if not lacking:
        return text
    coded = "".join(f"⟨U+{ord(character):04X}⟩" if character in lacking else character for character in text)
    return coded if "\n" in coded else shortened(coded)


@cache
def _glyphs() -> frozenset[int]:
    """Characters that the regular and the bold face both have."""
    faces = [FontProperties(family="DejaVu Sans", weight=weight) for weight in ("normal", "bold")]
    regular, bold = (set(get_font(fontManager.findfont(face)).get_charmap()) for face in faces)
    return frozenset(regular & bold)


def colours(personas: Sequence[str], base: str) -> dict[str, str]:
    """One colour per persona, the same in every figure; the base is grey. From the seventh on hues repeat."""
    others = [persona for persona in personas if persona != base]
    return {base: BASE_COLOUR} | {persona: _HUES[i % len(_HUES)] for i, persona in enumerate(others)}


def markers(personas: Sequence[str]) -> dict[str, str]:
    """One marker per persona, so that no figure depends on colour alone."""
    return {persona: _MARKERS[i % len(_MARKERS)] for i, persona in enumerate(personas)}


def arms(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Personas and strata of a tidy table in their order, the pool after the strata that it pools."""
    personas, strata = (list(table[name].drop_duplicates()) for name in ("persona", "stratum"))
    return personas, sorted(strata, key=lambda stratum: bool(stratum == ALL))


def has_plan(metrics: pd.DataFrame) -> pd.Series:
    """Rows of a metrics table whose planned value is of all the cells that were measured, not of some of them."""
    return metrics["planned"].notna() & (metrics["n_planned"] >= metrics["n"])


def stratum_looks(strata: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each stratum; the pool is black."""
    hues, shapes = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"), ("s", "^", "v", "P", "X", "d")
    parts = [stratum for stratum in strata if stratum != ALL]
    looks = {stratum: (hues[i % len(hues)], shapes[i % len(shapes)]) for i, stratum in enumerate(parts)}
    return looks | ({ALL: (INK, "o")} if ALL in strata else {})


@contextmanager
def styled() -> Iterator[None]:
    """The project's matplotlib settings for as long as the context lasts; nothing global is changed."""
    with mpl.rc_context(), mpl.style.context(Path(__file__).with_name("probe.mplstyle")):
        yield


def laid_out(figure: Figure) -> Figure:
    """Settle where everything stands, once: every file of the figure shares it, and saving need not search again."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(drawable(text.get_text()))
    figure.draw_without_rendering()
    with mpl.rc_context({"figure.constrained_layout.use": False}):
        # None, not "none", which leaves a placeholder: with any engine matplotlib draws twice for every file.
        figure.set_layout_engine(None)
    return figure


def svg(figure: Figure) -> str:
    """The figure as SVG text, the same bytes on every run."""
    return _rendered(figure, "svg", Date=None, Creator=None).decode("utf-8")


def png(figure: Figure) -> bytes:
    """The figure as PNG at 200 dots per inch, the same bytes on every run."""
    return _rendered(figure, "png", Software=None)


def pdf(figure: Figure) -> bytes:
    """The figure as PDF with embedded fonts and without a date, the same bytes on every run."""
    return _rendered(figure, "pdf", CreationDate=None, Creator=None, Producer=None)


def _rendered(figure: Figure, form: str, **metadata: Any) -> bytes:
    buffer = io.BytesIO()
    with styled(), mpl.rc_context({"figure.constrained_layout.use": False}):
        figure.savefig(buffer, format=form, metadata=metadata)
    return buffer.getvalue()
