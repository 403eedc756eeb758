"""The figures of geometry draw what their tables say, with undefined values and without them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probe.mechanism.geometry.tables import geometry
from probe.report.geometry import draw_cosines, draw_norms, draw_role_style, draw_stability
from probe.report.style import svg
from tests.mechanism.geometry.geometry_samples import cells, unit

ROLES = {"nurse": ("nurse", ""), "bold_nurse": ("nurse", "bold"), "doc": ("doc", ""), "bold_doc": ("doc", "bold")}


@pytest.fixture(scope="module")
def tables():
    planted = {"nurse": 2 * unit(0), "bold_nurse": 2 * unit(0) + unit(2), "doc": 2 * unit(1), "bold_doc": unit(1)}
    return geometry(cells(planted, np.random.default_rng(0), families=12, described=ROLES))


def test_every_figure_holds_the_numbers_of_its_table(tables):
    drawn = {
        "norms": draw_norms(tables.norms, position="prompt_end"),
        "cosines": draw_cosines(tables.cosines, position="prompt_end", layer=1),
        "stability": draw_stability(tables.stability, tables.agreement, position="prompt_end"),
        "role_style": draw_role_style(tables.role_style, position="prompt_end"),
    }
    assert len(drawn["norms"].numbers) == 4 * 2 * 3
    assert len(drawn["cosines"].numbers) == 6 * 2 * 3
    for figure in drawn.values():
        assert figure.title
        assert svg(figure.figure).startswith("<?xml")


def test_undefined_values_are_drawn_as_crosses_and_gaps_not_as_nil(tables):
    nothing = tables.cosines.assign(value=np.nan, low=np.nan, high=np.nan)
    axes = draw_cosines(nothing, position="prompt_end", layer=1).figure.axes
    assert {line.get_marker() for line in axes[0].lines} == {"x"}
    known = draw_cosines(tables.cosines.assign(low=0.9, high=1.1), position="prompt_end", layer=1).figure.axes
    assert not known[0].lines
    gaps = draw_norms(tables.norms.assign(value=np.nan, low=np.nan, high=np.nan), position="prompt_end")
    assert all(np.isnan(line.get_ydata()).all() for line in gaps.figure.axes[0].lines)


def test_a_caption_says_how_many_personas_a_figure_leaves_out_and_its_numbers_are_those_drawn(tables):
    many = pd.concat([tables.norms.assign(persona=tables.norms["persona"] + f"_{i}") for i in range(5)])
    drawn = draw_norms(many, position="prompt_end")
    assert drawn.numbers["persona"].nunique() == 14
    assert "The first 14 of 20 personas are drawn" in drawn.caption
    assert "are drawn" not in draw_norms(tables.norms, position="prompt_end").caption
