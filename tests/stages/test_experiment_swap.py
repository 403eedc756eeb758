"""The experiment on where personas act: short enough to be read, and it runs on personas whose place was planted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from probe.study import Study

SCRIPT = Path(__file__).parents[2] / "experiments" / "04_where_does_a_persona_act.py"


def test_the_script_has_at_most_80_lines_and_its_study_loads() -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 80
    assert Study.load(SCRIPT.with_suffix(".yaml")).base == "none"


@pytest.mark.slow
def test_the_script_runs_on_the_diagnostic_personas(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), "--diagnostics", "--limit", "12"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    for words in ("Seen in the labels", "Control: own texts", "Caused where", "Who wrote the text", "swap_paths.png"):
        assert words in ended.stdout
    folder = tmp_path / "figures" / "where-personas-act-diagnostics"
    assert {"swap_effects.csv", "swap_verdicts.csv", "swap_paths.svg"} <= {path.name for path in folder.iterdir()}
