"""How figures look and are saved. Knows colours, names and files; knows no metric."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import matplotlib.style
import pandas as pd
from matplotlib.figure import Figure

from probe.values import ALL

TEXT_WIDTH = 6.9
"""Width of a full text column in inches; figures are made at their print size."""

BASE_COLOUR = "#6b6b6b"
INK = "#222222"
SOFT = "#8a8a8a"
BAND = "#d9d9d9"

# Okabe & Ito's palette for colour-blind readers, without its yellow and black, which vanish on paper or in text.
_HUES = ("#CC79A7", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_LONGEST_NAME = 28
_NAMES = {"none": "no persona", ALL: "all cases"}
_ACRONYMS = {"ed": "ED", "gp": "GP", "icu": "ICU", "ai": "AI", "ecg": "ECG"}

METRIC_NAMES: Mapping[str, str] = {
    "accuracy": "Accuracy",
    "accuracy_latent": "Accuracy (latent)",
    "consistency": "Consistency",
    "consistency_strict": "Consistency (strict)",
    "consistency_both": "Consistency (parsed in both)",
    "ece": "ECE",
    "overconfidence": "Overconfidence",
    "brier": "Brier score",
    "log_loss": "Log loss (nats)",
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
    "label_mass": "Label mass",
}
"""What a reader sees for each metric."""


def shown(name: str) -> str:
    """A persona or stratum as a reader sees it: words for underscores, shortened where it would not fit."""
    words = [_ACRONYMS.get(word, word) for word in name.replace("_", " ").split()]
    text = _NAMES.get(name, " ".join(words)) or "(unnamed)"
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"


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


@contextmanager
def styled() -> Iterator[None]:
    """The project's matplotlib settings for as long as the context lasts; nothing global is changed."""
    with mpl.rc_context(), mpl.style.context(Path(__file__).with_name("probe.mplstyle")):
        yield


def laid_out(figure: Figure) -> Figure:
    """Settle where everything stands, once: every file of the figure shares it, and saving need not search again."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def svg(figure: Figure) -> str:
    """The figure as SVG text, the same bytes on every run."""
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write ``name.png`` (200 dpi) and ``name.svg`` into the folder, byte-identical on a second run."""
    folder.mkdir(parents=True, exist_ok=True)
    png, vector = folder / f"{name}.png", folder / f"{name}.svg"
    with styled():
        figure.savefig(png, format="png", metadata={"Software": None})
    vector.write_text(svg(figure), encoding="utf-8")
    return png, vector
