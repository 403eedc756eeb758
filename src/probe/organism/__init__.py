"""The embedded model organism: generated cases, planted personas, their planned truth, and the trained checkpoint.

Knows numpy only; the checkpoint is a folder of files that other rooms load. It was trained by
``experiments/train_organism.py``. Synthetic: no medical validity, no evidence about real models.
"""

from pathlib import Path

from probe.organism.census import Arm, Census, Readings, planned_readings, read_census
from probe.organism.duration import duration_cases, planned_duration
from probe.organism.facts import Facts, urgency
from probe.organism.mechanism import PlantedChannel, read_mechanism
from probe.organism.personas import HELD_OUT_CELLS, PersonaPlan, grammar, parse_persona
from probe.organism.plan import Planned, plan_of, planned
from probe.organism.replies import planned_reply
from probe.organism.task import (
    HELD_OUT_INSTRUCTIONS,
    LETTER_ONLY_INSTRUCTIONS,
    THINK_INSTRUCTIONS,
    duration_task,
    triage_task,
)
from probe.organism.vignettes import CUTS, HELD_OUT_SEED, STRATA, facts_of, generate_cases, held_out_cases

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Folder of the packaged checkpoint, in Hugging Face's layout."""

__all__ = [
    "CHECKPOINT",
    "CUTS",
    "HELD_OUT_CELLS",
    "HELD_OUT_INSTRUCTIONS",
    "HELD_OUT_SEED",
    "LETTER_ONLY_INSTRUCTIONS",
    "STRATA",
    "THINK_INSTRUCTIONS",
    "Arm",
    "Census",
    "Facts",
    "PersonaPlan",
    "Planned",
    "PlantedChannel",
    "Readings",
    "duration_cases",
    "duration_task",
    "facts_of",
    "generate_cases",
    "grammar",
    "held_out_cases",
    "parse_persona",
    "plan_of",
    "planned",
    "planned_duration",
    "planned_readings",
    "planned_reply",
    "read_census",
    "read_mechanism",
    "triage_task",
    "urgency",
]
