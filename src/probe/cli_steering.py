"""The commands ``probe steer`` and ``probe patch``. Knows options; imports nothing heavy until a command needs it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from probe.cli_options import Base, FiguresOption, StudyOptions, expanded
from probe.values import ProbeError

if TYPE_CHECKING:
    from probe.stages.patch_request import PatchRequest
    from probe.stages.steer_scene import SteerRequest

steering_app = typer.Typer()
"""Commands of the root: ``app.add_typer`` without a name takes them over as its own."""

# probe steer


@dataclass(frozen=True)
class SteerOptions:
    """What ``steer`` is asked beside the options of a run."""

    base: Base = None
    persona: Annotated[
        list[str] | None, typer.Option(metavar="PERSONA", help="Only this persona; repeatable.", show_default="all")
    ] = None
    site: Annotated[
        str, typer.Option(help="Where directions are fitted and labels read: prompt_end, or answer (its letter).")
    ] = "prompt_end"
    layers: Annotated[
        str | None, typer.Option(metavar="4,8,12", help="Residual points to choose from.", show_default="all captured")
    ] = None
    maker: Annotated[
        str, typer.Option(help="paired_mean, difference_in_means, whitened_difference or probe_weight.")
    ] = "paired_mean"
    random: Annotated[
        int, typer.Option(min=1, help="Random directions of each kind beside each persona's, by their labels.")
    ] = 99
    dose_cases: Annotated[int, typer.Option(min=2, help="Validation cases that settle layer and strength.")] = 64
    texts: Annotated[
        int, typer.Option(min=0, help="Held-out cases that the arms answer in writing; 0: labels alone.")
    ] = 100
    random_texts: Annotated[int, typer.Option(min=0, help="Random directions that answer in writing.")] = 20
    margin: Annotated[
        float, typer.Option(min=0, help="The change, in expected urgency, within which a run stands still.")
    ] = 0.10
    out: FiguresOption = None

    @property
    def request(self) -> SteerRequest:
        """The options in the words of the stage."""
        from probe.stages.steer_scene import SteerRequest

        return SteerRequest(
            base=self.base,
            personas=tuple(self.persona or ()),
            site=self.site,
            layers=_whole_numbers(self.layers),
            maker=self.maker,
            n_random=self.random,
            n_generated=self.random_texts,
            dose_cases=self.dose_cases,
            text_cases=self.texts,
            margin=self.margin,
        )


def _whole_numbers(text: str | None) -> tuple[int, ...]:
    """``4,8,12`` as numbers."""
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if wrong := [part for part in parts if not part.isdigit()]:
        raise ProbeError(f"--layers names residual points by whole numbers, as 4,8,12; found {wrong[0]!r}")
    return tuple(map(int, parts))


@steering_app.command()
@expanded
def steer(
    options: StudyOptions,
    asked: SteerOptions,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show parts, reads and answers; run nothing.")] = False,
) -> None:
    """Each persona prompted against steered at equal dose, with controls: what is recovered, and at what cost."""
    if dry_run:
        from probe.stages.steer_plan import plan_steer
        from probe.stages.terminal_steer import show_plan

        show_plan(plan_steer(options.load(), asked.request))
        return
    from probe.stages.steer import run_steer

    status = run_steer(
        options.load(), asked.request, store=options.store, fresh=options.fresh, policy=options.policy(), out=asked.out
    )
    sys.exit(status)


# probe patch


@dataclass(frozen=True)
class PatchOptions:
    """What ``patch`` is asked beside the options of a run."""

    base: Base = None
    persona: Annotated[
        list[str] | None,
        typer.Option(metavar="PERSONA", help="Only this persona's runs; repeatable.", show_default="all but the base"),
    ] = None
    reads: Annotated[str, typer.Option(metavar="A,B", help="The labels that are read.")] = "latent,stated"
    text: Annotated[str, typer.Option(metavar="base|own", help="Whose text is forced before its letter.")] = "base"
    cases: Annotated[int, typer.Option(min=0, help="So many cases, spread over the strata; 0: all.")] = 64
    points: Annotated[
        str | None,
        typer.Option(metavar="0,8,16", help="Residual points, and blocks of these numbers.", show_default="all"),
    ] = None
    streams: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="resid, keys_values, attn_out, mlp_out, head_out.", show_default="all it has"),
    ] = None
    neutral: Annotated[
        bool, typer.Option("--neutral/--no-neutral", help="Hold the persona's place with a neutral sentence.")
    ] = True
    noising: Annotated[
        bool, typer.Option("--noising/--no-noising", help="Also the base's states in the persona's run.")
    ] = True
    controls: Annotated[
        bool, typer.Option("--controls/--no-controls", help="The persona on another case, and a nonsense persona.")
    ] = True
    paths: Annotated[
        bool, typer.Option("--paths/--no-paths", help="By which tokens the effect comes to the one that is read.")
    ] = True
    outcome: Annotated[str | None, typer.Option(help="What is drawn and told.", show_default="expected_urgency")] = None
    out: FiguresOption = None

    @property
    def request(self) -> PatchRequest:
        """The options in the words of the stage."""
        from probe.stages.patch_request import PatchRequest

        return PatchRequest(
            personas=tuple(self.persona or ()),
            reads=_listed(self.reads) or (),
            text=self.text,
            cases=self.cases or None,
            points=None if self.points is None else _points(self.points),
            streams=_listed(self.streams),
            neutral=self.neutral,
            noising=self.noising,
            controls=self.controls,
            paths=self.paths,
        )


@steering_app.command()
@expanded
def patch(
    options: StudyOptions,
    asked: PatchOptions,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the sentences and the count; run nothing.")] = False,
) -> None:
    """Where a persona's effect lives: its activations put into the base run, by layer and tokens, and the other way.

    STUDY.yaml may also be the folder of finished parts (cache/NAME-patch), which is then analysed alone.
    """
    from probe.stages.patch import describe_patch, run_patch

    if options.study.is_dir():
        sys.exit(run_patch(options.study, asked.request, out=asked.out, outcome=asked.outcome))
    study = options.load()
    if asked.base is not None:
        from probe.stages.swap_texts import with_base

        study = with_base(study, asked.base)
    if dry_run:
        describe_patch(study, asked.request)
        return
    status = run_patch(
        study,
        asked.request,
        store=options.store,
        fresh=options.fresh,
        policy=options.policy(),
        out=asked.out,
        outcome=asked.outcome,
    )
    sys.exit(status)


def _listed(given: str | None) -> tuple[str, ...] | None:
    """Names separated by commas; None where none were given."""
    return None if given is None else tuple(name.strip() for name in given.split(",") if name.strip())


def _points(given: str) -> tuple[int, ...]:
    """Whole numbers separated by commas."""
    try:
        return tuple(int(name) for name in given.split(","))
    except ValueError:
        raise ProbeError(f"--points are whole numbers separated by commas, as 0,8,16; found {given!r}") from None
