"""Patching and steering in a study: in its one report, and one that cannot run costs only itself."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pandas as pd
import pytest
from matplotlib.figure import Figure

from probe.report import Drawn
from probe.stages import causal
from probe.stages.inside import Inside
from probe.stages.run import run_study
from probe.study import Study
from probe.values import ProbeError


def study(*analyses: str) -> Study:
    return Study.from_mapping(
        {
            "name": "causal",
            "model": {"id": "organism"},
            "personas": [{"id": "none", "text": None}, {"id": "ed_physician", "text": "You are an ED physician."}],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "capture": {"layers": [0]},
            "generation": {"max_new_tokens": 4},
            "analyses": list(analyses),
        }
    ).limited(6)


def test_what_a_study_asks_of_the_model_again_is_in_its_report_and_a_refusal_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def made(one: Study, store: object, policy: object) -> Inside:
        asked.append(str(store))
        table = pd.DataFrame({"value": [1.0]})
        return Inside({"patch_effects": table}, {"patch_grid": Drawn(Figure(), table, "A grid", "of one cell")}, list)

    def refused(one: Study, store: object, policy: object) -> Inside:
        raise ProbeError("there is no direction to steer along")

    monkeypatch.setattr(causal, "CAUSAL", MappingProxyType({"patch": made, "steer": refused}))
    out = tmp_path / "out"
    run_study(study("metrics", "patch", "steer", "report"), store=tmp_path / "s", out=out)
    assert asked == [str(tmp_path / "s")]
    assert "A grid" in (out / "report.html").read_text(encoding="utf-8")
    assert pd.read_csv(out / "patch_effects.csv")["value"].tolist() == [1.0]
    assert "steer: there is no direction to steer along" in capsys.readouterr().out
    run_study(study("metrics"), store=tmp_path / "s", out=tmp_path / "other")
    assert len(asked) == 1


@pytest.mark.slow
def test_patching_and_steering_of_a_small_study_run_with_what_they_ask_for_by_default(tmp_path: Path) -> None:
    whole = Study.from_mapping(study("patch", "steer", "report").to_mapping() | {"limit": None})
    mapping = whole.to_mapping() | {"cases": "builtin:triage", "limit": 24, "generation": {"max_new_tokens": 64}}
    mapping |= {"capture": {"layers": "all", "positions": ["prompt_end", "answer"]}}
    outcome = run_study(Study.from_mapping(mapping), store=tmp_path / "s", out=tmp_path / "out")
    assert outcome.exit_status == 0
    names = {path.name for path in (tmp_path / "out").glob("*.csv")}
    assert "patch_effects.csv" in names
    assert "steer_recovery.csv" in names
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count('<figure id="patch') >= 1
    assert page.count('<figure id="steer') >= 1
