"""The rerun of the paper's study: short enough to be read, and it runs with its noise floor and rotations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from probe.study import Study

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SCRIPT = EXPERIMENTS / "01_persona_paradox.py"


def test_the_script_has_at_most_80_lines_and_its_study_plans_the_papers_claims() -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 80
    study = Study.load(SCRIPT.with_suffix(".yaml"))
    assert len(study.cases) == 600
    assert {(c.stratum, c.metric, c.direction) for c in study.confirm} == {
        ("emergency", "accuracy", "greater"),
        ("primary_care", "accuracy", "less"),
        ("primary_care", "consistency_strict", "less"),
    }


@pytest.mark.slow
def test_the_script_runs_with_its_noise_floor_and_rotations(tmp_path: Path) -> None:
    fewer = ("conditions.wordings={helpful_paraphrases: 4, default: 1}", "capture.layers=[0, 6]")
    options = ["--controls", "--rotations", "--limit", "6", *(word for text in fewer for word in ("--set", text))]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *options, "--set", "generation.max_new_tokens=48"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    for words in ("Planned contrasts", "against k neutral wordings", "Share of each letter", "report: "):
        assert words in ended.stdout
    folder = tmp_path / "figures" / "persona-paradox-controls-rotations"
    assert {"report.html", "floor.csv", "positions.csv", "variance.csv"} <= {path.name for path in folder.iterdir()}
