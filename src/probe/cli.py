"""The command ``probe``. Knows options and exit statuses; imports no torch until a command needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probe.values import ProbeError

if TYPE_CHECKING:
    from probe.study import Study

app = typer.Typer(
    name="probe",
    help="Open a language model while it plays a persona: residual streams, label logits and the generated answer, "
    "recorded in one forward pass.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
store_app = typer.Typer(no_args_is_help=True, help="Look into a store of captures.")
app.add_typer(store_app, name="store")

StudyFile = Annotated[Path, typer.Argument(help="A study file (YAML).", metavar="STUDY.yaml")]
StoreOption = Annotated[
    Path | None, typer.Option("--store", help="Where the captures lie.", show_default="cache/<study name>")
]
FiguresOption = Annotated[
    Path | None, typer.Option("--out", help="Where tables, figures and report go.", show_default="figures/<name>")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only this many cases, spread over the strata.")]
BatchSize = Annotated[str | None, typer.Option(help="Prompts per forward pass: auto or a number.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]
BackendOption = Annotated[str | None, typer.Option(help="How the model is read: hf.")]
Engine = Annotated[str, typer.Option(help="Where shards run: local.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of the split into fitting and judging cases.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one setting of the study; repeatable.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Remove what the store holds and start again.")]
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
def demo(fresh: Fresh = False) -> None:
    """The whole study on the embedded organism: a table here, figures and a report under figures/demo/."""
    from probe.stages.demo import demo_study
    from probe.stages.run import run_study

    sys.exit(run_study(demo_study(), fresh=fresh).exit_status)


@app.command()
def new(directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder to write into.")]) -> None:
    """Write a commented study.yaml, cases.jsonl and personas.yaml that run as they are."""
    from probe.study import new_study

    written = new_study(directory)
    for path in written:
        typer.echo(f"wrote {path}")
    typer.echo(f"run it with: probe run {directory / 'study.yaml'}")


@app.command()
def run(
    study: StudyFile,
    limit: Limit = None,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    backend: BackendOption = None,
    engine: Engine = "local",
    seed: Seed = None,
    set_: Set = None,
    store: StoreOption = None,
    out: FiguresOption = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
) -> None:
    """Every stage the study names; running it again resumes."""
    loaded = _load(study, limit, batch_size, device, dtype, backend, engine, seed, set_)
    if dry_run:
        from probe.stages.dry_run import dry_run as show

        show(loaded, store=store)
        return
    from probe.stages.run import run_study

    sys.exit(run_study(loaded, store=store, out=out, fresh=fresh).exit_status)


@app.command()
def capture(
    study: StudyFile,
    limit: Limit = None,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    backend: BackendOption = None,
    engine: Engine = "local",
    seed: Seed = None,
    set_: Set = None,
    store: StoreOption = None,
    fresh: Fresh = False,
) -> None:
    """The forward passes alone: fill the store of a study."""
    from probe.stages.capture import capture as capture_study

    loaded = _load(study, limit, batch_size, device, dtype, backend, engine, seed, set_)
    outcome = capture_study(loaded, store=store, fresh=fresh)
    from probe.stages.terminal import announce_capture  # after the lock: it imports tables and figures

    announce_capture(outcome)
    sys.exit(outcome.exit_status)


Target = Annotated[Path, typer.Argument(metavar="STUDY|STORE", help="A study file, or the folder of a store.")]
Base = Annotated[str | None, typer.Option(help="The persona that the others are compared with.")]


@app.command()
def metrics(
    target: Annotated[
        Path,
        typer.Argument(metavar="STUDY|STORE|TABLE", help="A study, a store, or predictions (CSV, JSONL, Parquet)."),
    ],
    base: Base = None,
    options: Annotated[str | None, typer.Option(metavar="A,B,C", help="The labels in rising urgency.")] = None,
    high_risk: Annotated[str | None, typer.Option(metavar="LABEL", help="The high-urgency label.")] = None,
    bins: Annotated[int, typer.Option(min=1, help="Equal-width bins of the ECE.")] = 10,
    cut: Annotated[
        str, typer.Option(metavar="CUT", help="What over- and under-triage are: high-vs-rest, strict or ordinal.")
    ] = "high-vs-rest",
    store: StoreOption = None,
    out: FiguresOption = None,
) -> None:
    """Accuracy, consistency, calibration and risk of both labels, by persona and stratum."""
    from probe.behaviour import CUTS, Settings
    from probe.stages.commands import run_metrics

    if cut not in CUTS:
        raise ProbeError(f"the cut must be one of {', '.join(CUTS)}, found {cut!r}")
    run_metrics(
        target,
        store=store,
        base=base,
        out=out,
        options=None if options is None else [label.strip() for label in options.split(",")],
        high_risk=high_risk,
        settings=Settings(n_bins=bins, cut=CUTS[cut]),
    )


@app.command()
def directions(target: Target, base: Base = None, store: StoreOption = None, out: FiguresOption = None) -> None:
    """The size of every persona's residual shift, by residual point and position."""
    from probe.stages.commands import run_directions

    run_directions(target, store=store, base=base, out=out)


@app.command()
def report(target: Target, base: Base = None, store: StoreOption = None, out: FiguresOption = None) -> None:
    """Figures (PNG, SVG), tables (CSV) and one HTML page from what was captured."""
    from probe.stages.commands import run_report

    run_report(target, store=store, base=base, out=out)


@store_app.command("ls")
def store_ls(path: Annotated[Path, typer.Argument(metavar="STORE")]) -> None:
    """What a store holds."""
    from probe.stages.inspection import describe_store

    sys.exit(describe_store(path))


@store_app.command("verify")
def store_verify(path: Annotated[Path, typer.Argument(metavar="STORE")]) -> None:
    """Read every byte and compare it with its checksum: exit 0 sound, 1 damaged, 3 incomplete."""
    from probe.stages.inspection import verify_store

    sys.exit(verify_store(path))


@app.command()
def doctor() -> None:
    """Versions, devices, memory, disk and environment."""
    from probe.stages.inspection import describe_machine

    describe_machine()


def _load(
    path: Path,
    limit: int | None,
    batch_size: str | None,
    device: str | None,
    dtype: str | None,
    backend: str | None,
    engine: str,
    seed: int | None,
    overrides: list[str] | None,
) -> Study:
    """The study with the command line's options as overrides; ``--set`` comes last and wins."""
    from probe.study import Study

    if engine != "local":
        raise ProbeError(f"engine {engine!r} is not part of this version; it has: local")
    named = {
        "capture.batch_size": batch_size,
        "model.device": device,
        "model.dtype": dtype,
        "model.backend": backend,
        "split_seed": seed,
    }
    settings = [f"{key}={value}" for key, value in named.items() if value is not None]
    return Study.load(path, overrides=[*settings, *(overrides or [])], limit=limit)


if __name__ == "__main__":
    main()
