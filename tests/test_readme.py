"""The promise of the store stands in the README and on the page that says how it is tested, in the same words."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROMISE = (
    "survives kill -9, power loss and a full disk",
    "a damaged byte is never returned as data",
    "a run never mixes two models, templates or prompt texts",
    "any run continues with the same command",
    "nothing in a store can execute code",
)


def words_of(page: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8").replace("`", "").replace("*", "")
    return " ".join(text.split()).casefold()


def test_the_store_promises_the_same_in_the_readme_and_where_its_faults_are_listed() -> None:
    for page in ("README.md", "docs/reliability.md"):
        missing = [part for part in PROMISE if part not in words_of(page)]
        assert not missing, page


def test_every_page_that_the_readme_links_is_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []
