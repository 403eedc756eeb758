"""What is known of a case by its text alone."""

from __future__ import annotations

from probe.values.cases import is_content_free


def test_what_is_content_free() -> None:
    assert all(map(is_content_free, ("N/A", " n/a ", "[MASK]", "...")))
    assert not any(map(is_content_free, ("A patient.", "No", "")))
