"""Figures: every arm is drawn, sizes fit print, bytes repeat. How they look was judged by eye."""

import pandas as pd
import pytest

from probe.report import draw_persona_effects, draw_reliability, draw_risk, draw_shift, save, study_figures, svg
from probe.report.style import TEXT_WIDTH, colours, shown


def figures_of(study):
    return study_figures(study.metrics, study.comparisons, study.bins, study.shifts)


def test_saved_figures_are_byte_identical_on_a_second_run(small_study, tmp_path):
    for name, figure in figures_of(small_study).items():
        _, vector = save(figure, tmp_path, name)
        assert vector.read_text(encoding="utf-8") == small_study.svgs[name]
    again, _ = save(draw_persona_effects(small_study.comparisons), tmp_path / "again", "persona_effects")
    assert again.read_bytes() == (tmp_path / "persona_effects.png").read_bytes()
    other = draw_persona_effects(small_study.comparisons.assign(difference=0.0))
    assert svg(other) != small_study.svgs["persona_effects"]
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_no_text_is_below_seven_points_and_no_figure_wider_than_a_text_column(small_study):
    for figure in figures_of(small_study).values():
        figure.canvas.draw()
        sizes = [
            text.get_fontsize() for text in figure.findobj(lambda a: hasattr(a, "get_fontsize")) if text.get_text()
        ]
        assert min(sizes) >= 7
        assert figure.get_figwidth() <= TEXT_WIDTH


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_a_star_stands_for_a_holm_adjusted_p_below_05_and_for_nothing_else(small_study):
    rows = small_study.comparisons[small_study.comparisons["metric"].isin(["accuracy", "consistency_strict", "ece"])]
    marks = [text for text in texts(draw_persona_effects(small_study.comparisons)) if text in ("*", "†", "*†")]
    assert sum("*" in mark for mark in marks) == (rows["p_holm"] < 0.05).sum() > 0
    none = draw_persona_effects(small_study.comparisons.assign(p_holm=1.0, signs_differ=False))
    assert not [text for text in texts(none) if text in ("*", "†", "*†")]


def test_both_error_counts_stand_beside_every_sensitivity(small_study):
    drawn = texts(draw_risk(small_study.metrics))
    for counts in small_study.metrics.query("metric == 'risk_sensitivity'")["counts"]:
        assert any(text.startswith(f"{counts['type_1']:.0f} : {counts['type_2']:.0f} =") for text in drawn)
    assert any("undefined" in text for text in drawn)


def test_hostile_and_long_names_are_drawn_as_they_are(hostile_study):
    assert set(hostile_study.svgs) == {"persona_effects", "risk", "reliability", "shift"}
    assert all(text.startswith("<?xml") for text in hostile_study.svgs.values())
    assert shown("x" * 300).endswith("…")
    assert len(shown("x" * 300)) < 30


def test_a_base_alone_a_single_stratum_and_missing_parts_still_give_figures(small_study):
    alone = small_study.metrics[small_study.metrics["persona"] == "none"]
    alone = alone[alone["stratum"] == "all"]
    drawn = study_figures(alone, small_study.comparisons.iloc[:0], small_study.bins.iloc[:0])
    assert list(drawn) == ["risk"]
    assert svg(drawn["risk"])
    pooled = small_study.comparisons[small_study.comparisons["stratum"] == "all"]
    assert svg(draw_persona_effects(pooled))


def test_undefined_values_break_the_line_and_the_figure_holds(small_study):
    broken = small_study.shifts.assign(value=float("nan"), low=float("nan"), high=float("nan"))
    assert svg(draw_shift(broken))
    undefined = small_study.metrics.assign(value=float("nan"), low=float("nan"), high=float("nan"))
    assert svg(draw_risk(undefined))
    assert svg(draw_reliability(small_study.bins, undefined))


def test_every_persona_has_one_colour_and_the_base_is_grey():
    hue = colours(["none", "a", "b", "c"], "none")
    assert len(set(hue.values())) == 4
    assert hue == colours(["a", "b", "c"], "none")


@pytest.mark.parametrize("column", ["persona", "stratum"])
def test_the_pool_stands_after_the_strata_it_pools(small_study, column):
    from probe.report.style import arms

    table: pd.DataFrame = small_study.metrics
    personas, strata = arms(table)
    assert strata == ["emergency", "primary_care", "all"]
    assert personas[0] == "none"
