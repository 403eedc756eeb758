"""What a study would take and what of it breaks first, for a terminal. Every line says how its figures are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import disk_usage

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from probe.report.numbers import plural
from probe.stages.costs import free_bytes
from probe.stages.hardware import Hardware, device_here, figures, hardware_named, measured_cpu
from probe.stages.limits import Means, Need, duration, needs, size, stored_bytes
from probe.stages.outlines import Outline, RowBytes, moments_bytes, outline_of, row_bytes
from probe.stages.pilots import Pilot, pilot_of
from probe.stages.preparation import Preparation
from probe.stages.running import threads_for
from probe.stages.throughput import RowSeconds, row_seconds

_SHOWN = 4


def show_size(
    out: Console, preparation: Preparation, path: str | Path, *, hardware: str | None = None, workers: int = 1
) -> None:
    """Bytes, time and shards of a study that is prepared, on a device by name or the one of this machine."""
    pilot = pilot_of(path)
    outline = outline_of(preparation, None if pilot is None else pilot.new)
    device = _device(preparation, outline, hardware)
    row, took = row_bytes(outline), None if device is None else row_seconds(outline, device)
    answers = f"answers of {outline.tokens.new:.3g} tokens"
    answers += " (measured)" if pilot else " (the most there may be; a few rows in the store would tell)"
    table = Table("what it takes", "", show_header=True)
    table.add_row("a row on disk", _row_text(row))
    table.add_row("the store", _store_text(outline, row))
    table.add_row(
        "tokens of a row", f"{outline.tokens.fed:.0f} of {outline.tokens.prompt:.0f} fed (counted), {answers}"
    )
    if pilot:
        table.add_row("time, measured", _pilot_text(pilot, outline, workers))
    if device is None or took is None:
        table.add_row("time, modelled", "no figures of this device; --hardware names one, or gives them")
    else:
        table.add_row("time, modelled", _time_text(took, outline, device, workers))
        table.add_row("by the rates", escape(figures(device)))
    out.print(table)
    folder = path if Path(path).exists() else Path.cwd()
    means = Means(disk_usage(folder).free, free_bytes(), workers)
    show_needs(out, needs(outline, row, took, device, means))


def show_needs(out: Console, found: Sequence[Need]) -> None:
    """The scarcest quantities beside their limits, and what helps where one is not enough."""
    breaking = [need for need in found if need.breaks]
    title = f"breaks first: {breaking[0].what}" if breaking else "nothing breaks; nearest to its limit"
    table = Table(title, "needed", "there is", "share", "known as", *(["what helps"] if breaking else []))
    for need in found[: max(len(breaking), _SHOWN)]:
        cells = [need.what, need.needed, need.limit, f"{need.share:.0%}", need.basis]
        table.add_row(*cells, *([escape(need.remedy)] if need.breaks else []))
    out.print(table)


def _device(preparation: Preparation, outline: Outline, named: str | None) -> Hardware | None:
    resolved = preparation.resolved

    def here() -> Hardware:
        fed = max(round(outline.tokens.group * outline.tokens.fed), 1)
        with threads_for(resolved):
            return measured_cpu(outline.batch, outline.footprint.per_token, fed=fed, dtype=resolved.compute_dtype)

    if named is not None:
        return hardware_named(named, here)
    if resolved.device == "cpu":
        return here()
    if resolved.device != "cuda":
        return None
    import torch

    found = device_here(resolved.device, torch.cuda.get_device_name() if torch.cuda.is_available() else "")
    model = resolved.study.model
    together = model.tensor_parallel or (torch.cuda.device_count() if model.device_map else 1)
    return None if found is None else replace(found, devices=max(together, 1))


def _row_text(row: RowBytes) -> str:
    return (
        f"~{size(row.stored)}: activations {size(row.activations)}, labels {size(row.labels)}, tokens and text "
        f"{size(row.tokens)}, checksums and table {size(row.beside)}; {size(row.plan)} in the plan (counted)"
    )


def _store_text(outline: Outline, row: RowBytes) -> str:
    text = f"~{size(stored_bytes(outline, row))} in {plural(outline.shards, 'shard')} (counted)"
    if outline.moments:
        return f"{text}, {plural(outline.sets, 'set')} of rows as moments"
    kept = stored_bytes(outline, row) - outline.rows * row.activations + moments_bytes(outline)
    return f"{text}; with capture.keep: moments ~{size(kept)} ({plural(outline.sets, 'set')} of rows)"


def _pilot_text(pilot: Pilot, outline: Outline, workers: int) -> str:
    left = max(outline.rows - pilot.rows, 0)
    rest = duration(left * pilot.row_seconds / workers)
    where = f"{', '.join(pilot.devices)}, batches of {', '.join(map(str, pilot.batches)) or 'unknown size'}"
    return (
        f"{duration(pilot.row_seconds)} a row over {plural(pilot.rows, 'row')} of this store ({where}); "
        f"{left:,} left: ~{rest} on {plural(workers, 'worker')} like it"
    )


def _time_text(took: RowSeconds, outline: Outline, device: Hardware, workers: int) -> str:
    whole = outline.rows * took.whole
    text = f"~{duration(whole / workers)} on {plural(workers, 'worker')} with {device.devices:g} x {device.name}"
    text += f" ({whole * device.devices / 3600:.3g} device hours): {duration(took.prompt)} a row for the prompt"
    if took.answer:
        waits = "computing" if took.bound == "arithmetic" else f"waiting for {took.bound}"
        text += f", {duration(took.answer)} for the answer ({waits})"
    return text
