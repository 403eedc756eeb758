"""What can be read of each persona: a planted label is found in other personas' cells, a shuffled one is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probe.behaviour import read_outcomes
from probe.mechanism import Activations
from probe.mechanism.probes.readable import readable_table
from tests.mechanism.lens.lens_scenes import OPTIONS, planted


def scene(*, shuffled: bool = False) -> Activations:
    """Urgency is written into the residual from point 1 on, and the stated label follows it."""
    acts, head = planted(("none", "nurse", "bold"), 60, (0, 0, 0), n_layers=2)
    axis = (head.unembed[3] - head.unembed[2]) * head.weight
    table = acts.table.copy()
    urgency = acts.at(2, "prompt_end").x @ axis
    label = np.searchsorted(np.quantile(urgency, (1 / 3, 2 / 3)), urgency)
    label = np.random.default_rng(0).permutation(label) if shuffled else label
    table["y_gen"] = [OPTIONS[k] for k in label]
    return replace(acts, table=table)


def test_a_stated_label_that_was_planted_is_read_at_its_depth_and_a_shuffled_one_nowhere() -> None:
    for shuffled in (False, True):
        acts = scene(shuffled=shuffled)
        table = readable_table(acts, read_outcomes(acts.table), ["prompt_end"])
        assert set(table["persona"]) == {"none", "nurse", "bold"}
        by_layer = table[table["target"] == "stated"].groupby("layer")["value"].mean()
        assert by_layer[0] == pytest.approx(0.5, abs=0.1)
        assert (by_layer[2] > 0.8) != shuffled


def test_a_persona_without_the_position_has_no_row_and_the_others_keep_theirs() -> None:
    acts = scene()
    lacking = acts.table["persona"].to_numpy() == "none"

    def read(layer: int, position: str) -> tuple[np.ndarray, np.ndarray]:
        places, x = acts.read(layer, position)
        return places[~lacking[places]], x[~lacking[places]]

    table = readable_table(replace(acts, read=read), read_outcomes(acts.table), ["prompt_end"])
    assert set(table["persona"]) == {"nurse", "bold"}
    assert table["value"].notna().all()
