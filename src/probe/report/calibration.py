"""Reliability diagrams. Knows bins of a reliability table and the ECE beside them; computes no statistic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from probe.report.drawn import Drawn, explained, side_label, squeezed
from probe.report.numbers import decimal
from probe.report.style import BAND, INK, SOFT, TEXT_WIDTH, arms, drawable, laid_out, shown, styled

PANELS = 6
"""Personas of one figure; more make further figures."""

CHANNELS = {"latent": ("ece", "the latent label"), "stated": ("stated_ece", "the stated answer")}
"""Whose calibration is drawn: the metric that holds its ECE, and its name."""

_COUNTS = "#9fc0dd"
_FEW = 10


def draw_reliability(
    bins: pd.DataFrame, metrics: pd.DataFrame, *, channel: str = "latent", personas: Sequence[str] = ()
) -> Drawn:
    """Reliability diagrams, one small panel per persona and stratum: accuracy against confidence.

    ``channel`` is ``latent`` (the latent label and its own probability) or ``stated`` (the written label and the
    latent probability of that label). Grey boxes: where a perfectly calibrated bin falls 95 % of the time. Steps at
    the bottom: cells per bin, against the fullest. Each panel prints its ECE with the range of the ECE under perfect
    calibration. Hollow marks: fewer than ten cells.
    """
    rows = bins[bins["labels"] == channel] if "labels" in bins else bins
    found, strata = arms(rows)
    shown_personas = [persona for persona in found if not personas or persona in personas]
    rows = rows[rows["persona"].isin(shown_personas)]
    metric, label = CHANNELS[channel]
    with styled():
        width = min(TEXT_WIDTH / max(len(shown_personas), 3), 1.6)
        size = (TEXT_WIDTH, 1.1 + len(strata) * (width + 0.05))
        # The names over the first row reach beyond their panels: leave them a margin.
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 0.985)))
        axes = figure.subplots(len(strata), len(shown_personas), sharex=True, sharey=True, squeeze=False)
        for line, stratum in enumerate(strata):
            for column, persona in enumerate(shown_personas):
                ax = axes[line, column]
                _panel(ax, rows[(rows["persona"] == persona) & (rows["stratum"] == stratum)])
                ax.set_title(_ece_text(metrics, metric, persona, stratum), fontsize=7, fontweight="normal", pad=3)
                if line == 0:
                    place = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
                    ax.annotate(_two_lines(drawable(shown(persona))), (0, 1), (0, 21), fontweight="bold", **place)
            side_label(axes[line, 0], shown(stratum))
        axes[0, 0].set(xlim=(0, 1), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        for ax in axes[-1]:
            ax.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        axes[0, 0].set_yticks([0, 0.5, 1], ["0", ".5", "1"])
        figure.supylabel(f"accuracy of {label}", fontsize=7.5)
        explained(figure, _keys(), ncols=3, axis=f"confidence: probability of {label} at the end of the prompt")
        title = f"Reliability of {label}"
        return Drawn(
            laid_out(figure), rows.reset_index(drop=True), title, _CAPTION.format(label=label) + _MORE[channel]
        )


_CAPTION = (
    "Accuracy of {label} against its probability at the end of the prompt (softmax over the labels), in equal-width "
    "bins; lines: 95 % intervals. Grey: where a perfectly calibrated bin of this size falls 95 % of the time. The "
    "ECE of a perfectly calibrated model is not nil: its 95 % range (null) stands beside each ECE. Steps: cells "
    "per bin, against the fullest bin."
)
_MORE = {
    "latent": "",
    "stated": " Parsed cells only, a subset that a persona can influence: descriptive.",
}


def _keys() -> list[Line2D | Patch]:
    return [
        Line2D([], [], color=INK, marker="o", ms=3, label=f"accuracy, 95 % interval (hollow: < {_FEW} cells)"),
        Patch(color=BAND, label="perfect calibration, 95 % range"),
        Patch(color=_COUNTS, label="cells per bin"),
    ]


def _panel(ax: Axes, part: pd.DataFrame) -> None:
    lower, width, count = part["lower"], part["upper"] - part["lower"], part["count"]
    ax.bar(lower, part["null_high"] - part["null_low"], width, part["null_low"], align="edge", color=BAND, lw=0)
    ax.bar(lower, 0.22 * count / max(count.max(), 1), width, align="edge", color=_COUNTS, lw=0)
    ax.plot([0, 1], [0, 1], color=SOFT, lw=0.7, ls=(0, (4, 3)))
    for few, fill in ((False, INK), (True, "white")):
        dots = part[(count < _FEW) == few]
        if dots.empty:  # unclipped artists without a point have no extent, which the layout cannot take
            continue
        ax.vlines(dots["confidence"], dots["low"], dots["high"], color=SOFT if few else INK, lw=0.6 if few else 1)
        ax.plot(
            dots["confidence"], dots["accuracy"], ls="", marker="o", ms=3, mfc=fill, mec=INK, mew=0.7, clip_on=False
        )
    ax.grid(visible=False)
    ax.set_aspect("equal")


def _ece_text(metrics: pd.DataFrame, metric: str, persona: str, stratum: str) -> str:
    at = (metrics["metric"] == metric) & (metrics["persona"] == persona) & (metrics["stratum"] == stratum)
    row = metrics[at]
    if row.empty or not np.isfinite(row["value"].iloc[0]):
        return "ECE undefined\n"
    value, low, high = (decimal(row[name].iloc[0]) for name in ("value", "null_low", "null_high"))
    return f"ECE {value}\n(null {low}–{high})"


def _two_lines(text: str) -> str:
    """Break a name near its middle and shorten what is still too long to stand over a small panel."""
    words, best = text.split(" "), text
    for cut in range(1, len(words)):
        broken = "\n".join((" ".join(words[:cut]), " ".join(words[cut:])))
        best = min(best, broken, key=lambda option: max(len(line) for line in option.split("\n")))
    return "\n".join(squeezed(line, _WIDEST) for line in best.split("\n"))


_WIDEST = 15
