"""The command ``probe``. Knows options and exit statuses; imports no torch until a command needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from probe.cli_inside import inside_app
from probe.cli_interop import export_app, import_app
from probe.cli_options import (
    Backend,
    Base,
    ColumnNames,
    EngineOptions,
    FiguresOption,
    Fresh,
    MetricsOptions,
    StoreOption,
    StudyFile,
    StudyOptions,
    Target,
    column_names,
    expanded,
)
from probe.cli_steering import steering_app
from probe.cli_store import store_app
from probe.values import ProbeError

app = typer.Typer(
    name="probe",
    help="Open a language model while it plays a persona: residual streams, label logits and the generated answer, "
    "recorded in one forward pass.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(store_app, name="store")
app.add_typer(export_app, name="export")
app.add_typer(import_app, name="import")
app.add_typer(inside_app)
app.add_typer(steering_app)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the first prompt, the plan and its costs; run nothing.")]
Hardware = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[,FIGURE=NUMBER...]",
        help="The device that --dry-run reckons with: a100, h100, h200 or cpu, and figures of your own.",
        show_default="that of this machine",
    ),
]


def main() -> None:
    """Run the command line; a refusal is one sentence on standard error and an exit status."""
    try:
        app()
    except ProbeError as error:
        typer.echo(f"probe: {error}", err=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        typer.echo("probe: interrupted; run the same command again to continue", err=True)
        sys.exit(130)


@app.command()
def demo(backend: Backend = None, fresh: Fresh = False) -> None:
    """The whole study on the embedded organism: a table here, figures and a report under figures/demo/."""
    from probe.stages.demo import demo_study
    from probe.stages.run import run_study

    sys.exit(run_study(demo_study(backend or "hf"), fresh=fresh).exit_status)


@app.command()
def new(directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder to write into.")]) -> None:
    """Write a commented study.yaml, cases.jsonl and personas.yaml that run as they are."""
    from probe.study import new_study

    written = new_study(directory)
    for path in written:
        typer.echo(f"wrote {path}")
    typer.echo(f"run it with: probe run {directory / 'study.yaml'}")


@app.command()
@expanded
def run(
    options: StudyOptions,
    engine: EngineOptions,
    out: FiguresOption = None,
    dry_run: DryRun = False,
    hardware: Hardware = None,
) -> None:
    """Every stage the study names, for each of its models; running it again resumes."""
    if hardware is not None and not dry_run:
        raise ProbeError("--hardware names the device that --dry-run reckons with, and chooses none; add --dry-run")
    studies = options.load_all()
    if dry_run:
        from probe.stages.dry_run import dry_run as show

        for study in studies:
            show(study, store=options.store, hardware=hardware, workers=engine.workers)
        return
    from probe.stages.run import run_studies

    policy = options.policy(engine.chosen)
    sys.exit(run_studies(studies, store=options.store, out=out, fresh=options.fresh, policy=policy))


@app.command()
@expanded
def capture(options: StudyOptions, engine: EngineOptions) -> None:
    """The forward passes alone: fill the store of a study, or of each of its models."""
    from probe.stages.capture import capture as capture_study

    policy, status = options.policy(engine.chosen), 0
    for study in options.load_all():
        outcome = capture_study(study, store=options.store, fresh=options.fresh, policy=policy)
        from probe.stages.terminal import announce_capture  # after the lock: it imports tables and figures

        announce_capture(outcome)
        status = max(status, outcome.exit_status)
    sys.exit(status)


@app.command()
def across(
    targets: Annotated[
        list[str], typer.Argument(metavar="TARGET...", help="A study of several models; or stores, or tables.")
    ],
    base: Base = None,
    out: FiguresOption = None,
) -> None:
    """One study in several models: each persona effect over models like these, sign flips, and whether ranks agree."""
    from probe.stages.across import run_across
    from probe.stages.analysis import Question

    run_across(targets, Question(base=base), out=out)


@app.command()
@expanded
def metrics(options: MetricsOptions) -> None:
    """Accuracy, consistency, calibration and risk of both labels, by persona and stratum, with comparisons."""
    from probe.stages.commands import run_metrics

    run_metrics(
        options.target,
        options.question,
        store=options.store,
        out=options.out,
        columns=column_names(options.columns),
        parser=options.parser,
    )


@app.command()
def rankings(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="case, persona, rank, perhaps judge, preference and confidence.")
    ],
    base: Base = None,
    columns: ColumnNames = None,
    out: FiguresOption = None,
) -> None:
    """Mean reciprocal ranks of judged answers, paired tests against a base, and how far the judges agree."""
    from probe.stages.commands import run_rankings

    run_rankings(table, base=base, out=out, columns=column_names(columns))


@app.command()
def parse(
    target: Annotated[
        Path, typer.Argument(metavar="STUDY|STORE|TEXT|-", help="A study, a store, a text file, or - for input.")
    ] = Path("-"),
    persona: Annotated[str | None, typer.Option(help="Only this persona's answers.")] = None,
    case: Annotated[str | None, typer.Option(help="Only the answers to this case.")] = None,
    status: Annotated[str | None, typer.Option(help="parsed, refused, unparsable, truncated or conflicting.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many answers are shown.")] = 10,
    parser: Annotated[
        str | None,
        typer.Option(metavar="FILE|builtin", help="Read with these settings.", show_default="the study's own"),
    ] = None,
    letters: Annotated[str, typer.Option(metavar="A,B,C", help="The letters of a plain text's options.")] = "A,B,C",
    store: StoreOption = None,
) -> None:
    """Show answers, the place that was read as their label, and the rule that decided."""
    from probe.stages.answers import show_answers, show_text

    if target.is_dir() or target.suffix in (".yaml", ".yml"):
        show_answers(target, store=store, persona=persona, case=case, status=status, limit=limit, parser=parser)
        return
    asked = [letter.strip() for letter in letters.split(",")]
    show_text(None if str(target) == "-" else target, letters=asked, parser=parser)


@app.command()
def report(target: Target, base: Base = None, store: StoreOption = None, out: FiguresOption = None) -> None:
    """Figures (SVG, PDF, PNG), tables (CSV) and one HTML page from what was captured."""
    from probe.stages.commands import run_report

    run_report(target, store=store, base=base, out=out)


@app.command()
def tokens(
    study: StudyFile,
    persona: Annotated[str | None, typer.Option(help="Only this persona's first cell.")] = None,
    case: Annotated[str | None, typer.Option(help="This case in place of the first.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one setting of the study; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object in place of tables.")] = False,
) -> None:
    """Exactly which tokens each site and label of a study reads, for its model's tokenizer; loads no weights."""
    from probe.stages.tokens import show_tokens
    from probe.study import Study

    sys.exit(show_tokens(Study.load(study, overrides=set_ or []), persona=persona, case=case, as_json=as_json))


@app.command()
def doctor() -> None:
    """Versions, devices, memory, disk and environment."""
    from probe.stages.inspection import describe_machine

    describe_machine()


if __name__ == "__main__":
    main()
