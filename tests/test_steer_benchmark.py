"""The benchmark of steered prompts runs, compares what the tools give, and keeps its tables between its marks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "steer.py"


@pytest.mark.slow
def test_every_tool_gives_the_same_labels_and_the_table_lands_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- steer benchmark -->\nold\n<!-- /steer benchmark -->\nafter\n", "utf-8")
    command = [sys.executable, str(BENCHMARK), "--quick", "--model", "tiny", "--rounds", "1", "--write", str(page)]
    ended = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    )
    assert ended.returncode == 0, ended.stderr  # tools that part are an assertion there
    text = page.read_text("utf-8")
    assert text.startswith("before\n<!-- steer benchmark -->\nMeasured on: ")
    assert text.endswith("\n<!-- /steer benchmark -->\nafter\n")
    assert "old" not in text
    for words in ("| S1 | batch |", "| S2 | batch |", "| S3 | batch |", "| ours |", "| a plain hooks |"):
        assert words in text
