"""The commands ``probe export ...`` and ``probe import ...``. Knows options; imports nothing heavy until it must."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

export_app = typer.Typer(no_args_is_help=True, help="Vectors and results out to other tools.")
import_app = typer.Typer(no_args_is_help=True, help="Vectors of other tools, in.")

ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="ID", help="The model of the vectors, where the file does not name it.")
]
DepthOption = Annotated[
    int | None, typer.Option("--n-layers", min=1, help="How many blocks that model has, where it is not at hand.")
]


@export_app.command("vector")
def export_vector(
    directions: Annotated[Path, typer.Argument(metavar="DIRECTIONS", help="A file of `probe directions`.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="gguf, persona-vectors, lm-eval or safetensors.")],
    out: Annotated[Path, typer.Option("--out", help="The file that is written; nothing is written over.")],
    persona: Annotated[str | None, typer.Option(help="Whose directions.")] = None,
    base: Annotated[str | None, typer.Option(help="Against which base.")] = None,
    position: Annotated[str | None, typer.Option(help="Fitted at which position.")] = None,
    maker: Annotated[str | None, typer.Option(help="Made by which maker.")] = None,
    layer: Annotated[list[int] | None, typer.Option("--layer", help="Only this residual point; repeatable.")] = None,
    coefficient: Annotated[float, typer.Option(help="Strength that is kept in the file (lm-eval only).")] = 1.0,
    model: ModelOption = None,
    n_layers: DepthOption = None,
    model_hint: Annotated[
        str | None, typer.Option(help="What a GGUF file calls its model; no loader checks it.", show_default="model id")
    ] = None,
) -> None:
    """One persona's directions as a file that another tool adds to the residual stream."""
    from probe.stages.vectors import Chosen, ForModel
    from probe.stages.vectors import export_vector as export

    chosen = Chosen(persona, base, position, maker, tuple(layer or ()))
    export(directions, to, out, chosen, ForModel(model, n_layers), coefficient=coefficient, model_hint=model_hint)


@import_app.command("vector")
def import_vector(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .gguf, .pt or .safetensors file of vectors.")],
    out: Annotated[Path, typer.Option("--out", help="The file of directions that is written, never over another.")],
    written_for: Annotated[
        str | None, typer.Option("--from", metavar="FORMAT", help="Its format.", show_default="told from the file")
    ] = None,
    persona: Annotated[
        str | None, typer.Option(help="What the direction is called.", show_default="as the file says, or its name")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Against what.", show_default="as the file says")] = None,
    position: Annotated[
        str | None, typer.Option(help="The position it was fitted at.", show_default="as the file says")
    ] = None,
    model: ModelOption = None,
    n_layers: DepthOption = None,
) -> None:
    """Another tool's vectors as a file of directions, each at the residual point where that tool adds it."""
    from probe.stages.vectors import ForModel
    from probe.stages.vectors import import_vector as read_in

    read_in(
        file,
        out,
        ForModel(model, n_layers),
        written_for=written_for,
        persona=persona,
        base=base,
        position=position,
    )


@export_app.command("results")
def export_results(
    target: Annotated[str, typer.Argument(metavar="STUDY|STORE", help="A study file, or a store.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="inspect or lm-eval.")],
    out: Annotated[Path, typer.Option("--out", help="The folder that is written; nothing is written over.")],
    persona: Annotated[list[str] | None, typer.Option("--persona", help="Only this persona; repeatable.")] = None,
    where: Annotated[str | None, typer.Option("--where", help="A condition, as in 'margin > 2'.")] = None,
    store: Annotated[str | None, typer.Option(help="Where a study's captures lie.", show_default="cache/NAME")] = None,
) -> None:
    """Answers, labels and scores as Inspect eval logs, or as lm-eval's results and samples."""
    from probe.stages.results import export_results as export

    export(target, to, out, personas=persona or (), where=where, store=store)
