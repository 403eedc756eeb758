"""The report stage: from an open store to figures, tables and one page. Imports no torch; computes no statistic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from probe import report
from probe.report.numbers import decimal
from probe.stages.analysis import BehaviourTables, main_shifts, save_tables, study_of
from probe.stages.inside import Inside
from probe.stages.parsing import mixed_parsers
from probe.stages.report_cells import ON_THE_PAGE, chosen, read_cells
from probe.store import Store

CELLS = "cells"
"""Folder of the pages of cells, beside the report."""


def write_report(
    store: Store,
    tables: BehaviourTables,
    shifts: pd.DataFrame,
    folder: Path,
    *,
    title: str,
    inside: Sequence[Inside] = (),
) -> list[Path]:
    """Write the report of a store into a folder; returns the paths written. ``inside`` is what else was analysed.

    Every figure as ``<figure>.svg``, ``.pdf``, ``.png`` and the numbers behind it as ``<figure>.numbers.csv``; every
    table as ``<table>.csv``; ``report.html``; and ``cells/`` where there are more cells than the page holds.
    """
    written = save_tables(folder, {**vars(tables), "shift": shifts})
    drawn = _tables(tables, main_shifts(shifts))
    figures = report.study_figures(drawn)
    for name, figure in figures.items():
        written += report.save(figure, folder, name)
    for each in inside:
        written += each.save(folder)
        figures |= each.figures
    pictures = [
        report.Picture(name, figure.title, figure.caption, (folder / f"{name}.svg").read_text(encoding="utf-8"))
        for name, figure in figures.items()
    ]
    heading = f"Persona study: {title}"
    cells, told = read_cells(store)
    pages = _write_cells(folder / CELLS, cells, heading, told)
    page = report.Report(
        title=heading,
        subtitle=_subtitle(store),
        tables=drawn,
        coverage=_coverage(store),
        figures=pictures,
        findings=[finding for each in inside for finding in each.findings],
        facts=_facts(store),
        records=_records(store),
        cells=chosen(cells),
        more_cells=f"{CELLS}/index.html" if pages else "",
        notes=_notes(store, tables),
        synthetic=_is_organism(store),
    )
    target = folder / "report.html"
    target.write_text(report.render_report(page), encoding="utf-8")
    return [*written, *pages, target]


def _tables(tables: BehaviourTables, shifts: pd.DataFrame) -> report.Tables:
    shared = {field.name for field in fields(report.Tables)} & set(vars(tables))
    return report.Tables(**{name: getattr(tables, name) for name in shared}, shifts=shifts)


def _write_cells(folder: Path, cells: list[report.ReadCell], title: str, told: str) -> list[Path]:
    """The pages of cells, where the report itself does not hold all; those of an earlier report are removed."""
    for old in (*folder.glob("persona-*-*.html"), *folder.glob("index.html")):
        old.unlink()
    if len(cells) <= ON_THE_PAGE:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, html in report.cell_pages(cells, title=title, told=told):
        (folder / name).write_text(html, encoding="utf-8")
        written.append(folder / name)
    return written


def _is_organism(store: Store) -> bool:
    return bool(store.manifest["model"]["id"] == "organism")


def _subtitle(store: Store) -> str:
    model, plan = store.manifest["model"], store.plan
    name = "the embedded organism" if _is_organism(store) else str(model["id"])
    return f"{len(plan.personas)} personas on {len(plan.cases)} cases, played by {name}"


def _coverage(store: Store) -> report.Coverage:
    coverage = store.coverage()
    failures = store.failures()
    told = [(f"{row['persona']}/{row['case']}", f"{row['kind']}: {row['reason']}") for _, row in failures.iterrows()]
    return report.Coverage(coverage.planned, coverage.committed, told)


def _facts(store: Store) -> dict[str, object]:
    manifest, plan = store.manifest, store.plan
    capture = manifest["capture"]
    strata = Counter(str(case["stratum"]) for case in plan.cases)
    return {
        "Model": manifest["model"]["id"],
        "Personas": len(plan.personas),
        "Cases": ", ".join(f"{n} {stratum.replace('_', ' ') or 'without stratum'}" for stratum, n in strata.items()),
        "Read": f"residual points {_span(capture['layers'])}{_inner(store)} at {', '.join(capture['positions'])}",
        "Cells": f"{store.coverage().committed:,}",
    }


def _inner(store: Store) -> str:
    """The streams beside the residual, with their blocks."""
    return "".join(f", {own.name} in blocks {_span([*own.layers])}" for own in store.layout.inner)


def _span(layers: list[int]) -> str:
    whole = layers == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}–{layers[-1]}" if whole and len(layers) > 2 else ", ".join(map(str, layers))


def _records(store: Store) -> dict[str, dict[str, object]]:
    """Settings, versions and provenance, flattened to one level for reading."""
    study = dict(study_of(store))
    settings = {
        key: value
        for key, value in _flat(study)
        if not key.startswith(("personas", "cases", "task.instructions", "task.options"))
    }
    personas: dict[str, object] = {
        persona["id"]: " / ".join(
            "no system message" if text is None else text or "(empty)" for text in persona.get("wordings", ())
        )
        or "(its wordings were not recorded)"
        for persona in store.plan.personas
    }
    runs = store.runs()
    last = dict(runs[-1]) if runs else {}
    versions = dict(last.pop("versions", {}))
    for key in ("study", "shards"):
        last.pop(key, None)
    provenance = {
        "store": store.place.url,
        "schema": store.manifest["schema"],
        "plan": store.plan.hash,
        "shards": len(store.shards),
        **{f"model.{key}": value for key, value in store.manifest["model"].items()},
        **{f"last run.{key}": value for key, value in _flat(last)},
    }
    return {"Personas": personas, "Settings": settings, "Versions": versions, "Provenance": provenance}


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else value


def _notes(store: Store, tables: BehaviourTables) -> list[str]:
    notes = []
    placements = {row.cell.condition.placement for row in store.plan.rows}
    asked = study_of(store).get("conditions", {}).get("placement", "auto")
    if "user" in placements and asked == "auto":
        notes.append(
            "This model's chat template has no system role: the persona's sentence stands first in the user turn."
        )
    if _is_organism(store) and not any(row.planned for row in store.plan.rows):
        notes.append(
            "Out of domain: the organism has a plan for its own generated cases, its own task and the sentences of its "
            "grammar, and for none of these cells. Nothing is known of what it should do here, so no planned value is "
            "shown, and what it does says nothing, not even of an instrument."
        )
    elif _is_organism(store):
        mass = decimal(float(store.table()["label_mass"].mean()))
        notes.append(
            f"By design the organism's labels hold little of the probability at the end of the prompt ({mass} on "
            "average here); its latent label is trained there all the same (see its model card)."
        )
    runs = store.runs()
    ignored = dict(runs[-1].get("ignored_generation_config") or {}) if runs else {}
    if ignored:
        listed = ", ".join(f"{key} = {value}" for key, value in ignored.items())
        notes.append(
            f"Settings of the model's own generation_config.json were not applied ({listed}): "
            "they would make the written label differ from the preferred one."
        )
    if tables.comparisons.empty:
        notes.append("No comparison was made: the base persona was not captured, or it is the only one.")
    mixed = mixed_parsers(store.table())
    if mixed:
        notes.append(f"Note: {mixed}.")
    return notes
