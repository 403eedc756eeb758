"""The matrix is whole: every architecture in one of its files, every pair met by the fast tests, and able to fail."""

from __future__ import annotations

import dataclasses
from itertools import product
from unittest.mock import patch

import pytest
import torch

from probe.capture import slots
from probe.models.caches import SlotCache
from probe.models.protocol import Forward
from tests.capture import (
    architectures,
    matrix,
    matrix_passes,
    test_matrix_llamas,
    test_matrix_mixtures,
    test_matrix_parallel,
    test_matrix_windows,
)
from tests.capture.architectures import ARCHITECTURES, KINDS, backend
from tests.capture.matrix_forwards import against, judged_by_the_truth
from tests.capture.reference import States

FILES = (test_matrix_llamas, test_matrix_mixtures, test_matrix_parallel, test_matrix_windows)


def test_every_architecture_is_in_one_file() -> None:
    assert len(ARCHITECTURES) >= 24
    assert sorted(name for file in FILES for name in file.NAMES) == sorted(ARCHITECTURES)


def test_the_fast_cells_meet_every_pair() -> None:
    scenes = set(matrix.SCENES) - {"every edit"}
    fast = {cell for cell in product(ARCHITECTURES, KINDS, scenes) if matrix.is_fast(*cell)}
    assert {(name, kind) for name, kind, _ in fast} == set(product(ARCHITECTURES, KINDS))
    assert {(kind, scene) for _, kind, scene in fast} == set(product(KINDS, scenes))
    assert {(name, scene) for name, _, scene in fast} == set(product(ARCHITECTURES, scenes))


@pytest.mark.parametrize("name", ["llama", pytest.param("mistral_window", marks=pytest.mark.slow)])
@pytest.mark.parametrize("scene", list(matrix_passes.SCENES))
def test_without_a_cache_a_pass_gives_the_same(name: str, scene: str) -> None:
    """A backend may have no cache (nnsight on NDIF): the whole sequence is run again for every token."""
    plain = backend(name, "hf")
    without = dataclasses.replace(plain.facts, caching="none")
    calls = []
    forward = type(plain).forward

    def counted(self: object, *args: object, **kwargs: object) -> object:
        calls.append(kwargs.get("cache"))
        return forward(self, *args, **kwargs)  # type: ignore[arg-type]

    with patch.object(plain, "facts", without), patch.object(type(plain), "forward", counted):
        if scene == "shared prefix":  # nothing is shared, and the scene's own check of that would say so
            rows = matrix_passes.shared_rows(name)
            assert all(each.ok for each in matrix_passes.compare(scene, name, "hf", rows, batch_size=4))
        else:
            matrix.check_cell(name, "hf", scene)
    assert calls
    assert not any(calls)


def test_the_buffers_move_and_grow_under_late_rows() -> None:
    seen: list[str] = []
    shift, resize = SlotCache.shift, SlotCache.resize

    def shifted(self: SlotCache, *args: object, **kwargs: object) -> None:
        seen.append("shift")
        shift(self, *args, **kwargs)  # type: ignore[arg-type]

    def resized(self: SlotCache, *args: object, **kwargs: object) -> None:
        seen.append("resize")
        resize(self, *args, **kwargs)  # type: ignore[arg-type]

    with patch.object(SlotCache, "shift", shifted), patch.object(SlotCache, "resize", resized):
        assert all(each.ok for each in matrix_passes.late("llama", "hf"))
    assert set(seen) == {"shift", "resize"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mistral_window", "bloom", "opt", "gpt_oss", "qwen3_next", "mamba2"])
@pytest.mark.parametrize("seed", range(4))
def test_passes_drawn_at_random_give_the_same(name: str, seed: int) -> None:
    # A delta rule that is steered anyhow may round a little worse than one that is not.
    allowed = 2 if name == "qwen3_next" else 1
    wrong = [each for each in matrix_passes.shuffled(name, "hf", seed) if each.off > allowed * each.limit]
    assert not wrong, wrong[:10]


class TestTheMatrixCanFail:
    """Plants in the package what the matrix is there to find."""

    def wrong(self, scene: str, name: str = "mistral_window") -> list[str]:
        return [each.what for each in matrix.SCENES[scene](name, "hf") if not each.ok]

    def test_pads_inside_a_row_are_noticed(self) -> None:
        enter = slots.Slots.enter

        def late(self: slots.Slots, group: object, prefix: object) -> object:
            found = enter(self, group, prefix)  # type: ignore[arg-type]
            self._pads = [max(pad - 1, 0) for pad in self._pads]
            return found

        with patch.object(slots.Slots, "enter", late):
            assert self.wrong("batch")
        assert not self.wrong("batch")

    def test_a_site_one_token_off_is_noticed(self) -> None:
        row = matrix_passes.row

        def shifted(tokens: object, persona: object = (2, 6), **more: object) -> object:
            one = row(tokens, persona, **more)  # type: ignore[arg-type]
            return one if one.persona_end is None else dataclasses.replace(one, persona_end=one.persona_end - 1)

        run = matrix_passes.run

        def misread(name: str, kind: str, rows: list[object], *more: object) -> object:
            return run(name, kind, [shifted(r.token_ids, r.persona_tokens) for r in rows], *more)  # type: ignore

        with patch.object(matrix_passes, "run", misread):
            assert any("persona_end" in what for what in self.wrong("batch"))

    def test_an_intervention_one_token_off_is_noticed(self) -> None:
        acting = slots.Interventions.edits

        def off_by_one(self: object, rows: object, offsets: list[int], width: int) -> object:
            return acting(self, rows, [offset + 1 for offset in offsets], width)  # type: ignore[arg-type]

        with patch.object(slots.Interventions, "edits", off_by_one):
            assert self.wrong("intervention")

    def test_a_cache_that_forgets_is_noticed(self) -> None:
        resize = SlotCache.resize

        def forgetting(self: SlotCache, rows: int, columns: int, *, kept: int, end: int) -> None:
            resize(self, rows, columns, kept=kept, end=max(end - 12, 0))

        with patch.object(SlotCache, "resize", forgetting):
            assert self.wrong("crowded")


def test_the_models_are_as_the_scenes_need_them() -> None:
    lengths = [len(prompt) for prompt in architectures.prompts("llama")]
    assert min(lengths) > architectures.WINDOW
    assert len(set(lengths)) > 1
    assert max(matrix_passes.LATE) + 70 <= architectures.CONTEXT


def test_what_is_off_may_be_farther_from_the_truth_than_plain_transformers_by_the_limit_and_no_more() -> None:
    """Three tokens of width 2: the truth, a reference that rounds, and what is held against it."""
    truth = torch.ones(3, 2, dtype=torch.float64)

    def judged(reference_off: float, got_off: float) -> bool:
        wanted, exact = (States({("resid", 0): x}, torch.zeros(3, 5)) for x in (truth * (1 + reference_off), truth))
        got = Forward(torch.zeros(1, 3, 5), {"resid": (truth * (1 + got_off))[None, None]}, {}, None)
        every = [list(against("edit", got, 0, slice(None), one, slice(None))) for one in (wanted, exact)]
        return all(each.ok for each in judged_by_the_truth(every[0], iter(every[1]), wanted, exact))

    assert judged(3e-5, -2e-5) and judged(0, 9e-6)
    assert not judged(3e-5, -5e-5) and not judged(0, 2e-5)
