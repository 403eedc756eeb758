"""Does the state know? The script is short enough to be read, says what would refute it, and runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from probe.study import Study

SCRIPT = Path(__file__).parents[2] / "experiments" / "03_does_the_state_know.py"


def test_the_script_has_at_most_80_lines_and_says_what_would_refute_it() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80 and "Refuted by" in text
    study = Study.load(SCRIPT.with_suffix(".yaml"))
    assert study.capture.positions == ("prompt_end",)


@pytest.mark.slow
def test_the_script_runs_and_shows_every_layer_beside_the_baselines(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--limit", "60", "--permutations", "9"],
        cwd=tmp_path,
        env={**os.environ, "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "Disagreement, by layer" in run.stdout and "baseline: outputs" in run.stdout
    numbers = next(tmp_path.glob("figures/does-the-state-know/probes.numbers.csv"))
    assert set(pd.read_csv(numbers)["target"]) == {"disagreement", "latent", "stated", "correct"}
