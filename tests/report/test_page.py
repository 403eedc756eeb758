"""The page: self-contained, escaped, and every cell can be found and read."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from probe import behaviour
from probe.report import Coverage, ReadCell, Report, Tables, cell_pages, render_report, terminal_table
from probe.report.blocks import metric_blocks
from probe.report.further import further_blocks
from probe.report.numbers import decimal, interval, listed, p_value, points


def cell(**changes):
    parts = {
        "persona": "nurse",
        "case": "case-1",
        "stratum": "emergency",
        "prompt": "You are <b>bold</b>.",
        "answer": "I think so. Final answer: C <script>evil()</script>",
        "status": "parsed",
        "target": "C",
        "latent": "B",
        "stated": "C",
        "span": (26, 27),
        "rule": "final answer",
        "reads": {"at the end of the prompt": {"A": 0.1, "B": 0.5, "C": 0.3}},
    }
    return ReadCell(**(parts | changes))


def page(study, **changes):
    names = list(study.table["persona"].unique())
    parts = {
        "title": "Study <script>",
        "subtitle": "a model",
        "tables": study.tables,
        "coverage": Coverage(100, 100),
        "figures": study.pictures,
        "facts": {"model": "<img src=x>"},
        "records": {"Settings": {"a": 1}},
        "cells": [cell(persona=name, case=str(study.table["case"].iloc[0])) for name in names],
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
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_nothing_from_outside_becomes_markup(hostile_study):
    hostile = cell(persona='"><img onerror=alert(1)>', case="</details><i>x", prompt="</pre><script>x</script>")
    hostile_pages = [html for _, html in cell_pages([hostile, cell()], title="<script>")]
    for html in (page(hostile_study), *hostile_pages):
        tags = Tags(html)
        assert not tags.open
        assert "script" not in tags.found
        assert "i" not in tags.found  # the stratum's <i>
        assert not [name for name, _ in tags.attributes if name.startswith("on")]
        assert all(value.startswith("data:image/svg+xml;base64,") for name, value in tags.attributes if name == "src")
        assert "default-src 'none'" in html


def test_the_page_asks_for_nothing_from_elsewhere(small_study):
    html = page(small_study)
    assert not re.search(r"(https?:)?//[a-z]", html, re.IGNORECASE)
    assert all(value.startswith("#") for name, value in Tags(html).attributes if name == "href")


def test_a_name_that_reorders_text_is_shown_by_its_code(hostile_study):
    html = page(hostile_study) + "".join(html for _, html in cell_pages([cell(answer="a \u202e b")], title=""))
    assert "\u202e" not in html
    assert "a ⟨U+202E⟩ b" in html


def test_the_parsed_letter_is_marked_in_the_answer(small_study):
    html = page(small_study)
    assert "Final answer: <mark>C</mark> &lt;script&gt;" in html
    assert "found by rule “final answer”" in html
    assert "<mark>" not in page(small_study, cells=[cell(span=None, stated=None, status="refused")])


def test_what_the_labels_do_not_hold_stands_beside_them(small_study):
    html = page(small_study)
    assert "<td>other</td><td>.10</td>" in html
    assert "<td>other</td><td>.00</td>" in page(small_study, cells=[cell(reads={"here": {"A": 0.4, "B": 0.6}})])


def test_every_page_says_research_use_only_and_the_organism_says_what_it_is(small_study):
    assert "vignettes are not patients" in page(small_study)
    assert all("vignettes are not patients" in html for _, html in cell_pages([cell()], title=""))
    assert "synthetic organism; no medical validity" not in page(small_study)
    assert "synthetic organism; no medical validity" in page(small_study, synthetic=True)


def test_missing_and_failed_cells_are_told_and_a_complete_run_is_not_alarmed(small_study):
    coverage = Coverage(100, 90, [("nurse / case-1", "PromptTooLong: 9120 > 8192")])
    html = page(small_study, coverage=coverage)
    assert "9 are still to do" in html
    assert "PromptTooLong: 9120 &gt; 8192" in html
    assert "are still to do" not in page(small_study)


def test_the_same_report_gives_the_same_bytes(small_study):
    assert page(small_study) == page(small_study)
    cells = [cell(persona=name) for name in ("nurse", "none")]
    assert list(cell_pages(cells, title="t")) == list(cell_pages(cells, title="t"))


def test_a_run_with_the_base_alone_still_gives_a_page(small_study):
    metrics = small_study.tables.metrics
    alone = Tables(metrics[metrics["persona"] == "none"])
    html = page(small_study, tables=alone, cells=[], figures=[])
    assert 'id="comparisons"' not in html
    assert 'id="cells"' not in html
    assert "Metrics by stratum" in html
    assert "tests were made" not in html


def shown_by(html, rule):
    """Cells that stay visible when one radio button is chosen, by the style sheet's own rules."""
    found = re.search(rf"#{rule}:checked\) \.cells > \.cell:not\(\.(\w+)\)", html)
    assert found, rule
    return len(re.findall(rf'<details class="cell [^"]*\b{found[1]}\b', html))


