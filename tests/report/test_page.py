"""The page: self-contained, escaped, and its sentences are made from the estimates."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from probe.report import (
    Coverage,
    ExampleCell,
    Report,
    cautions,
    findings,
    render_report,
    terminal_table,
)
from probe.report.blocks import metric_blocks
from probe.report.numbers import decimal, interval, listed, p_value, points


def page(study, **changes):
    example = ExampleCell(
        persona=str(study.table["persona"].iloc[-1]),
        case=str(study.table["case"].iloc[0]),
        stratum="emergency",
        prompt="You are <b>bold</b>.",
        answer="I think so. Final answer: C <script>evil()</script>",
        status="parsed",
        target="C",
        latent="B",
        stated="C",
        span=(26, 27),
        reads={"at the end of the prompt": {"A": 0.1, "B": 0.6, "C": 0.3}},
    )
    parts = {
        "title": "Study <script>",
        "subtitle": "a model",
        "metrics": study.metrics,
        "comparisons": study.comparisons,
        "coverage": Coverage(100, 100),
        "shifts": study.shifts,
        "figures": study.svgs,
        "facts": {"model": "<img src=x>"},
        "records": {"Settings": {"a": 1}},
        "examples": [example],
    }
    return render_report(Report(**(parts | changes)))


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.found, self.attributes, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_nothing_from_outside_becomes_markup(hostile_study):
    tags = Tags(page(hostile_study))
    assert not tags.open
    assert "script" not in tags.found
    assert "i" not in tags.found  # the stratum's <i>
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert all(value.startswith("data:image/svg+xml;base64,") for name, value in tags.attributes if name == "src")


def test_the_page_asks_for_nothing_from_elsewhere(small_study):
    html = page(small_study)
    assert not re.search(r"(https?:)?//[a-z]", html, re.IGNORECASE)
    assert all(value.startswith("#") for name, value in Tags(html).attributes if name == "href")
    assert "default-src 'none'" in html


def test_a_name_that_reorders_text_is_shown_by_its_code(hostile_study):
    html = page(hostile_study)
    assert "\u202e" not in html
    assert "⟨U+202E⟩" in html


def test_the_parsed_letter_is_marked_in_the_answer(small_study):
    assert "Final answer: <mark>C</mark> &lt;script&gt;" in page(small_study)


def test_every_page_says_research_use_only_and_the_organism_says_what_it_is(small_study):
    assert "vignettes are not patients" in page(small_study)
    assert "synthetic organism; no medical validity" not in page(small_study)
    assert "synthetic organism; no medical validity" in page(small_study, synthetic=True)


def test_missing_and_failed_cells_are_told_and_a_complete_run_is_not_alarmed(small_study):
    coverage = Coverage(100, 90, [("nurse / case-1", "PromptTooLong: 9120 > 8192")])
    html = page(small_study, coverage=coverage)
    assert "9 are still to do" in html
    assert "PromptTooLong: 9120 &gt; 8192" in html
    assert 'class="alert"' not in page(small_study)


def test_the_same_report_gives_the_same_bytes(small_study):
    assert page(small_study) == page(small_study)


def test_a_run_with_the_base_alone_still_gives_a_page(small_study):
    alone = small_study.metrics[small_study.metrics["persona"] == "none"]
    for nothing in (small_study.comparisons.iloc[:0], pd.DataFrame()):
        html = page(small_study, metrics=alone, comparisons=nothing, shifts=pd.DataFrame(), examples=[])
        assert 'id="comparisons"' not in html
        assert "Metrics by stratum" in html
        assert "tests were made" not in html


def sentences(study, **changes):
    parts = {"metrics": study.metrics, "comparisons": study.comparisons, "shifts": study.shifts} | changes
    return {finding.topic: " ".join(finding.sentences) for finding in findings(**parts)}


def test_findings_carry_the_numbers_of_the_tables(small_study):
    told = sentences(small_study)
    rows = small_study.comparisons.set_index(["metric", "persona", "stratum"]).sort_index()
    row = rows.loc[("accuracy", "ed_physician", "emergency")]
    assert f"ED physician: accuracy rises by {100 * row['difference']:.1f}" in told["Accuracy"]
    assert f"{row['n']} pairs" in told["Accuracy"]
    assert "Strata and pool differ in sign" in told["Accuracy"]
    assert "helpful assistant" in told["Inside"].split("At no layer above the noise floor")[1]


def test_without_an_effect_no_finding_claims_one(small_study):
    nothing = small_study.comparisons.assign(p_holm=1.0)
    told = sentences(small_study, comparisons=nothing)
    assert told["Accuracy"].startswith("No change of accuracy is resolved for")
    assert "rises" not in told["Accuracy"] + told["Risk"]
    untested = small_study.comparisons.assign(p=np.nan, p_holm=np.nan)
    assert "could be tested" in sentences(small_study, comparisons=untested)["Accuracy"]
    below = small_study.shifts.assign(floor_max=np.inf)
    assert "beyond the noise floor" in sentences(small_study, shifts=below)["Inside"]


def test_the_largest_shift_is_held_against_the_floor_of_the_largest(small_study):
    per_layer = small_study.shifts.assign(floor=0.0)
    assert sentences(small_study, shifts=per_layer)["Inside"] == sentences(small_study)["Inside"]


def test_a_calibrated_model_is_not_called_miscalibrated_though_an_arm_passes_its_band(small_study):
    ece = small_study.metrics["metric"] == "ece"
    one = small_study.metrics.copy()
    one.loc[ece, "value"] = one.loc[ece, "null_high"] - 0.001
    one.loc[one.index[ece & one["null_max"].notna()][0], "value"] += 0.002
    told = sentences(small_study, metrics=one)["Calibration"]
    assert told.startswith("No miscalibration of the latent label is resolved: 1 of 12 arms exceeds")
    assert "where .3 would by chance" in told
    one.loc[ece, "value"] = one.loc[ece, "null_max"] + 0.01
    assert "is miscalibrated in 12 of 12 arms" in sentences(small_study, metrics=one)["Calibration"]


def test_strata_are_called_opposed_where_the_column_says_so_and_nowhere_else(small_study):
    assert "differ in sign" in sentences(small_study)["Accuracy"]
    calm = small_study.comparisons.assign(signs_differ=False)
    told = sentences(small_study, comparisons=calm)
    assert not any("differ in sign" in text for text in told.values())
    legend = page(small_study, comparisons=calm).count("⇄")
    marked = int(small_study.comparisons["signs_differ"].sum())
    assert page(small_study).count("⇄") == legend + marked > legend


def test_cautions_name_weak_latent_labels_unparsed_answers_and_the_number_of_tests(hostile_study, small_study):
    told = " ".join(cautions(hostile_study.metrics, hostile_study.comparisons))
    assert "less than half of the probability" in told
    assert "$x {2}$ 100% 24 of 24" in told
    calm = " ".join(cautions(small_study.metrics, small_study.comparisons))
    assert "less than half" not in calm
    assert f"{small_study.comparisons['p'].notna().sum()} tests were made" in calm


def printed(metrics, width=110):
    console = Console(width=width, record=True, file=open("/dev/null", "w"), no_color=True)  # noqa: PTH123, SIM115
    with console.file:
        console.print(terminal_table(metrics))
    return console.export_text()


def test_the_terminal_table_fits_110_columns_and_shows_every_arm_with_its_plan(small_study):
    text = printed(small_study.metrics)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 110
    assert "…" not in text
    assert text.count("emergency") == 6
    row = small_study.metrics.query("metric == 'accuracy' and persona == 'ed_nurse' and stratum == 'emergency'").iloc[0]
    assert f"{decimal(row['value'])} [{decimal(row['planned'])}]" in text


def test_the_terminal_table_without_a_plan_has_no_brackets_and_hostile_names_stay_text(hostile_study):
    text = printed(hostile_study.metrics.assign(planned=np.nan))
    assert "[" not in text
    assert "<script>alert(1)" in text
    assert "undef." in text
    assert any(line.rstrip().endswith("–") for line in text.splitlines())  # the persona that never answers


def test_a_persona_that_states_nothing_has_no_stated_shares_in_the_terminal(hostile_study):
    text = printed(hostile_study.metrics.assign(planned=np.nan))
    rows = [line.split() for line in text.splitlines()]
    silent = next(row for row in rows if "100%" in row)
    n = silent.index("12")
    assert silent[n + 1] == "–"  # stated accuracy
    assert silent[-2:] == ["–", "–"]  # high risk, errors
    speaking = next(row for row in rows if "persona" in row and "emergency" in row)
    assert "–" not in speaking


def test_a_persona_that_states_nothing_has_no_stated_shares_on_the_page(hostile_study):
    first = metric_blocks(hostile_study.metrics)[0]
    rows = {row["persona"]: row["cells"] for row in first["groups"][-1]["rows"]}
    silent, speaking = (next(cells for name, cells in rows.items() if mark in name) for mark in ("100%", "no persona"))
    accuracy, strict = first["columns"].index("Accuracy"), first["columns"].index("Consistency (strict)")
    assert {silent[accuracy]["value"], silent[strict]["value"]} == {"–"}
    assert "0 of 24 parsed" in silent[accuracy]["small"]
    assert "–" not in {speaking[accuracy]["value"], speaking[strict]["value"]}


@pytest.mark.parametrize(
    ("value", "text"), [(0.724, ".72"), (-0.05, "−.05"), (1, "1.00"), (-0.001, ".00"), (12.3, "12.30"), (np.nan, "–")]
)
def test_numbers_are_written_without_a_zero_before_the_point(value, text):
    assert decimal(value) == text


def test_small_words_of_numbers():
    assert interval(0.1, np.nan) == ""
    assert interval(-0.1, 0.25) == "[−.10, .25]"
    assert points(0.193) == "+19.3"
    assert points(-0.2) == "−20.0"
    assert p_value(0.0004).endswith(".001")
    assert p_value(0.0126) == ".013"
    assert [listed(list(names)) for names in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
    assert listed(list("abcde"), most=3) == "a, b and 3 more"
