"""Figures over several models: whose rows they have, and whether their numbers can be read."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from probe.report.across import draw_across, draw_ranks

MODELS, PERSONAS = ("one", "two", "three"), tuple("abcdefgh")


def effects() -> pd.DataFrame:
    """Against two bases, each a persona to the other; in one model all personas are tied."""
    rng, rows = np.random.default_rng(0), []
    for base, personas in (("none", (*PERSONAS, "chat")), ("chat", (*PERSONAS, "none"))):
        for model in MODELS:
            found = np.zeros(len(personas)) if model == "two" else rng.permutation(len(personas)) / 10
            ranks = pd.Series(-found).rank().to_numpy()
            for persona, difference, rank in zip(personas, found, ranks, strict=True):
                interval = {"low": difference - 0.1, "high": difference + 0.1}
                row = {"model": model, "persona": persona, "base": base, "difference": difference, "rank": rank}
                rows.append({"metric": "accuracy", "stratum": "all", **row, **interval})
    return pd.DataFrame(rows)


def summary() -> pd.DataFrame:
    table = effects().drop_duplicates(["base", "persona"]).rename(columns={"difference": "value"})
    return table.assign(next_low=-1.0, next_high=1.0, flips=False)


def row_names(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_a_figure_has_the_personas_of_its_base_alone() -> None:
    drawn = draw_across(effects(), summary(), ["accuracy"])
    assert row_names(drawn.figure) == [*PERSONAS, "chat"]
    assert set(effects()["persona"]) == {*PERSONAS, "chat", "none"}


def test_every_rank_stands_out_from_its_cell_where_all_are_tied_too() -> None:
    agreement = pd.DataFrame([{"metric": "accuracy", "base": "none", "stratum": "all", "w": 0.5, "p": 0.04}])
    figure = draw_ranks(effects(), agreement, ["accuracy"]).figure
    ax = figure.axes[0]
    assert ax.get_xlabel() == "W .50, p .040"
    image = ax.images[0]
    cells = image.to_rgba(image.get_array())
    contrasts = []
    for text in ax.texts:
        column, row = text.get_position()
        lights = sorted(_luminance(colour) for colour in (cells[int(row), int(column)][:3], to_rgb(text.get_color())))
        contrasts.append((lights[1] + 0.05) / (lights[0] + 0.05))
    assert len(contrasts) == 27 and min(contrasts) > 4.5  # of small text, WCAG 2.1


def _luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance, WCAG 2.1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))
