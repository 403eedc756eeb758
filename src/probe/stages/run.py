"""A whole study: capture, then everything that is made of it. Knows the order; imports the analyses after the capture.

A second writer is so refused at once, before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from probe.stages.capture import capture
from probe.stages.places import figures_path
from probe.stages.policy import CaptureOutcome, CapturePolicy
from probe.study import Study
from probe.values import ProbeError


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
    from probe.stages.causal import run_causal
    from probe.stages.commands import tell_study

    # These run the model again, and what they give is told with the rest, in one report.
    more = run_causal(study, store=store, policy=policy) if outcome.committed else []
    tell_study(study, outcome, folder, more)
    return outcome


def run_studies(
    studies: Sequence[Study],
    *,
    store: str | Path | None = None,
    out: Path | None = None,
    fresh: bool = False,
    policy: CapturePolicy | None = None,
) -> int:
    """The studies of several models, one after the other, and what holds across them; the largest exit status.

    A model that cannot be run is told at the end, and the others are run all the same. ``out`` has a folder for each.

    Raises:
        ProbeError: one model alone, or all of them, cannot be run.
    """
    if len(studies) == 1:
        return run_study(studies[0], store=store, out=out, fresh=fresh, policy=policy).exit_status
    outcomes: list[CaptureOutcome] = []
    refused: list[str] = []
    for study in studies:
        try:
            folder = None if out is None else out / study.name
            outcomes.append(run_study(study, out=folder, fresh=fresh, policy=policy))
        except ProbeError as error:
            refused.append(f"{study.model.id}: {error}")
    from probe.stages.terminal import say

    for sentence in refused:
        say(sentence)
    if not outcomes:
        raise ProbeError(f"none of the {len(studies)} models could be run; see above")
    done = [one for one in outcomes if one.committed and one.share is None]
    if len(done) > 1:
        from probe.stages.across import named_models, write_across
        from probe.stages.analysis import Question
        from probe.store import open_store

        name = studies[0].name.rpartition(".")[0]
        stores = named_models([open_store(one.store, warn=False) for one in done])
        write_across(stores, Question(), figures_path(name, out), title=name)
    return max([1 if refused else 0, *(one.exit_status for one in outcomes)])
