"""The organism on a bench for steering, with the prompts of some personas captured. For tests."""

from __future__ import annotations

from pathlib import Path

import probe
from probe.stages.resolution import resolve
from probe.stages.running import load_model
from probe.stages.steer_bench import Bench
from probe.stages.steer_scene import SteerRequest, scene_of


def organism_bench(folder: Path, request: SteerRequest, *, cases: int, tokens: int = 1) -> Bench:
    """Two personas that act, one that is planned to do nothing, and none, at ``prompt_end``."""
    study = probe.Study.from_mapping(
        {
            "name": "steered-organism",
            "model": {"id": "organism"},
            "personas": [
                {"id": "none", "text": None},
                {"id": "ed_physician", "wordings": ["You are an ED physician.", "Act as an ED physician."]},
                {"id": "cautious_ed_physician", "text": "You are a cautious ED physician."},
                {"id": "zero", "text": "You are Brennick."},  # of builtin:diagnostics
            ],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "limit": cases,
            "capture": {"positions": ["prompt_end", "answer"] if tokens > 1 else ["prompt_end"]},
            "generation": {"max_new_tokens": tokens},
        }
    )
    store = probe.run(study, store=folder / "store")
    resolved = resolve(study)
    return Bench(scene_of(study, resolved, store, request), load_model(resolved))
