"""Decoders with parallel blocks, absolute positions or alibi: every backend gives what plain transformers gives."""

from __future__ import annotations

import pytest

from tests.capture.matrix import cells, check_cell

NAMES = ("phi", "gpt2", "gpt_neox", "cohere2", "stablelm", "falcon", "opt", "bloom")


@pytest.mark.parametrize(("name", "kind", "scene"), cells(NAMES))
def test_a_backend_gives_what_plain_transformers_gives(name: str, kind: str, scene: str) -> None:
    check_cell(name, kind, scene)
