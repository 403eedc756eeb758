"""The command ``probe``. Knows options and exit statuses; imports no torch until a command needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from probe.cli_options import (
    Backend,
    Base,
    ColumnNames,
    FiguresOption,
    Fresh,
    MetricsOptions,
    StoreOption,
    StudyFile,
    StudyOptions,
    SwapOptions,
    column_names,
    expanded,
)
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

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the first prompt, the plan and its costs; run nothing.")]


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
def run(options: StudyOptions, out: FiguresOption = None, dry_run: DryRun = False) -> None:
    """Every stage the study names; running it again resumes."""
    loaded = options.load()
    if dry_run:
        from probe.stages.dry_run import dry_run as show

        show(loaded, store=options.store)
        return
    from probe.stages.run import run_study

    outcome = run_study(loaded, store=options.store, out=out, fresh=options.fresh, policy=options.policy)
    sys.exit(outcome.exit_status)


@app.command()
@expanded
def capture(options: StudyOptions) -> None:
    """The forward passes alone: fill the store of a study."""
    from probe.stages.capture import capture as capture_study

    outcome = capture_study(options.load(), store=options.store, fresh=options.fresh, policy=options.policy)
    from probe.stages.terminal import announce_capture  # after the lock: it imports tables and figures

    announce_capture(outcome)
    sys.exit(outcome.exit_status)


Target = Annotated[str, typer.Argument(metavar="STUDY|STORE", help="A study file, or the folder or URL of a store.")]


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
def directions(target: Target, base: Base = None, store: StoreOption = None, out: FiguresOption = None) -> None:
    """Where every persona moves the residual stream, layer by layer: size, likeness, stability; and its directions."""
    from probe.stages.commands import run_directions

    run_directions(target, store=store, base=base, out=out)


@app.command()
@expanded
def swap(options: StudyOptions, asked: SwapOptions) -> None:
    """Every persona's text under the other's prompt: does a persona act through its text, or at the answer itself?

    STUDY.yaml may also be the folder of a store of such reads (cache/NAME-swap), which is then analysed alone.
    """
    from probe.stages.swap import run_swap

    target = options.study if options.study.is_dir() else options.load()
    status = run_swap(
        target,
        asked.request,
        store=options.store,
        fresh=options.fresh,
        policy=options.policy,
        margin=asked.margin,
        out=asked.out,
    )
    sys.exit(status)


@app.command()
def relate(
    target: Annotated[
        str,
        typer.Argument(metavar="STUDY|STORE|TABLE", help="A study, a store, or predictions (CSV, JSONL, Parquet)."),
    ],
    base: Base = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PERSONA", help="Whose wordings are the neutral base; repeatable.", show_default="role control"
        ),
    ] = None,
    delta: Annotated[float, typer.Option(help="Margin of equivalence, in units of the outcome.")] = 0.1,
    outcome: Annotated[
        str, typer.Option(help="What is judged: expected_urgency, probability_high or accuracy.")
    ] = "expected_urgency",
    permutations: Annotated[int, typer.Option(min=19, help="Permutations behind each p.")] = 199,
    options: Annotated[str | None, typer.Option(metavar="A,B,C", help="The labels in rising urgency.")] = None,
    high_risk: Annotated[str | None, typer.Option(metavar="LABEL", help="The high-urgency label.")] = None,
    site: Annotated[str, typer.Option(metavar="SITE", help="Where the latent label is read.")] = "prompt_end",
    columns: ColumnNames = None,
    store: StoreOption = None,
    out: FiguresOption = None,
) -> None:
    """Where each persona's effect is visible, in the latent label or only in the stated one: a verdict for each."""
    from probe.stages.analysis import Question
    from probe.stages.relate import Asked, run_relate

    question = Question(
        base=base,
        controls=tuple(control) if control else None,
        options=None if options is None else tuple(label.strip() for label in options.split(",")),
        high_risk=high_risk,
        site=site,
    )
    asked = Asked(delta, outcome, permutations)
    run_relate(target, question, asked, store=store, out=out, columns=column_names(columns))


@app.command()
def probes(
    target: Target,
    targets: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="persona, reference, urgent, latent, stated, disagreement, correct, ..."),
    ] = None,
    positions: Annotated[str | None, typer.Option(metavar="A,B", help="Only these positions.")] = None,
    layers: Annotated[str | None, typer.Option(metavar="0,8,16", help="Only these residual points.")] = None,
    permutations: Annotated[int, typer.Option(min=0, help="Permutations behind each p; 0: no test.")] = 200,
    folds: Annotated[int, typer.Option(min=3, help="Folds of case families.")] = 5,
    families_move: Annotated[
        bool, typer.Option("--families-move", help="Permutations move whole families (of near copies), not cases.")
    ] = False,
    logistic: Annotated[
        bool, typer.Option("--logistic", help="Logistic probes beside the ridge: slow, without permutations.")
    ] = False,
    store: StoreOption = None,
    out: FiguresOption = None,
) -> None:
    """What a linear probe reads at every layer and position, beside its null, controls and plain baselines."""
    from probe.stages.probes import asked_of, run_probes

    asked = asked_of(
        targets,
        positions,
        layers,
        permutations=permutations,
        folds=folds,
        families_move=families_move,
        logistic=logistic,
    )
    run_probes(target, asked, store=store, out=out)


@app.command()
def lens(
    target: Target,
    base: Base = None,
    content_free: Annotated[
        list[str] | None,
        typer.Option(metavar="CASE", help="A case whose input says nothing; repeatable.", show_default="N/A, [MASK]"),
    ] = None,
    pictures: Annotated[bool, typer.Option(help="Also what probes can read of each persona, in a picture.")] = True,
    store: StoreOption = None,
    out: FiguresOption = None,
) -> None:
    """Label contrasts at every layer through the model's own unembedding, and what carries each persona's shift."""
    from probe.stages.lens import run_lens

    run_lens(target, store=store, base=base, content_free=content_free or (), pictures=pictures, out=out)


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
