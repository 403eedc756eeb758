"""The page on scale holds the sizes that the code of today reckons."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scale.md"


@pytest.mark.slow
def test_the_tables_of_sizes_are_those_that_the_script_makes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = PAGE.read_text("utf-8")
    before, rest = text.split("<!-- sizes -->\n")
    page.write_text(f"{before}<!-- sizes -->\nold\n<!-- /sizes -->{rest.split('<!-- /sizes -->')[1]}", "utf-8")
    assert page.read_text("utf-8") != text
    command = [sys.executable, str(ROOT / "benchmarks" / "sizing.py"), "--write", str(page)]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert ended.returncode == 0, ended.stderr
    assert page.read_text("utf-8") == text
