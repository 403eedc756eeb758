"""One study with several models: run one by one, and compared. Imports no torch before a capture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from probe import behaviour
from probe.behaviour.across_models import across_models, case_differences, model_effects, rank_agreement
from probe.report.across import AcrossReport, across_figures, across_sentences, render_across
from probe.report.drawn import save
from probe.report.page import Picture
from probe.stages.analysis import DEFAULT_BASE, Question, cells, save_tables, study_of
from probe.stages.places import figures_path
from probe.stages.targets import TABLES, open_target, read_table
from probe.stages.terminal import announce_files, say
from probe.store import Store
from probe.values import ALL, ProbeError

METRICS = (
    *("accuracy", "accuracy_latent", "consistency_strict", "brier", "risk_propensity", "expected_urgency_latent"),
    "parse_rate",
)
"""What is compared across models, where the tables have it."""


@dataclass(frozen=True, eq=False)
class AcrossTables:
    """``models``: one row per model; the others as :mod:`probe.behaviour.across_models` makes them."""

    models: pd.DataFrame
    effects: pd.DataFrame
    summary: pd.DataFrame
    agreement: pd.DataFrame


def across(
    sources: Mapping[str, Store | pd.DataFrame], question: Question | None = None, metrics: Sequence[str] = METRICS
) -> AcrossTables:
    """Every persona effect in every model, and over models like these; ``sources`` are stores or tables by model.

    The base is by default that of the first store's study, else ``none``. Where all have control wordings, every
    persona is compared with their mean as well.

    Raises:
        ProbeError: there are fewer than two models, they share no case or no persona effect, or a base is not there.
    """
    if len(sources) < 2:
        raise ProbeError(f"a comparison across models takes two or more, found {len(sources)}; give their stores")
    asked = question or Question()
    tables = {name: cells(source, asked) for name, source in sources.items()}
    shared = set.intersection(*(set(table["case"].astype(str)) for table in tables.values()))
    if not shared:
        raise ProbeError(f"{', '.join(tables)} have no case in common, so no effect can be compared; give one study's")
    base = asked.base or str(study_of(next(iter(sources.values()))).get("base", DEFAULT_BASE))
    controlled = all(behaviour.control_personas(table, asked.controls) for table in tables.values())
    bases = [base, *([behaviour.CONTROLS] if controlled and base != behaviour.CONTROLS else [])]
    differences = {
        name: case_differences(table, bases, metrics=metrics, controls=asked.controls, **asked.labels)
        for name, table in tables.items()
    }
    effects = model_effects(differences)
    return AcrossTables(
        models=_models(tables, effects, base, asked, len(shared)),
        effects=effects,
        summary=across_models(differences),
        agreement=rank_agreement(effects),
    )


def run_across(targets: Sequence[str], question: Question, *, out: Path | None = None) -> None:
    """Compare the models of studies, stores or tables: sentences here, tables, figures and a page in a folder."""
    sources = _sources(targets)
    name = "-".join(list(sources)[:3]) if len(sources) <= 3 else f"{len(sources)}-models"
    write_across(sources, question, figures_path(f"across-{name}"[:100], out), title=f"{len(sources)} models")


def write_across(
    sources: Mapping[str, Store | pd.DataFrame], question: Question, folder: Path, *, title: str
) -> list[Path]:
    """Tables (CSV), figures and ``across.html``; and the main results on screen. The paths written."""
    tables = across(sources, question)
    written = save_tables(folder, {f"across_{name}": table for name, table in vars(tables).items()})
    drawn = across_figures(tables.effects, tables.summary, tables.agreement)
    for name, figure in drawn.items():
        written += save(figure, folder, name)
    pictures = [
        Picture(name, figure.title, figure.caption, (folder / f"{name}.svg").read_text(encoding="utf-8"))
        for name, figure in drawn.items()
    ]
    organism = any(isinstance(one, Store) and one.manifest["model"]["id"] == "organism" for one in sources.values())
    page = AcrossReport(f"Across models: {title}", **vars(tables), figures=pictures, synthetic=organism)
    target = folder / "across.html"
    target.write_text(render_across(page), encoding="utf-8")
    for sentence in across_sentences(tables.summary, tables.agreement):
        say(sentence)
    announce_files(folder, [*written, target])
    return [*written, target]


def named_models(stores: Sequence[Store]) -> dict[str, Store]:
    """Stores by the name of their model: the last part of its id where that tells them apart."""
    ids = [str(store.manifest["model"]["id"]).rstrip("/") for store in stores]
    ids = [
        name if not store.manifest["model"].get("revision") else f"{name}@{store.manifest['model']['revision'][:12]}"
        for name, store in zip(ids, stores, strict=True)
    ]
    last = [name.rpartition("/")[2] or name for name in ids]
    names = last if len(set(last)) == len(last) else ids
    if len(set(names)) < len(names):
        names = [f"{name} ({store.name})" for name, store in zip(names, stores, strict=True)]
    return dict(zip(names, stores, strict=True))


def _sources(targets: Sequence[str]) -> dict[str, Store | pd.DataFrame]:
    stores: list[Store] = []
    tables: dict[str, Store | pd.DataFrame] = {}
    for target in targets:
        path = Path(target)
        if path.suffix.lower() in TABLES and not path.is_dir():
            tables[path.stem] = read_table(path)
        elif path.suffix in (".yaml", ".yml"):
            from probe.stages.places import store_path
            from probe.study import Study

            stores += [open_target(str(store_path(study)))[1] for study in Study.load_all(path)]
        else:
            stores.append(open_target(target)[1])
    return {**named_models(stores), **tables}


def _models(
    tables: Mapping[str, pd.DataFrame], effects: pd.DataFrame, base: str, asked: Question, shared: int
) -> pd.DataFrame:
    """One row per model: its cells, the base's own metrics, and every persona's change of accuracy."""
    rows = []
    for name, table in tables.items():
        told = behaviour.metrics(table, **asked.labels, settings=asked.settings)
        own = told[(told["persona"] == base) & (told["stratum"] == ALL)].set_index("metric")["value"]
        row: dict[str, object] = {"model": name, "cells": len(table), "cases": table["case"].nunique()}
        row["shared_cases"] = shared
        row |= {f"{metric} of {base}": own[metric] for metric in METRICS if metric in own}
        mine = effects[(effects["model"] == name) & (effects["base"] == base) & (effects["stratum"] == ALL)]
        main = next(iter(dict.fromkeys(mine["metric"])), None)
        for _, one in mine[mine["metric"] == main].iterrows():
            row |= {f"{one['persona']}: {main}": one["difference"], f"{one['persona']}: rank": one["rank"]}
        rows.append(row)
    return pd.DataFrame(rows)
