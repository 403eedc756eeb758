"""The commands that look inside a store: directions, swap, relate, probes, lens. Knows options only."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from probe.cli_options import (
    Base,
    ColumnNames,
    EngineOptions,
    FiguresOption,
    StoreOption,
    StudyOptions,
    SwapOptions,
    Target,
    column_names,
    expanded,
)

inside_app = typer.Typer()
"""Commands of the root: ``app.add_typer`` without a name takes them over as its own."""


@inside_app.command()
def directions(target: Target, base: Base = None, store: StoreOption = None, out: FiguresOption = None) -> None:
    """Where every persona moves the residual stream, layer by layer: size, likeness, stability; and its directions."""
    from probe.stages.commands import run_directions

    run_directions(target, store=store, base=base, out=out)


@inside_app.command()
@expanded
def swap(options: StudyOptions, engine: EngineOptions, asked: SwapOptions) -> None:
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
        policy=options.policy(engine.chosen),
        margin=asked.margin,
        out=asked.out,
    )
    sys.exit(status)


@inside_app.command()
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


@inside_app.command()
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


@inside_app.command()
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
