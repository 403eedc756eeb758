"""Figures of prompting against steering show the numbers of their tables, and are drawn where something is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from probe.mechanism.steering.comparison import patterns, recovery, shifts
from probe.mechanism.steering.costs import CostsOf, cost_table
from probe.mechanism.steering.response import distances, dose_response
from probe.report.drawn import save
from probe.report.steering import LOOKS, draw_pattern, draw_recovered, steering_figures
from probe.report.steering_costs import draw_costs, summarised
from probe.report.steering_curves import draw_distances, draw_dose
from tests.mechanism.steering.steering_world import World


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    """A comparison over a model of one matrix, with every kind of table."""
    rng = np.random.default_rng(0)
    world = World.drawn(rng, n=60, size=2.0)
    units = rng.standard_normal((8, 24))
    arms = [world.arm("steered", "steered", world.persona, 0.6), world.arm("label_contrast", "up", 2 * world.head[2])]
    arms += [world.arm("isotropic", f"isotropic {i}", unit, 0.5) for i, unit in enumerate(units)]
    arms += [world.arm("isotropic", "far", 400 * units[0], 4.0, reached=False)]
    found = world.comparison(arms)
    ladder = [world.arm("steered", "steered", s * world.persona, s) for s in (-1.0, 0.5, 1.0, 20.0, 90.0)]
    x = np.stack([world.x, world.x, 2 * world.x])
    resid = {"none": x, "prompted": x + np.stack([0 * world.x, world.prompted, world.prompted])}
    resid["steered"] = x + np.stack([0 * world.x, 0 * world.x + world.persona, 0 * world.x + world.persona])
    health = {"label_mass": np.full(60, 0.4), "entropy": np.full(60, 0.9)}
    costs = [CostsOf(arm.kind, arm.name, health | {"parse_rate": (rng.random(60) > 0.1) * 1.0}) for arm in found.arms]
    return {
        "steer_recovery": recovery(found),
        "steer_pattern": patterns(found),
        "steer_shifts": shifts(found),
        "steer_response": dose_response(found, ladder),
        "steer_distances": distances(found, resid, (0, 1, 2)),
        "steer_costs": cost_table("persona", costs, found.cases.family),
    }


def test_every_table_has_its_figure_and_a_second_run_the_same_bytes(
    tables: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    figures = steering_figures(tables)
    assert set(figures) == {f"steer_{n}" for n in ("recovered", "pattern", "dose", "distance", "costs")}
    first, again = (
        [path.read_bytes() for path in save(figures["steer_recovered"], tmp_path / name, "x")] for name in "ab"
    )
    assert first == again


def test_the_recovered_fraction_is_drawn_where_the_table_has_it(tables: dict[str, pd.DataFrame]) -> None:
    drawn = draw_recovered(tables["steer_recovery"], tables["steer_pattern"])
    table = tables["steer_recovery"].query("stratum == 'all' and outcome == 'expected_urgency' and kind == 'steered'")
    numbers = drawn.numbers.query("kind == 'steered' and quantity == 'recovered'")
    assert numbers["value"].tolist() == table["recovered"].tolist()
    marks = [x for line in drawn.figure.axes[0].lines for x in np.atleast_1d(line.get_xdata())]
    assert np.isclose(np.array(marks, dtype=float), table["recovered"].iloc[0]).any()
    assert "as prompted" in {text.get_text().split("\n")[-1] for text in drawn.figure.axes[0].get_yticklabels()}


def test_a_control_without_the_dose_is_not_in_the_cloud(tables: dict[str, pd.DataFrame]) -> None:
    drawn = draw_recovered(tables["steer_recovery"], tables["steer_pattern"])
    cloud = [line for line in drawn.figure.axes[1].lines if line.get_color() == LOOKS["isotropic"][0]]
    assert sum(len(np.atleast_1d(line.get_xdata())) for line in cloud) == 8


def test_each_case_is_a_mark_of_the_pattern(tables: dict[str, pd.DataFrame]) -> None:
    drawn = draw_pattern(tables["steer_shifts"], tables["steer_pattern"])
    ax = drawn.figure.axes[0]
    steered = [line for line in ax.lines if line.get_marker() in ("s", "^", "o")]
    assert sum(len(np.atleast_1d(line.get_xdata())) for line in steered) == 60
    assert "F" in ax.get_title(loc="left") and len(drawn.numbers) == 120


def test_broken_strengths_are_crosses_and_the_collapse_is_shaded(tables: dict[str, pd.DataFrame]) -> None:
    response = tables["steer_response"]
    drawn = draw_dose(response, tables["steer_recovery"], LOOKS)
    crosses = [line for line in drawn.figure.axes[0].lines if line.get_marker() == "x"]
    assert sum(len(np.atleast_1d(line.get_xdata())) for line in crosses) == int((response["broken"] != "").sum())
    sound = response.assign(broken="", collapse=np.nan)
    assert draw_dose(sound, tables["steer_recovery"], LOOKS).figure.axes  # nothing to shade


def test_the_axis_of_strengths_names_its_scale_and_has_a_tick_at_every_tried_one(
    tables: dict[str, pd.DataFrame],
) -> None:
    response = tables["steer_response"]
    figure = draw_dose(response, tables["steer_recovery"], LOOKS).figure
    assert "linear up to the equal dose, logarithmic" in figure.legends[0].get_title().get_text()
    axis = figure.axes[1].xaxis
    tried = sorted(response.query("kind == 'steered'")["strength"])
    assert {*axis.get_minorticklocs(), *axis.get_majorticklocs()} == {*tried, 0.0, 0.6}
    assert {0.0, 0.6, tried[0]} <= set(axis.get_majorticklocs())  # 0.6: the equal dose


def test_a_label_contrast_without_the_dose_is_no_cloud_of_cases(tables: dict[str, pd.DataFrame]) -> None:
    pattern = tables["steer_pattern"]
    lacking = pattern.assign(reached=pattern["reached"] & (pattern["kind"] != "label_contrast"))
    kinds = [set(draw_pattern(tables["steer_shifts"], one).numbers["kind"]) for one in (pattern, lacking)]
    assert kinds == [{"steered", "label_contrast"}, {"steered"}]


def test_distances_are_drawn_from_the_first_layer_that_has_one(tables: dict[str, pd.DataFrame]) -> None:
    drawn = draw_distances(tables["steer_distances"], LOOKS)
    assert len(drawn.numbers) == len(tables["steer_distances"]) and np.isnan(drawn.numbers["share"].iloc[0])


def test_the_costs_have_a_row_for_each_kind_of_arm_and_random_ones_their_median(
    tables: dict[str, pd.DataFrame],
) -> None:
    costs = tables["steer_costs"]
    rows = summarised(costs)
    drawn = costs.query("kind == 'isotropic' and cost == 'parse_rate'")
    one = rows.query("kind == 'isotropic' and cost == 'parse_rate'").iloc[0]
    assert one["value"] == pytest.approx(drawn["value"].median()) and one["arms"] == 9
    texts = {text.get_text() for text in draw_costs(costs).figure.axes[0].texts}
    assert any(text.startswith(".") for text in texts)


def test_random_directions_have_one_row_whichever_costs_have_one_and_whichever_many() -> None:
    rows = [("isotropic", f"isotropic {i}", "off_target_accuracy", 0.9) for i in range(9)]
    rows += [("isotropic", "isotropic 0", "parse_rate", 1.0), ("label_contrast", "up", "parse_rate", 1.0)]
    costs = pd.DataFrame(rows, columns=["kind", "arm", "cost", "value"]).assign(persona="p", n=5)
    assert list(dict.fromkeys(summarised(costs)["label"])) == ["label contrast", "random directions (n = 1–9)"]
    assert set(summarised(costs[costs["arm"] != "up"].iloc[:9])["label"]) == {"random directions (n = 9)"}


def test_a_prompted_text_that_is_less_likely_without_its_prompt_is_not_shaded_as_worse() -> None:
    rng = np.random.default_rng(1)
    family = np.array([f"{i}" for i in range(40)], dtype=object)

    def shades(kind: str) -> set[tuple[float, ...]]:
        scores = {
            name: rng.normal(shift, 0.01, 40) for name, shift in (("none", -0.1), (kind, -0.5), ("prompted", -0.5))
        }
        arms = [CostsOf(name, name, {"fluency_none": one}) for name, one in scores.items()]
        table = cost_table("p", arms, family)
        ax = draw_costs(table[table["kind"].isin(["none", kind])]).figure.axes[0]
        return {tuple(one.get_facecolor()[0]) for one in ax.collections}

    worse, other = ({to_rgba(hue)} for hue in ("#f3d9d0", "#e4ecf3"))
    assert shades("steered") == worse and shades("prompted") == shades("reworded") == other
