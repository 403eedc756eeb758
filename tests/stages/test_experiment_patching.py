"""The experiment on where a persona lives: short enough to be read, and it runs on personas whose place was planted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from probe.study import Study

SCRIPT = Path(__file__).parents[2] / "experiments" / "06_where_the_persona_lives.py"


def test_the_script_has_at_most_80_lines_and_its_study_loads() -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 80
    assert Study.load(SCRIPT.with_suffix(".yaml")).base == "none"


@pytest.mark.slow
def test_the_script_runs_on_the_organism(tmp_path: Path) -> None:
    few = "personas=['builtin:persona-paradox']"
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), "--limit", "12", "--cases", "4", "--set", few],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    for words in (
        "Cells that must be all or nothing",
        "Lives where",
        "Fetched by which heads",
        "Comes by which tokens",
    ):
        assert words in ended.stdout
    folder = tmp_path / "figures" / "where-the-persona-lives"
    assert {"patch_effects.csv", "patch_paths.csv", "patch_paths.svg"} <= {path.name for path in folder.iterdir()}
    assert list((tmp_path / "cache" / "where-the-persona-lives-patch" / "parts").glob("*.parquet"))