def test_each_filter_shows_as_many_cells_as_it_says_and_all_of_them_together_everything(small_study):
    cells = [
        cell(),
        cell(case="b", stratum="primary_care", latent="C"),
        cell(case="c", persona="none", stated=None, span=None, status="refused"),
        cell(case="d", persona="none", target="A"),
    ]
    html = page(small_study, cells=cells)
    told = re.findall(r'id="([a-z]+)-(\d+)">([^<]+) <small>(\d+)</small>', html)
    counts = {}
    for name, number, _, count in told:
        assert shown_by(html, f"{name}-{number}") == int(count)
        counts[name] = counts.get(name, 0) + int(count)
    assert counts == dict.fromkeys(("persona", "stratum", "labels", "reference", "status"), 4)
    alike = [cell(persona=f"{'x' * 20}{letter}{'x' * 20}") for letter in "abb"]  # shown by the same short name
    html = page(small_study, cells=alike)
    assert [shown_by(html, f"persona-{i}") for i in (0, 1)] == [1, 2]
    assert 'name="status"' not in page(small_study, cells=cells[:2])  # one value: nothing to filter


def test_the_map_leads_to_every_cell_and_every_link_has_its_place():
    cells = [cell(persona=f"p{i % 3}", case=f"c{i // 3}", latent="C" if i % 2 else "B") for i in range(1_830)]
    pages = dict(cell_pages(cells, title="t"))
    assert set(pages) == {"index.html", *(f"persona-{i}-{part}.html" for i in (1, 2, 3) for part in (1, 2))}
    links = re.findall(r'href="(persona-[^"#]+)#(c\d+)"', pages["index.html"])
    assert len(set(links)) == len(cells)
    places = {(name, place) for name, html in pages.items() for place in re.findall(r'class="body" id="(c\d+)"', html)}
    assert set(links) == places
    assert "B→C" in pages["index.html"]
    assert max(len(html) for html in pages.values()) < 3_000_000


def printed(metrics, width=110):
    console = Console(width=width, record=True, file=open("/dev/null", "w"), no_color=True)  # noqa: PTH123, SIM115
    with console.file:
        console.print(terminal_table(metrics))
    return console.export_text()


def test_the_terminal_table_fits_110_columns_and_shows_every_arm_with_its_plan(small_study):
    text = printed(small_study.tables.metrics)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 110
    assert "…" not in text
    assert text.count("emergency") == 6
    row = small_study.tables.metrics.query(
        "metric == 'accuracy' and persona == 'ed_nurse' and stratum == 'emergency'"
    ).iloc[0]
    assert f"{decimal(row['value'])} [{decimal(row['planned'])}]" in text


def test_the_terminal_table_without_a_plan_has_no_brackets_and_hostile_names_stay_text(hostile_study):
    text = printed(hostile_study.tables.metrics.assign(planned=np.nan))
    assert "[" not in text
    assert "<script>alert(1)" in text
    assert "undef." in text
    assert any(line.rstrip().endswith("–") for line in text.splitlines())  # the persona that never answers


def test_a_persona_that_states_nothing_has_no_stated_shares_in_the_terminal(hostile_study):
    text = printed(hostile_study.tables.metrics.assign(planned=np.nan))
    rows = [line.split() for line in text.splitlines()]
    silent = next(row for row in rows if "100%" in row)
    n = silent.index("12")
    assert silent[n + 1] == "–"  # stated accuracy
    assert silent[-2:] == ["–", "–"]  # high risk, errors
    speaking = next(row for row in rows if "persona" in row and "emergency" in row)
    assert "–" not in speaking


def test_a_persona_that_states_nothing_has_no_stated_shares_on_the_page(hostile_study):
    first = metric_blocks(hostile_study.tables.metrics)[0]
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


def test_a_plan_of_some_cells_says_of_how_many(small_study):
    def plans(metrics):
        return [cell["plan"] for group in metric_blocks(metrics)[0]["groups"] for cell in group["rows"][1]["cells"]]

    assert not any("of" in plan for plan in plans(small_study.tables.metrics))
    assert any(plan.endswith("(3 of 120)") for plan in plans(small_study.tables.metrics.assign(n_planned=3)))


def test_the_page_has_every_further_table_that_the_study_allows(small_study):
    table = small_study.table.assign(role="persona", wording=0)
    other = table["y_gen"].where(table["y_gen"].isna() | (table.index % 3 > 0), "A")
    several = pd.concat([table, table.assign(wording=1, y_gen=other)], ignore_index=True)
    several.attrs = table.attrs
    tables = replace(
        small_study.tables,
        variance=behaviour.variance_components(several),
        risk=behaviour.risk_by_cut(table),
        rates=behaviour.answer_rates(table, by="role").assign(by="role"),
    )
    titles = {block["title"]: block for block in further_blocks(tables)}
    assert {"What makes answers vary", "Errors by cut", "How answers were read, by role and category"} <= set(titles)
    assert not {"The noise floor", "Letters by place"} & set(titles)
    assert all(len(row) == len(block["columns"]) for block in titles.values() for row in block["rows"])
    cuts = titles["Errors by cut"]
    of_nurse = tables.risk.query("persona == 'ed_nurse' and stratum == 'all' and cut == 'strict'")
    one = of_nurse[of_nurse["labels"] == "stated"].iloc[0]
    (row,) = [row for row in cuts["rows"] if row[:4] == ["ED nurse", "all cases", "strict", "stated"]]
    assert row[4] == f"{one['type_1']:.0f} : {one['type_2']:.0f}"
    assert "What makes answers vary" in page(small_study, tables=tables)


def test_small_words_of_numbers():
    assert interval(0.1, np.nan) == ""
    assert interval(-0.1, 0.25) == "[−.10, .25]"
    assert points(0.193) == "+19.3"
    assert points(-0.2) == "−20.0"
    assert p_value(0.0004).endswith(".001")
    assert p_value(0.0126) == ".013"
    assert [listed(list(names)) for names in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
    assert listed(list("abcde"), most=3) == "a, b and 3 more"
