"""The page of faults names tests that exist, for every fault."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"


def test_every_fault_has_tests_and_every_test_named_is_there() -> None:
    lines = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(number) for number, _ in lines] == list(range(1, 31))
    named = {number: re.findall(r"`(test_\w+)`", tests) for number, tests in lines}
    written = {
        name
        for file in TESTS.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    missing = {number: sorted(set(tests) - written) for number, tests in named.items() if set(tests) - written}
    assert not missing
    assert all(named.values())
