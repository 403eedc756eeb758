"""Mixtures of experts, and recurrent states: every backend gives what plain transformers gives."""

from __future__ import annotations

import pytest

from tests.capture.matrix import cells, check_cell

NAMES = ("qwen3_moe", "mixtral", "gpt_oss", "qwen3_next", "mamba2")


@pytest.mark.parametrize(("name", "kind", "scene"), cells(NAMES))
def test_a_backend_gives_what_plain_transformers_gives(name: str, kind: str, scene: str) -> None:
    check_cell(name, kind, scene)
