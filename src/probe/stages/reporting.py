"""The report stage: from an open store to figures, tables and one page. Imports no torch; computes no statistic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probe import report
from probe.report.numbers import decimal
from probe.stages.analysis import BehaviourTables, main_shifts, save_tables, study_of
from probe.store import Store
from probe.values import CellRecord

_SITES = {"prompt_end": "at the end of the prompt", "answer": "where the letter was written"}


def write_report(
    store: Store, tables: BehaviourTables, shifts: pd.DataFrame, folder: Path, *, title: str
) -> list[Path]:
    """Write ``<figure>.png`` and ``.svg``, a CSV per table and ``report.html`` into a folder; returns their paths."""
    written = save_tables(folder, {**vars(tables), "shift": shifts})
    drawn = main_shifts(shifts)
    figures = report.study_figures(tables.metrics, tables.comparisons, tables.reliability, drawn)
    vectors = {}
    for name, figure in figures.items():
        png, svg = report.save(figure, folder, name)
        vectors[name] = svg.read_text(encoding="utf-8")
        written += [png, svg]
    page = report.Report(
        title=f"Persona study: {title}",
        subtitle=_subtitle(store),
        metrics=tables.metrics,
        comparisons=tables.comparisons,
        coverage=_coverage(store),
        shifts=drawn,
        figures=vectors,
        facts=_facts(store),
        records=_records(store),
        examples=tuple(_examples(store)),
        notes=_notes(store, tables),
        synthetic=_is_organism(store),
    )
    target = folder / "report.html"
    target.write_text(report.render_report(page), encoding="utf-8")
    return [*written, target]


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
        "Read": f"residual points {_span(capture['layers'])} at {', '.join(capture['positions'])}",
        "Cells": f"{store.coverage().committed:,}",
    }


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
        "store": str(store.path),
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
    if _is_organism(store):
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
    return notes


def _examples(store: Store) -> Iterator[report.ExampleCell]:
    """One cell per persona: the first whose two labels disagree, else the first."""
    table = store.table()
    for persona, rows in table.groupby("persona", sort=False):
        parted = rows[rows["y_gen"].notna() & (rows["y_gen"] != rows["y_latent"])]
        chosen = (parted if len(parted) else rows).iloc[0]
        view = store.select(persona=str(persona), case=str(chosen["case"]))
        prompts = view.texts().set_index("row_id")["prompt"]
        record = next(record for record in view.records() if record.cell.row_id == chosen["row_id"])
        yield _example(store, record, chosen, prompts[chosen["row_id"]])


def _example(store: Store, record: CellRecord, row: pd.Series, prompt: str | None) -> report.ExampleCell:
    options = store.manifest["labels"]["options"]
    reads = {
        _SITES.get(site, site): dict(zip(options, np.exp(read.logp).tolist(), strict=True))
        for site, read in record.labels.items()
    }
    return report.ExampleCell(
        persona=record.cell.persona,
        case=record.cell.case,
        stratum=str(row["stratum"]),
        prompt=prompt if prompt is not None else "(the prompt's text was not kept)",
        answer=record.gen_text,
        status=record.status,
        target=str(row["target"]),
        latent=row["y_latent"],
        stated=record.label,
        span=record.span,
        reads=reads,
    )
