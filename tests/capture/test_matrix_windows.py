"""Decoders with sliding windows and softcaps: every backend gives what plain transformers gives."""

from __future__ import annotations

import pytest

from tests.capture.matrix import cells, check_cell

NAMES = ("mistral_window", "gemma2", "gemma3_text", "olmo2", "olmo3", "glm4")


@pytest.mark.parametrize(("name", "kind", "scene"), cells(NAMES))
def test_a_backend_gives_what_plain_transformers_gives(name: str, kind: str, scene: str) -> None:
    check_cell(name, kind, scene)
