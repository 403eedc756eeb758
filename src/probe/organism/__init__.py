"""The embedded model organism: generated cases, planted personas, their planned truth, and the trained checkpoint.

Knows numpy only; the checkpoint is a folder of files that other rooms load. It was trained by
``experiments/train_organism.py``. Synthetic: no medical validity, no evidence about real models.
"""

from pathlib import Path

from probe.organism.facts import Facts, urgency
from probe.organism.personas import HELD_OUT_CELLS, PersonaPlan, grammar, parse_persona
from probe.organism.plan import Planned, plan_of, planned
from probe.organism.replies import planned_reply
from probe.organism.task import HELD_OUT_INSTRUCTIONS, LETTER_ONLY_INSTRUCTIONS, triage_task
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
    "Facts",
    "PersonaPlan",
    "Planned",
    "facts_of",
    "generate_cases",
    "grammar",
    "held_out_cases",
    "parse_persona",
    "plan_of",
    "planned",
    "planned_reply",
    "triage_task",
    "urgency",
]
