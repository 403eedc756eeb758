"""Patching and steering as analyses of a study: what they capture beside it, and what they give. Knows both wings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from probe.stages.inside import Inside
from probe.stages.policy import CapturePolicy
from probe.stages.terminal import say
from probe.study import Study
from probe.values import ProbeError

Made = Callable[[Study, str | Path | None, CapturePolicy | None], Inside]


def run_causal(study: Study, *, store: str | Path | None = None, policy: CapturePolicy | None = None) -> list[Inside]:
    """What the study's ``patch`` and ``steer`` give, with what they ask for by default; what was captured stays.

    One that cannot be run says why, and the other stands.

    Raises:
        Interrupted: SIGINT or SIGTERM; what was committed stays.
    """
    found = []
    for name, made in CAUSAL.items():
        if name in study.analyses:
            try:
                found.append(made(study, store, policy))
            except ProbeError as error:
                say(f"{name}: {error}")
    return found


def _patch(study: Study, store: str | Path | None, policy: CapturePolicy | None) -> Inside:
    from probe.stages.patch import capture_patch, patch_inside

    return patch_inside(capture_patch(study, store=store, policy=policy))


def _steer(study: Study, store: str | Path | None, policy: CapturePolicy | None) -> Inside:
    from probe.report.steering import steering_figures
    from probe.stages.steer import prompt_against_steering
    from probe.stages.terminal_steer import show_steering

    tables = prompt_against_steering(study, store=store, policy=policy)
    return Inside(tables.tables, steering_figures(tables.tables, tables.prefix), lambda: show_steering(tables))


CAUSAL: Mapping[str, Made] = MappingProxyType({"patch": _patch, "steer": _steer})
"""The analyses that run the model again, in their order."""
