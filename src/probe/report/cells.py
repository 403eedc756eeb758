"""Cells to read: prompt, answer and labels, on pages that filter without a script. Computes no statistic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from probe.report.numbers import decimal, plural
from probe.report.style import shown
from probe.report.templates import render

PER_PAGE = 600
"""Cells of one page, about 1.3 MB with short answers."""

AGREE, DISAGREE, UNPARSED = "agree", "disagree", "unparsed"
"""How stated and latent label stand to each other in a cell."""


@dataclass(frozen=True, eq=False)
class ReadCell:
    """One cell to read: the prompt, the answer with the span of its parsed letter, both labels and their read-outs.

    ``reads`` maps a site in words (``at the end of the prompt``) to the probability of each option there, from the
    softmax over the whole vocabulary: what is missing to 1 lies on other tokens. ``rule`` is the parser's, where it is
    known; ``notes`` what else is worth a word (near tie, letter first, condition).
    """

    persona: str
    case: str
    stratum: str
    prompt: str
    answer: str
    status: str
    target: str
    latent: str | None
    stated: str | None
    span: tuple[int, int] | None = None
    reads: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    condition: str = ""
    rule: str = ""
    notes: Sequence[str] = ()

    @property
    def relation(self) -> str:
        """``agree``, ``disagree``, or ``unparsed`` where a label is missing."""
        if self.stated is None or self.latent is None:
            return UNPARSED
        return AGREE if self.stated == self.latent else DISAGREE

    @property
    def right(self) -> bool:
        """Is the stated label the reference?"""
        return self.stated == self.target


@dataclass(frozen=True)
class Choice:
    """One radio button of a filter: its element id, the class it shows, its words and how many cells it shows.

    ``value`` is what these cells share; the first button of a filter has none and shows all.
    """

    id: str
    value: str
    shows: str
    words: str
    count: int


@dataclass(frozen=True)
class Filter:
    """One group of radio buttons; the first shows everything."""

    name: str
    title: str
    choices: tuple[Choice, ...]


def filters_of(cells: Sequence[ReadCell]) -> list[Filter]:
    """The filters that these cells need, by persona, stratum, labels, reference and status; none with one value."""
    wanted = {
        "persona": ("Persona", [(cell.persona, shown(cell.persona)) for cell in cells]),
        "stratum": ("Cases", [(cell.stratum, shown(cell.stratum)) for cell in cells]),
        "labels": ("Labels", [(cell.relation, _RELATIONS[cell.relation]) for cell in cells]),
        "reference": ("Stated label", [(str(cell.right), _RIGHT[cell.right]) for cell in cells]),
        "status": ("Status", [(cell.status, cell.status) for cell in cells]),
    }
    made = []
    for name, (title, values) in wanted.items():
        counts: dict[tuple[str, str], int] = {}
        for value in values:
            counts[value] = counts.get(value, 0) + 1
        if len(counts) < 2:
            continue
        choices = [Choice(f"{name}-all", "", "", "all", len(cells))]
        for i, ((shared, words), n) in enumerate(counts.items()):
            choices.append(Choice(f"{name}-{i}", shared, f"{_SHORT[name]}{i}", words, n))
        made.append(Filter(name, title, tuple(choices)))
    return made


_SHORT = {"persona": "p", "stratum": "g", "labels": "l", "reference": "r", "status": "s"}
_RELATIONS = {AGREE: "agree", DISAGREE: "disagree", UNPARSED: "no label to compare"}
_RIGHT = {True: "as the reference", False: "not as the reference"}


def section(cells: Sequence[ReadCell]) -> dict[str, Any]:
    """What a template needs to show these cells under filters."""
    filters = filters_of(cells)
    classes = {(one.name, choice.value): choice.shows for one in filters for choice in one.choices[1:]}
    return {"filters": filters, "cells": [_shown(cell, classes) for cell in cells]}


def _shown(cell: ReadCell, classes: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    start, end = cell.span or (len(cell.answer), len(cell.answer))
    values = {"persona": cell.persona, "stratum": cell.stratum, "labels": cell.relation}
    values |= {"reference": str(cell.right), "status": cell.status}
    return {
        "classes": " ".join(filter(None, (classes.get(item, "") for item in values.items()))),
        "relation": cell.relation,
        "right": cell.right,
        "persona": shown(cell.persona),
        "case": cell.case,
        "stratum": shown(cell.stratum),
        "condition": cell.condition,
        "prompt": cell.prompt,
        "status": cell.status,
        "rule": cell.rule,
        "notes": list(cell.notes),
        "target": cell.target,
        "latent": cell.latent or "none",
        "stated": cell.stated or "none",
        "before": cell.answer[:start],
        "letter": cell.answer[start:end],
        "after": cell.answer[end:],
        "reads": [_read(site, probabilities) for site, probabilities in cell.reads.items()],
    }


def _read(site: str, probabilities: Mapping[str, float]) -> dict[str, Any]:
    bars = [(label, decimal(p), round(90 * p) if math.isfinite(p) else 0) for label, p in probabilities.items()]
    other = 1 - sum(p for p in probabilities.values() if math.isfinite(p))
    return {"site": site, "bars": [*bars, ("other", decimal(max(other, 0.0)), round(90 * max(other, 0.0)))]}


@dataclass(frozen=True)
class _Page:
    name: str
    title: str
    start: int
    cells: Sequence[ReadCell]


def cell_pages(cells: Sequence[ReadCell], *, title: str, told: str = "") -> Iterator[tuple[str, str]]:
    """Pages of cells as (file name, HTML): an index with a map of all of them, and pages of one persona each.

    A page holds at most ``PER_PAGE`` cells with filters by case group, labels, reference and status. ``told`` says
    which cells these are, where they are not all. The same cells give the same bytes.
    """
    pages = list(_paged(cells))
    yield "index.html", _index(pages, cells, title, told)
    names = [(page.name, page.title) for page in pages]
    for page in pages:
        body = section(page.cells)
        yield page.name, render("cells.html", title=title, page=page, pages=names, told=told, section=body)


def _paged(cells: Sequence[ReadCell]) -> Iterator[_Page]:
    by_persona: dict[str, list[ReadCell]] = {}
    for cell in cells:
        by_persona.setdefault(cell.persona, []).append(cell)
    for i, (persona, own) in enumerate(by_persona.items()):
        starts = range(0, len(own), PER_PAGE)
        for part, start in enumerate(starts):
            some = own[start : start + PER_PAGE]
            of = f", {start + 1}–{start + len(some)} of {len(own)}" if len(starts) > 1 else ""
            # Numbers, not names: a persona's name may suit no file.
            yield _Page(f"persona-{i + 1}-{part + 1}.html", f"{shown(persona)}{of}", start, some)


def _index(pages: Sequence[_Page], cells: Sequence[ReadCell], title: str, told: str) -> str:
    personas = list(dict.fromkeys(cell.persona for cell in cells))
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for page in pages:
        for place, cell in enumerate(page.cells):
            key = (cell.case, cell.condition)
            row = rows.setdefault(key, {"case": cell.case, "condition": cell.condition, "cell": cell, "links": {}})
            row["links"][cell.persona] = (f"{page.name}#c{place + 1}", cell)
    body = [_index_row(row, personas) for row in rows.values()]
    conditions = len({row["condition"] for row in body}) > 1
    strata = list(dict.fromkeys(row["stratum"] for row in body))
    for row in body:
        row["classes"] += f" st{strata.index(row['stratum'])}"
    return render(
        "index.html",
        title=title,
        told=told,
        n=plural(len(cells), "cell"),
        conditions=conditions,
        personas=[shown(persona) for persona in personas],
        strata=[(i, stratum, sum(row["stratum"] == stratum for row in body)) for i, stratum in enumerate(strata)],
        counts={kind: sum(kind in row["classes"].split() for row in body) for kind in (DISAGREE, UNPARSED, "wrong")},
        pages=[(page.name, page.title, len(page.cells)) for page in pages],
        rows=body,
    )


def _index_row(row: Mapping[str, Any], personas: Iterable[str]) -> dict[str, Any]:
    links: list[dict[str, Any] | None] = []
    kinds: set[str] = set()
    for persona in personas:
        if persona not in row["links"]:
            links.append(None)
            continue
        href, cell = row["links"][persona]
        kinds |= {cell.relation} | (set() if cell.right else {"wrong"})
        same = cell.latent if cell.latent == cell.stated else f"{cell.latent or '–'}→{cell.stated or '–'}"
        links.append({"href": href, "text": same or "–", "kind": cell.relation, "wrong": not cell.right})
    first = row["cell"]
    found = {"case": row["case"], "condition": row["condition"], "target": first.target, "links": links}
    return found | {"stratum": shown(first.stratum), "classes": " ".join(sorted(kinds))}
