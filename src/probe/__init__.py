"""Open a language model while it plays a persona: residual streams, label logits and the answer, from one pass.

The names below are the public API; they are imported when they are first used, so that ``import probe`` costs nothing
and a store can be studied without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Study": "probe.study",
    "GivenSpec": "probe.study",
    "LabelSpec": "probe.study",
    "new_study": "probe.study",
    "run": "probe.stages.api",
    "CapturePolicy": "probe.stages.policy",
    "Engine": "probe.engines",
    "metrics": "probe.stages.api",
    "compare": "probe.stages.api",
    "noise_floor": "probe.stages.api",
    "causes": "probe.stages.api",
    "variance_components": "probe.stages.api",
    "rankings": "probe.behaviour",
    "agreement": "probe.behaviour",
    "tables": "probe.stages.api",
    "Question": "probe.stages.analysis",
    "shift": "probe.stages.api",
    "write_report": "probe.stages.api",
    "geometry": "probe.stages.directions:geometry_tables",
    "directions": "probe.stages.directions:make_directions",
    "save_directions": "probe.stages.direction_files",
    "load_directions": "probe.stages.direction_files",
    "probes": "probe.stages.probes:probe_store",
    "lens": "probe.stages.lens:lens_tables",
    "relate": "probe.stages.relate",
    "swap": "probe.stages.swap:text_swap",
    "patch": "probe.stages.patch",
    "steer": "probe.stages.steer:prompt_against_steering",
    "import_store": "probe.stages.importing",
    "Origin": "probe.stages.importing",
    "open_store": "probe.store",
    "Store": "probe.store",
    "Persona": "probe.values",
    "Case": "probe.values",
    "Task": "probe.values",
    "Option": "probe.values",
    "Condition": "probe.values",
    "GivenText": "probe.values",
    "Site": "probe.values",
    "Direction": "probe.values",
    "steering": "probe.values",
    "Recipe": "probe.values",
    "PerCase": "probe.values",
    "Gate": "probe.values",
    "Intervention": "probe.values",
    "Settings": "probe.behaviour",
    "Estimate": "probe.values",
    "ProbeError": "probe.values",
}

if TYPE_CHECKING:
    from probe.behaviour import Settings, agreement, rankings
    from probe.engines import Engine
    from probe.stages.analysis import Question
    from probe.stages.api import (
        causes,
        compare,
        metrics,
        noise_floor,
        run,
        shift,
        tables,
        variance_components,
        write_report,
    )
    from probe.stages.direction_files import load_directions, save_directions
    from probe.stages.directions import geometry_tables as geometry
    from probe.stages.directions import make_directions as directions
    from probe.stages.importing import Origin, import_store
    from probe.stages.lens import lens_tables as lens
    from probe.stages.patch import patch
    from probe.stages.policy import CapturePolicy
    from probe.stages.probes import probe_store as probes
    from probe.stages.relate import relate
    from probe.stages.steer import prompt_against_steering as steer
    from probe.stages.swap import text_swap as swap
    from probe.store import Store, open_store
    from probe.study import GivenSpec, LabelSpec, Study, new_study
    from probe.values import (
        Case,
        Condition,
        Direction,
        Estimate,
        Gate,
        GivenText,
        Intervention,
        Option,
        PerCase,
        Persona,
        ProbeError,
        Recipe,
        Site,
        Task,
        steering,
    )

__all__ = [
    "CapturePolicy",
    "Case",
    "Condition",
    "Direction",
    "Engine",
    "Estimate",
    "Gate",
    "GivenSpec",
    "GivenText",
    "Intervention",
    "LabelSpec",
    "Option",
    "Origin",
    "PerCase",
    "Persona",
    "ProbeError",
    "Question",
    "Recipe",
    "Settings",
    "Site",
    "Store",
    "Study",
    "Task",
    "__version__",
    "agreement",
    "causes",
    "compare",
    "directions",
    "geometry",
    "import_store",
    "lens",
    "load_directions",
    "metrics",
    "new_study",
    "noise_floor",
    "open_store",
    "patch",
    "probes",
    "rankings",
    "relate",
    "run",
    "save_directions",
    "shift",
    "steer",
    "steering",
    "swap",
    "tables",
    "variance_components",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'probe' has no attribute {name!r}")
    home, _, own = _HOMES[name].partition(":")
    return getattr(import_module(home), own or name)


def __dir__() -> list[str]:
    return sorted(__all__)
