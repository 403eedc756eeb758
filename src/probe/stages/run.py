"""A whole study: capture, then everything that is made of it. Knows the order; imports the analyses after the capture.

A second writer is so refused at once, before anything heavy is imported.
"""

from __future__ import annotations

from pathlib import Path

from probe.stages.capture import CaptureOutcome, CapturePolicy, capture
from probe.stages.places import figures_path
from probe.study import Study


def run_study(
    study: Study,
    *,
    store: str | Path | None = None,
    out: Path | None = None,
    fresh: bool = False,
    policy: CapturePolicy | None = None,
) -> CaptureOutcome:
    """Every stage that a study names, in their order; the captures resume.

    One of several writers only captures: the analyses belong to a run without a share, when all are done.
    """
    folder = figures_path(study.name, out)
    outcome = capture(study, store=store, fresh=fresh, policy=policy)
    if outcome.share is not None:
        from probe.stages.terminal import announce_capture

        announce_capture(outcome)
        return outcome
    from probe.stages.commands import tell_study

    tell_study(study, outcome, folder)
    return outcome
