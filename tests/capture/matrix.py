"""The matrix: architectures x backends x scenes. Knows which scenes are run when, and how their result is told.

Fast tests (``make test``) run every forward scene on every architecture and backend, every pass scene on every
architecture with the ``hf`` backend, and the pass scenes in turn with the two others, so that each pair of scene and
backend, scene and architecture, architecture and backend is met. ``make test-slow`` runs the rest, and every operator
on every hook point. All three backends serve all of these architectures: a cell that cannot load fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.capture import matrix_forwards, matrix_passes
from tests.capture.architectures import ARCHITECTURES, KINDS
from tests.capture.matrix_forwards import SITE_LIMIT, Deviation

SCENES = {**matrix_forwards.SCENES, **matrix_passes.SCENES, "every edit": matrix_forwards.every_edit}
_ALWAYS = {"single", "left pad", "cached", "edited"}
_TURNS = (("right pad", "alone", "late rows"), ("span means", "shared prefix"), ("batch", "forks"), ("intervention",))
_TURNS += (("right pad", "given"), ("crowded",), ("sampled", "late rows"))


def is_fast(name: str, kind: str, scene: str) -> bool:
    """Whether a cell belongs to ``make test``."""
    if scene == "every edit":
        return False
    if kind == "hf" or scene in _ALWAYS:
        return True
    turn = ARCHITECTURES.index(name) * (2 if kind == "nnsight" else 3) + (kind == "nnsight")
    return scene in _TURNS[turn % len(_TURNS)]


def cells(names: Sequence[str]) -> list[object]:
    """Parameters (architecture, backend, scene) of a test, architecture by architecture so that models are reused."""
    return [
        pytest.param(
            name, kind, scene, id=f"{name}-{kind}-{scene}", marks=() if is_fast(name, kind, scene) else pytest.mark.slow
        )
        for name in names
        for kind in KINDS
        for scene in SCENES
    ]


def check_cell(name: str, kind: str, scene: str) -> None:
    """Run one cell of the matrix and fail with the worst of what is beyond its limit."""
    found = list(SCENES[scene](name, kind))
    assert found, "a scene that compares nothing"
    wrong = sorted((each for each in found if not each.ok), key=lambda each: each.limit / each.off)
    told = "\n".join(f"  {each.what}: {each.off:.2g}, allowed {each.limit:g}" for each in wrong[:10])
    assert not wrong, f"{len(wrong)} of {len(found)} comparisons of {name} on {kind}, {scene}:\n{told}"


@dataclass(frozen=True)
class Line:
    """One line of the table: what was compared of an architecture on a backend, and the worst of it."""

    name: str
    kind: str
    scenes: int
    sites: int
    worst_site: float
    worst_logp: float
    wrong: int

    @classmethod
    def of(cls, name: str, kind: str, scenes: Sequence[str]) -> Line:
        found: list[Deviation] = [each for scene in scenes for each in SCENES[scene](name, kind)]
        sites = [each for each in found if each.limit == SITE_LIMIT]
        logps = [each.off for each in found if each.limit == matrix_forwards.LOGP_LIMIT]
        return cls(
            name,
            kind,
            len(scenes),
            sum(each.n for each in sites),
            max(each.off for each in sites),
            max(logps, default=0.0),
            sum(not each.ok for each in found),
        )
