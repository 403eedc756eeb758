"""What `probe steer` would do, in numbers: cases of each part, label reads, written answers. Loads no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from probe.mechanism.geometry.directions import PARTS
from probe.mechanism.splits import part_of
from probe.mechanism.steering.dose import GRID
from probe.stages.resolution import resolve
from probe.stages.steer_bench import N_SPLITS
from probe.stages.steer_labels import N_DRAWN, RUNGS
from probe.stages.steer_rules import N_DRAWN as N_RULES
from probe.stages.steer_scene import SteerRequest, base_of
from probe.stages.steer_texts import READ_AGAIN
from probe.study import Study
from probe.values import ProbeError


@dataclass(frozen=True)
class SteerPlan:
    """Cases by part, personas compared, candidate layers; about how many label reads, and how many answers at most.

    Label reads of edits at the prompt's end cost one token through the layers above each; ``answers`` are written from
    the first to the last token, and ``read_again`` of them are read once more by two models.
    """

    cases: Mapping[str, int]
    personas: tuple[str, ...]
    layers: tuple[int, ...]
    reads: int
    answers: int
    read_again: int


def plan_steer(study: Study, request: SteerRequest) -> SteerPlan:
    """The plan of a comparison, before anything is captured.

    Raises:
        ProbeError: there is no persona to compare or it is the base, or no layer to choose from.
    """
    resolved = resolve(study)
    base = base_of(study, request)
    family = np.array([case.family or case.id for case in study.cases], dtype=object)
    part = part_of(family, PARTS, study.split_seed)
    cases = {name: int((part == name).sum()) for name in PARTS}
    fitted = [one.id for one in study.personas if one.id != base and one.role != "control"]
    personas = request.personas or tuple(fitted)
    layers = request.layers or tuple(layer for layer in resolved.layers if 0 < layer < resolved.shape.n_layers)
    if not personas or not layers:
        raise ProbeError("a comparison needs a persona beside the base, and a layer between the first and the last")
    settling, judged = min(cases["validation"], request.dose_cases), cases["test"]
    drawn = 2 * request.n_random + N_SPLITS + 1
    every, few = drawn + len(fitted), 2 * min(N_RULES, request.n_random) + N_SPLITS + 1 + len(fitted)
    banks = min(len(layers), len(personas)) * (drawn + 1) * len(GRID) * settling
    own = (len(layers) + len(fitted)) * len(GRID) * settling + 2 * every * settling + every * judged
    curves = (2 + 2 * min(N_DRAWN, request.n_random)) * (len(RUNGS) + 1) * judged
    rules = few * (len(GRID) * settling + 2 * judged)
    written = min(judged, request.text_cases)
    arms = 2 + 2 + 1 + len(fitted) + request.n_generated  # prompted twice, steered and ablated, a split, the others
    again = 2 * (arms - max(request.n_generated - READ_AGAIN, 0)) * written * len(personas)
    return SteerPlan(
        cases,
        personas,
        layers,
        banks + len(personas) * (own + curves + rules),
        (1 + len(personas) * arms) * written,
        again,
    )
