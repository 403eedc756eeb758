"""Interventions of rows as edits of a forward: what a row's are does not depend on the rows that it runs with."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import torch

from probe.capture import PassInput
from probe.capture.interventions import Interventions
from probe.models.edits import Edit
from probe.values import Intervention
from tests.capture.matrix_rows import LABELS

WIDTH = 3
CPU = torch.device("cpu")


def row(*interventions: Intervention) -> PassInput:
    return PassInput((5, 6), None, None, LABELS, interventions=interventions)


def acting(edits: tuple[Edit, ...], which: int) -> list[tuple[str, list[float]]]:
    """The stream and vector of the edits that act on a row, in order."""
    found = []
    for edit in edits:
        assert edit.vector is not None
        if edit.where[which].any():
            found.append((edit.point.stream, edit.vector[which].tolist()))
    return found


def test_the_order_of_a_rows_edits_is_that_which_it_has_alone() -> None:
    vectors = [np.full(WIDTH, k, dtype=np.float32) for k in range(4)]
    streams = ("attn_out", "resid_mid", "attn_out", "resid")
    own = [Intervention(1, "add", vector, stream=stream) for vector, stream in zip(vectors, streams, strict=True)]
    rows = [row(*order) for order in permutations(own)] + [row(), row(*own[:1])]
    together = Interventions(CPU).edits(rows, [0] * len(rows), 2)
    for which, one in enumerate(rows):
        alone = acting(Interventions(CPU).edits([one], [0], 2), 0)
        assert acting(together, which) == alone
        assert sorted(stream for stream, _ in alone) == [stream for stream, _ in alone]
        first, third = (one.interventions.index(each) if each in one.interventions else 9 for each in own[:3:2])
        if third < 9:  # at one hook point their own order holds
            at = [vector[0] for stream, vector in alone if stream == "attn_out"]
            assert at == ([0.0, 2.0] if first < third else [2.0, 0.0])


def test_a_read_only_array_is_taken_and_later_changes_of_ours_do_not_reach_the_model() -> None:
    vector = np.ones(WIDTH, dtype=np.float32)
    vector.flags.writeable = False
    steering = Interventions(CPU)
    one = row(Intervention(1, "add", vector))
    assert acting(steering.edits([one], [0], 2), 0) == [("resid", [1.0] * WIDTH)]
    vector.flags.writeable = True
    vector[:] = 7
    assert acting(steering.edits([one], [1], 1), 0) == [("resid", [1.0] * WIDTH)]
