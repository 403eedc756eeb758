"""What a run would do and cost, before it does it. Renders prompts; loads no weights and writes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from probe.behaviour.power import detectable_difference
from probe.capture.planning import Job
from probe.report.numbers import plural
from probe.stages.batch_size import with_open_batch
from probe.stages.costs import held_bytes, memory_bytes, tensor_bytes
from probe.stages.places import store_path
from probe.stages.preparation import Preparation, prepare
from probe.stages.recipes import optimism, recipes_of
from probe.stages.resolution import Resolved
from probe.stages.terminal import console, say
from probe.stages.terminal_sizes import show_size
from probe.stages.token_reads import cell_tokens, show_cell_tokens
from probe.study import Study
from probe.values import ALL, Recipe

_ASSUMED_DISCORDANT = 0.2
_LISTED = 12


def dry_run(
    study: Study, *, store: str | Path | None = None, hardware: str | None = None, workers: int | None = None
) -> None:
    """Print the first prompts with the tokens that are read, the plan with its bytes, what takes how long and breaks
    first, and what this n can show.

    ``hardware`` names a device, by default that of this machine (:func:`probe.stages.hardware.hardware_named`), of
    which each of ``workers`` has one.

    Raises:
        ProbeError: the study cannot be prepared, or there is no such device.
    """
    preparation = with_open_batch(prepare(study), store_path(study, store))
    out = console()
    jobs = preparation.cells.jobs
    told = next((job for job in jobs if job.prompt.persona_end is not None), None)
    if jobs:
        _show_prompt(out, preparation, jobs[0], "first prompt")
    if told is not None and told is not jobs[0]:
        _show_prompt(out, preparation, told, "first prompt with a persona")
    _show_costs(out, preparation, store_path(study, store))
    show_size(out, preparation, store_path(study, store), hardware=hardware, workers=workers or 1)
    if warning := optimism(preparation.resolved.study):
        say(warning)
    _show_power(study)
    for refusal in preparation.cells.refusals[:5]:
        cell = refusal.cell
        say(f"would fail: {cell.persona}/{cell.case}: {refusal.kind}: {refusal.reason}")


def _show_prompt(out: Console, preparation: Preparation, job: Job, title: str) -> None:
    """The rendered prompt of a cell, then the tokens that its sites and labels read."""
    cell = job.row.cell
    out.rule(f"{title}: {escape(cell.persona)} / {escape(cell.case)} / {cell.condition.name}")
    say(job.prompt.text)  # never wrapped: a line break here is one that the model reads
    out.rule("tokens that are read")
    resolved = preparation.resolved
    show_cell_tokens(out, cell_tokens(resolved.study, resolved.builder, job))


def _show_costs(out: Console, preparation: Preparation, path: str | Path) -> None:
    resolved = preparation.resolved
    study, shape = resolved.study, resolved.shape
    lengths = [len(job.prompt.token_ids) for job in preparation.cells.jobs] or [0]
    longest = max(lengths) + study.generation.max_new_tokens
    if shape.context is not None:
        longest = min(longest, shape.context)
    folder = path if Path(path).exists() else Path.cwd()
    table = Table("what a run would do", "", show_header=True)
    table.add_row("model", f"{escape(study.model.id)} ({shape.n_layers} blocks, width {shape.d_model})")
    table.add_row("persona's place", resolved.placement)
    table.add_row(
        "cells",
        f"{len(preparation.cells.rows):,} in {plural(preparation.n_shards, 'shard')}, "
        f"batches of {resolved.batch_size} at most",
    )
    if arms := recipes_of(study):
        edited = sum(bool(row.cell.condition.intervention) for row in preparation.cells.rows)
        table.add_row("interventions", f"{plural(len(arms), 'arm')} in {edited:,} of the cells: {_arms_text(arms)}")
    table.add_row("prompt tokens", f"{min(lengths)} to {max(lengths)}; at most {longest} with the answer")
    table.add_row(
        "tensors on disk",
        f"{_tensors_text(resolved, preparation.cells.jobs)}, less where a site is absent; "
        f"free {shutil.disk_usage(folder).free / 2**30:.1f} GiB",
    )
    table.add_row("memory at the peak", _memory_text(preparation))
    table.add_row("store", str(path))
    out.print(table)


def _tensors_text(resolved: Resolved, jobs: Sequence[Job]) -> str:
    """What the activations take, and of sums what the rows would take instead."""
    needed = f"{_mib(tensor_bytes(resolved, jobs))}"
    if resolved.study.capture.keep == "rows":
        return f"{needed} ({resolved.stored_dtype})"
    return f"{needed} in sums (every row: {_mib(len(jobs) * resolved.row_bytes)} in {resolved.stored_dtype})"


def _arms_text(arms: Sequence[Recipe]) -> str:
    """The first few by name, each with where it acts."""
    told = []
    for arm in arms[:_LISTED]:
        places = dict.fromkeys((edit.operator, edit.position) for edit in arm.edits)
        layers = sorted({edit.layer for edit in arm.edits})
        acts = ", ".join(f"{operator} at {position}" for operator, position in places)
        told.append(f"{arm.name} ({acts}, layer {', '.join(map(str, layers))})")
    return escape("; ".join(told)) + ("; ..." if len(arms) > _LISTED else "")


def _memory_text(preparation: Preparation) -> str:
    """The peak on the device that computes, and what it is made of."""
    resolved, jobs = preparation.resolved, preparation.cells.jobs
    per_shard = -(-len(preparation.cells.rows) // max(preparation.n_shards, 1))
    needed = memory_bytes(resolved, jobs, per_shard, process=held_bytes())
    parts = f"weights {_mib(needed.weights)} ({resolved.compute_dtype}), keys and values {_mib(needed.cache)}"
    parts += f", a step {_mib(needed.working)}"
    if needed.on_cpu:
        parts += f", rows not yet written {_mib(needed.records)}, libraries and plan {_mib(needed.process)}"
    states = "; the states of its recurrent layers are not counted" if resolved.footprint.recurrent else ""
    return (
        f"~{_mib(needed.on_device)} on the {resolved.device}, if every answer takes all "
        f"{resolved.study.generation.max_new_tokens} tokens: {parts}{states}"
    )


def _mib(count: int) -> str:
    """In MiB, with three digits of a small number."""
    mib = count / 2**20
    return f"{mib:.1f} MiB" if mib >= 10 else f"{mib:.3g} MiB"


def _show_power(study: Study) -> None:
    """The smallest difference between two personas that would be found four times in five."""
    strata = [(stratum, sum(case.stratum == stratum for case in study.cases)) for stratum in study.strata]
    if len(strata) > 1:
        strata.append((ALL, len(study.cases)))
    for stratum, n in strata:
        found = detectable_difference(n, discordant=_ASSUMED_DISCORDANT)
        shows = "no difference" if found is None else f"a difference of {100 * found:.1f} percentage points"
        name = stratum or (ALL if len(strata) == 1 else "no stratum")
        say(
            f"{name}: {plural(n, 'case')} can show {shows} between two personas with power .80 "
            f"(paired, alpha .05, {_ASSUMED_DISCORDANT:.0%} of the cases assumed to differ)"
        )
