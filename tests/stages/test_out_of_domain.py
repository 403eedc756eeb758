"""What a study of the organism says where the organism has no plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import probe
from probe.stages.analysis import behaviour_tables
from probe.stages.reporting import _notes
from probe.study import Study


def captured(folder: Path, cases: str, task: str = "builtin:triage") -> probe.Store:
    study = Study.from_mapping(
        {
            "name": "domain",
            "model": {"id": "organism"},
            "personas": [{"id": "none", "text": None}, {"id": "ed_physician", "text": "You are an ED physician."}],
            "task": task,
            "cases": cases,
            "capture": {"layers": [0]},
            "generation": {"max_new_tokens": 4},
            "limit": 4,
        }
    )
    return probe.run(study, store=folder / "store")


@pytest.fixture(scope="module")
def vignettes(tmp_path_factory: pytest.TempPathFactory) -> probe.Store:
    return captured(tmp_path_factory.mktemp("vignettes"), "builtin:vignettes")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> probe.Store:
    return captured(tmp_path_factory.mktemp("own"), "builtin:triage")


@pytest.fixture(scope="module")
def second_task(tmp_path_factory: pytest.TempPathFactory) -> probe.Store:
    return captured(tmp_path_factory.mktemp("duration"), "builtin:duration", "builtin:duration")


def test_the_report_says_out_of_domain_on_vignettes_and_not_on_the_organisms_own_cases(
    vignettes: probe.Store, own: probe.Store, second_task: probe.Store
) -> None:
    for store, said in ((vignettes, True), (own, False), (second_task, False)):
        notes = _notes(store, behaviour_tables(store))
        assert any(note.startswith("Out of domain") for note in notes) == said


def test_on_vignettes_there_is_nothing_planned_to_show_and_on_its_own_cases_there_is(
    vignettes: probe.Store, own: probe.Store
) -> None:
    for store, shows in ((vignettes, False), (own, True)):
        assert any(name.startswith("planned_") for name in store.table()) == shows
        assert probe.metrics(store)["planned"].notna().any() == shows


def test_the_plan_of_the_second_task_is_the_same_under_every_persona_and_that_of_triage_is_not(
    own: probe.Store, second_task: probe.Store
) -> None:
    for store, option, same in ((second_task, "today", True), (own, "C", False)):
        planned = store.table().pivot(index="case", columns="persona", values=f"planned_logp_{option}")
        assert np.allclose(planned["none"], planned["ed_physician"]) == same
