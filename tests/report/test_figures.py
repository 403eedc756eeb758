"""Figures: what is drawn is what the numbers say, every arm is drawn, sizes fit print, bytes repeat.

How they look was judged by eye, at print size, with 3 to 30 personas, long names and missing parts.
"""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

from probe.behaviour import compare, metrics, reliability
from probe.report import (
    Tables,
    draw_causes,
    draw_forest,
    draw_persona_effects,
    draw_reliability,
    draw_risk,
    draw_risk_plane,
    draw_shift,
    draw_sites,
    pdf,
    save,
    study_figures,
    svg,
)
from probe.report.style import PAGE_HEIGHT, TEXT_WIDTH, colours, shown
from tests.behaviour.synthetic import PERSONAS, synthetic_table
from tests.report.conftest import tables_of

EVERY = {
    *("persona_effects", "forest", "risk", "risk_plane", "reliability", "reliability_stated"),
    *("consistency_by_site", "disagreement_causes", "shift"),
}


def texts(drawn):
    return [text.get_text() for text in drawn.figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def drawn_points(ax):
    """x of every mark that is drawn without a line."""
    return np.concatenate([line.get_xdata() for line in ax.lines if line.get_linestyle() == "None"])


def test_every_figure_is_drawn_and_saved_byte_identical_on_a_second_run(small_study, tmp_path):
    assert set(small_study.drawn) == EVERY
    tables = small_study.tables
    again = {
        "persona_effects": draw_persona_effects(tables.comparisons),
        "consistency_by_site": draw_sites(tables.sites),
    }
    for name, drawn in again.items():
        first = save(small_study.drawn[name], tmp_path, name)
        second = save(drawn, tmp_path / "again", name)
        assert [path.suffix for path in first] == [".svg", ".pdf", ".png", ".csv"]
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    other = small_study.tables.comparisons.assign(difference=0.0)
    assert svg(draw_persona_effects(other).figure) != (tmp_path / "persona_effects.svg").read_text(encoding="utf-8")


def test_no_file_carries_a_date(small_study):
    page = pdf(small_study.drawn["risk_plane"].figure)
    assert b"CreationDate" not in page
    assert "<dc:date>" not in svg(small_study.drawn["risk_plane"].figure)


def test_no_text_is_below_seven_points_and_no_figure_wider_or_higher_than_a_page(small_study):
    for drawn in small_study.drawn.values():
        drawn.figure.canvas.draw()
        sizes = [text.get_fontsize() for text in drawn.figure.findobj(lambda a: hasattr(a, "get_fontsize"))]
        assert min(sizes) >= 7
        assert drawn.figure.get_figwidth() <= TEXT_WIDTH
        assert drawn.figure.get_figheight() <= PAGE_HEIGHT


def test_the_numbers_file_of_the_effects_holds_every_bar_and_whisker(small_study):
    drawn = draw_persona_effects(small_study.tables.comparisons)
    bars = [patch.get_width() for ax in drawn.figure.axes for patch in ax.patches]
    assert sorted(bars) == pytest.approx(sorted(100 * drawn.numbers["difference"]))
    ends = [
        x for ax in drawn.figure.axes for line in ax.collections for segment in line.get_segments() for x, _ in segment
    ]
    assert sorted(ends) == pytest.approx(sorted(100 * pd.concat([drawn.numbers["low"], drawn.numbers["high"]])))


def test_the_numbers_file_of_the_risk_figures_holds_every_mark(small_study):
    drawn = draw_risk(small_study.tables.metrics)
    left, right = drawn.figure.axes
    wanted = drawn.numbers[["propensity", "planned"]].to_numpy().ravel()
    assert sorted(drawn_points(left)) == pytest.approx(sorted(wanted))
    wanted = drawn.numbers[["smoothed", "smoothed_planned"]].to_numpy().ravel()
    assert sorted(drawn_points(right)) == pytest.approx(sorted(wanted))
    assert draw_risk_plane(small_study.tables.metrics, "none").numbers.equals(drawn.numbers)


def test_the_forest_draws_each_effect_once_and_the_floor_behind_it(floor):
    drawn = draw_forest(floor, floor=True)
    (ax,) = drawn.figure.axes
    assert sorted(drawn_points(ax)) == pytest.approx(sorted(floor["effect"]))
    bands = {(patch.get_x(), round(patch.get_width(), 9)) for patch in ax.patches}
    assert bands == {(-0.06, 0.11), (-0.04, 0.08)}
    filled = [line for line in ax.lines if line.get_linestyle() == "None" and line.get_markerfacecolor() != "white"]
    assert [x for line in filled for x in line.get_xdata()] == [0.2]  # only what lies beyond the floor
    without = draw_forest(floor.rename(columns={"effect": "difference"}).assign(base="none"), floor=False)
    assert any("no noise floor known" in text for text in texts(without))
    assert "no noise floor is drawn" in without.caption


def test_a_star_stands_for_a_holm_adjusted_p_below_05_and_for_nothing_else(small_study):
    compared = small_study.tables.comparisons
    rows = compared[compared["metric"].isin(["accuracy", "consistency_strict", "ece"])]
    marks = [text for text in texts(draw_persona_effects(compared)) if text in ("*", "†", "*†")]
    assert sum("*" in mark for mark in marks) == (rows["p_holm"] < 0.05).sum() > 0
    none = draw_persona_effects(compared.assign(p_holm=1.0, signs_differ=False))
    assert not [text for text in texts(none) if text in ("*", "†", "*†")]


def test_only_the_main_base_is_drawn_where_the_table_has_two(small_study):
    compared = small_study.tables.comparisons
    both = pd.concat([compared, compared.assign(base="controls", difference=9.0)])
    assert draw_persona_effects(both).numbers.equals(draw_persona_effects(compared).numbers)


def test_both_error_counts_stand_beside_every_sensitivity(small_study):
    drawn = texts(draw_risk(small_study.tables.metrics))
    for counts in small_study.tables.metrics.query("metric == 'risk_sensitivity'")["counts"]:
        assert any(text.startswith(f"{counts['type_1']:.0f} : {counts['type_2']:.0f} =") for text in drawn)
    assert any("undefined" in text for text in drawn)


def test_a_site_without_label_mass_is_hollow_and_one_with_it_is_filled():
    rows = [(site, "a", "all", 0.8, 0.7, 0.9, 50, mass) for site, mass in (("prompt_end", 0.3), ("answer", 0.99))]
    sites = pd.DataFrame(rows, columns=["site", "persona", "stratum", "value", "low", "high", "n", "label_mass"])
    (ax,) = draw_sites(sites).figure.axes
    fills = [
        line.get_markerfacecolor() for line in ax.lines if line.get_linestyle() == "None" and len(line.get_xdata())
    ]
    assert sorted(fill == "white" for fill in fills) == [False, True]


def test_the_exclusive_shares_of_each_persona_fill_the_bar(small_study):
    drawn = draw_causes(small_study.tables.causes)
    widths = pd.Series([patch.get_width() for patch in drawn.figure.axes[-1].patches])
    personas = drawn.numbers["persona"].nunique()
    assert widths.sum() == pytest.approx(personas)
    assert drawn.numbers.groupby("persona")["share"].sum().tolist() == pytest.approx([1.0] * personas)


def test_hostile_and_long_names_are_drawn_with_their_hidden_characters_shown(hostile_study):
    assert set(hostile_study.drawn) == EVERY
    assert all(picture.svg.startswith("<?xml") for picture in hostile_study.pictures)
    assert any("⟨U+202E⟩" in text for text in texts(hostile_study.drawn["risk"]))
    long, other = shown("x" * 300 + " nurse"), shown("x" * 300 + " physician")
    assert len(long) <= 28
    assert long != other  # the end of a long name is kept, for names of one study begin alike


def test_names_that_the_font_lacks_are_shown_by_their_code_and_no_box_is_drawn():
    names = ["none", "急诊", "चिकित्सक", "nurse 🩺", "大胆的急诊科医生很多很多字", "врач"]
    table = synthetic_table(12, personas=dict(zip(names, PERSONAS.values(), strict=True)))
    table["stratum"] = table["stratum"].replace("primary_care", "初级保健")
    drawn = study_figures(tables_of(table))  # a missing glyph warns, and a warning is an error here
    assert set(drawn) == EVERY
    for name in ("persona_effects", "risk", "consistency_by_site"):
        labels = [label.get_text() for label in drawn[name].figure.axes[0].get_yticklabels()]
        assert {"⟨U+6025⟩⟨U+8BCA⟩", "врач"} <= set(labels)
        assert len(set(labels)) == len(labels)
        assert set(drawn[name].numbers["persona"]) <= set(names)  # the numbers keep the name


def test_a_figure_with_more_personas_than_a_page_holds_is_continued_and_loses_none():
    rng = np.random.default_rng(0)
    names = ["none", *(f"persona_{i}" for i in range(70))]
    rows = [(name, "all", "prompt_end", 0.8, 0.7, 0.9, 50, 0.9) for name in names]
    sites = pd.DataFrame(rows, columns=["persona", "stratum", "site", "value", "low", "high", "n", "label_mass"])
    effects = pd.DataFrame({"persona": names[1:], "stratum": "all", "base": "none", "metric": "accuracy"})
    effects = effects.assign(difference=rng.normal(0, 0.1, 70), low=-0.2, high=0.2, n=50, p=0.5, p_holm=1.0)
    effects["signs_differ"] = False
    none = pd.DataFrame({"metric": [], "value": []})
    drawn = study_figures(Tables(none, effects, sites=sites))
    for name, wanted in (("persona_effects", names[1:]), ("consistency_by_site", names)):
        parts = [figure for key, figure in drawn.items() if key.startswith(name)]
        assert len(parts) > 1
        assert [persona for part in parts for persona in part.numbers["persona"]] == wanted
        assert all(part.figure.get_figheight() <= PAGE_HEIGHT for part in parts)
    bars = [figure.figure.axes[0].patches for key, figure in drawn.items() if key.startswith("persona_effects")]
    hue = colours(names, "none")
    shown_hues = [patch.get_facecolor()[:3] for part in bars for patch in part]
    assert shown_hues == [to_rgb(hue[name]) for name in names[1:]]


def test_a_figure_can_be_saved_again_with_the_same_bytes(small_study):
    drawn = small_study.drawn["risk_plane"].figure
    assert svg(drawn) == svg(drawn)
    assert pdf(drawn) == pdf(drawn)


def test_what_was_decided_beforehand_is_marked_in_the_figure_of_effects(small_study):
    compared = small_study.tables.comparisons
    one = (compared["metric"] == "accuracy") & (compared["persona"] == "ed_physician")
    one &= compared["stratum"] == "emergency"
    marked = texts(draw_persona_effects(compared.assign(family=np.where(one, "confirmatory", "exploratory"))))
    assert len([text for text in marked if text in ("‡", "*‡")]) == 1
    assert not [text for text in texts(draw_persona_effects(compared)) if "‡" in text]


def test_a_shift_read_at_one_point_alone_still_shows_its_interval(small_study):
    shifts = small_study.tables.shifts
    (ax, *_) = draw_shift(shifts[(shifts["layer"] == 2) & (shifts["stratum"] == "all")]).figure.axes
    lines = [line for line in ax.collections if isinstance(line, LineCollection)]
    drawn = [segment for line in lines for segment in line.get_segments() if len(segment)]
    wanted = shifts[(shifts["layer"] == 2) & (shifts["stratum"] == "all") & shifts["low"].notna()]
    assert sorted(segment[0][1] for segment in drawn) == pytest.approx(sorted(wanted["low"].astype(float)))


def edge_cases():
    """Tables that are thin in some way, by what they lack."""
    rng = np.random.default_rng(0)
    many = {"none": (0.0, 0.0, 0.0)} | {f"wording_{i}": tuple(rng.normal(0, 0.2, 3)) for i in range(19)}
    plain = synthetic_table(20, personas={name: PERSONAS[name] for name in ("none", "ed_physician", "ed_nurse")})
    silent = plain.assign(y_gen=None, status="unparsable")
    silent[[name for name in silent if name.startswith("stated_logp")]] = np.nan
    short = plain.drop(columns=["y_gen", "status", *(name for name in plain if name.startswith(("stated", "planned")))])
    return {
        "one stratum": plain[plain["stratum"] == "emergency"],
        "nothing parsed": silent,
        "latent labels only": short,
        "stated labels only": plain[["case", "persona", "stratum", "target", "y_gen"]],
        "two cases": plain[plain["case"].isin(["emergency-000", "primary_care-000"])],
        "twenty personas": synthetic_table(8, personas=many),
        "base alone": plain[plain["persona"] == "none"],
    }


@pytest.mark.parametrize("name", list(edge_cases()))
def test_thin_tables_give_the_figures_that_they_allow_and_no_warning(name):
    table = edge_cases()[name]
    table.attrs = {"options": ["A", "B", "C"], "high_risk": "C"}
    several, many = table["persona"].nunique() > 1, name == "twenty personas"
    bins = reliability(table) if "logp_A" in table else pd.DataFrame()
    if many:
        eight = list(table["persona"].unique()[:8])
        bins = bins[(bins["stratum"] == "all") & (bins["labels"] == "latent") & bins["persona"].isin(eight)]
    drawn = study_figures(Tables(metrics(table), compare(table, "none") if several else pd.DataFrame(), bins))
    assert ("persona_effects" in drawn) == (several and not many)
    assert ("risk" in drawn) == (name not in ("nothing parsed", "latent labels only"))
    assert all(figure.figure.get_figheight() <= PAGE_HEIGHT for figure in drawn.values())
    if many:
        assert {"persona_effects_1", "persona_effects_3", "reliability_1", "reliability_2"} <= set(drawn)
    assert svg(next(iter(drawn.values())).figure)


def test_undefined_values_are_left_out_and_the_figure_holds(small_study):
    tables, nothing = small_study.tables, {"value": np.nan, "low": np.nan, "high": np.nan}
    assert svg(draw_shift(tables.shifts.assign(**nothing)).figure)
    assert svg(draw_risk_plane(tables.metrics.assign(**nothing)).figure)
    assert svg(draw_sites(tables.sites.assign(**nothing)).figure)
    pool = tables.reliability[tables.reliability["stratum"] == "all"]
    assert "ECE undefined\n" in texts(draw_reliability(pool, tables.metrics.assign(**nothing)))
    compared = tables.comparisons.assign(difference=np.nan, low=np.nan, high=np.nan, planned=np.nan, p_holm=np.nan)
    assert svg(draw_persona_effects(compared).figure)
    assert study_figures(Tables(tables.metrics.assign(**nothing))) == {}


def test_every_persona_has_one_colour_and_the_base_is_grey():
    hue = colours(["none", "a", "b", "c"], "none")
    assert len(set(hue.values())) == 4
    assert hue == colours(["a", "b", "c"], "none")


def test_the_pool_stands_after_the_strata_it_pools(small_study):
    from probe.report.style import arms

    personas, strata = arms(small_study.tables.metrics)
    assert strata == ["emergency", "primary_care", "all"]
    assert personas[0] == "none"
