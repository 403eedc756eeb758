"""The commands ``probe store ...``. Knows options and exit statuses; imports nothing heavy until a command needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from probe.values import ProbeError

store_app = typer.Typer(no_args_is_help=True, help="Look into a store of captures, check it, bring it in and out.")


StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="The folder of a store, or its URL.")]


@store_app.command("ls")
def store_ls(path: StoreArgument) -> None:
    """What a store holds."""
    from probe.stages.inspection import describe_store

    sys.exit(describe_store(path))


@store_app.command("verify")
def store_verify(
    path: StoreArgument,
    quick: Annotated[bool, typer.Option("--quick", help="Size, header and name of each shard only.")] = False,
    crc: Annotated[bool, typer.Option("--crc", help="The checksum of every row.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Every hash too (the default).")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
) -> None:
    """Compare what is there with its checksums: exit 0 sound, 1 damaged, 3 incomplete."""
    from probe.stages.store_care import verify_store

    if quick + crc + full > 1:
        raise ProbeError("verify takes one of --quick, --crc and --full")
    sys.exit(verify_store(path, "quick" if quick else "crc" if crc else "full", as_json=json))


@store_app.command("repair")
def store_repair(path: StoreArgument) -> None:
    """Move what is damaged to quarantine/ (nothing is deleted); the same study then captures exactly those rows."""
    from probe.stages.store_care import repair_store

    sys.exit(repair_store(path))


@store_app.command("compact")
def store_compact(path: StoreArgument) -> None:
    """Drop rows of earlier texts and rows that stand twice; the old shards go to quarantine/."""
    from probe.stages.store_care import compact_store

    sys.exit(compact_store(path))


@store_app.command("seal")
def store_seal(
    path: StoreArgument,
    incomplete: Annotated[bool, typer.Option("--incomplete", help="Though rows are pending or failed.")] = False,
) -> None:
    """Declare a store finished: a lost shard is then an error, and nothing more is written into it."""
    from probe.stages.store_care import seal

    sys.exit(seal(path, incomplete=incomplete))


@store_app.command("unseal")
def store_unseal(path: StoreArgument) -> None:
    """Take the seal off, so that more can be captured."""
    from probe.stages.store_care import break_seal

    sys.exit(break_seal(path))


@store_app.command("export")
def store_export(
    path: StoreArgument,
    out: Annotated[Path, typer.Option("--out", help="Where it goes; nothing that exists is written over.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="numpy, zarr, xarray, parquet, datasets or csv.")],
    persona: Annotated[list[str] | None, typer.Option("--persona", help="Only this persona; repeatable.")] = None,
    layer: Annotated[list[int] | None, typer.Option("--layer", help="Only this residual point; repeatable.")] = None,
    position: Annotated[list[str] | None, typer.Option("--position", help="Only this position; repeatable.")] = None,
    where: Annotated[str | None, typer.Option("--where", help="A condition, as in 'margin > 2'.")] = None,
) -> None:
    """Write rows and residuals for another tool; the store stays as it is."""
    from probe.stages.store_files import Wanted, export_store

    wanted = Wanted(tuple(persona or ()), where, tuple(layer or ()), tuple(position or ()))
    export_store(path, to, out, wanted)


@store_app.command("import")
def store_import(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="One line per cell: CSV, JSONL or Parquet.")],
    store: Annotated[str, typer.Option("--store", metavar="OUT", help="The store that is made: a folder or a URL.")],
    model: Annotated[str, typer.Option("--model", metavar="ID", help="The model that was captured; recorded as told.")],
    activations: Annotated[
        list[Path] | None,
        typer.Option("--activations", metavar="PATH", help="A folder, or a .npy, .safetensors or .pt; repeatable."),
    ] = None,
    name_map: Annotated[
        Path | None, typer.Option("--map", metavar="FILE", help="YAML or JSON: the name of each array to its file.")
    ] = None,
    rows: Annotated[
        Path | None, typer.Option("--rows", metavar="FILE", help="A table that says which row each entry is.")
    ] = None,
    options: Annotated[str | None, typer.Option(metavar="A,B,C", help="The labels in rising urgency.")] = None,
    high_risk: Annotated[str | None, typer.Option(metavar="LABEL", help="The high-urgency label.")] = None,
    to_float32: Annotated[bool, typer.Option("--to-float32", help="Convert float16 and float64 to float32.")] = False,
) -> None:
    """Make a store of activations that another tool captured; every analysis then works on it."""
    from probe.stages.importing import Origin
    from probe.stages.store_files import import_files

    labels = tuple(label.strip() for label in options.split(",")) if options else ()
    origin = Origin(model, labels, high_risk, to_float32)
    import_files(table, activations or [], store, origin, name_map=name_map, rows=rows)
