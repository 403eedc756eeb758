"""The page about reading a cache: its session runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "store.md"


def test_the_session_of_the_page_runs_and_says_what_the_page_says(write, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    write("cache/triage")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in blocks:
        exec(block, scope)
    assert len(blocks) >= 8
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*?\) +# (.*)", "\n".join(blocks))
    assert scope["acts"].shape == (1, 3, 8)
