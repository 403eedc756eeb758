"""What a run would do and cost, before it does it. Renders prompts; loads no weights and writes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from probe.behaviour.power import detectable_difference
from probe.capture.planning import Job
from probe.report.numbers import plural
from probe.stages.batch_size import with_open_batch
from probe.stages.costs import held_bytes, memory_bytes
from probe.stages.places import store_path
from probe.stages.preparation import Preparation, prepare
from probe.stages.terminal import console, say
from probe.stages.token_reads import cell_tokens, show_cell_tokens
from probe.study import Study
from probe.values import ALL

_ASSUMED_DISCORDANT = 0.2


def dry_run(study: Study, *, store: str | Path | None = None) -> None:
    """Print the first prompts with the tokens that are read, the plan with its bytes, and what this n can show."""
    preparation = with_open_batch(prepare(study), store_path(study, store))
    out = console()
    jobs = preparation.cells.jobs
    told = next((job for job in jobs if job.prompt.persona_end is not None), None)
    if jobs:
        _show_prompt(out, preparation, jobs[0], "first prompt")
    if told is not None and told is not jobs[0]:
        _show_prompt(out, preparation, told, "first prompt with a persona")
    _show_costs(out, preparation, store_path(study, store))
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
    rows = len(preparation.cells.jobs)
    lengths = [len(job.prompt.token_ids) for job in preparation.cells.jobs] or [0]
    longest = max(lengths) + study.generation.max_new_tokens
    if shape.context is not None:
        longest = min(longest, shape.context)
    tensors = rows * resolved.row_bytes
    folder = path if Path(path).exists() else Path.cwd()
    table = Table("what a run would do", "", show_header=True)
    table.add_row("model", f"{escape(study.model.id)} ({shape.n_layers} blocks, width {shape.d_model})")
    table.add_row("persona's place", resolved.placement)
    table.add_row(
        "cells",
        f"{len(preparation.cells.rows):,} in {plural(preparation.n_shards, 'shard')}, "
        f"batches of {resolved.batch_size} at most",
    )
    table.add_row("prompt tokens", f"{min(lengths)} to {max(lengths)}; at most {longest} with the answer")
    table.add_row(
        "tensors on disk",
        f"{_mib(tensors)} ({resolved.stored_dtype}), less where a site is absent; "
        f"free {shutil.disk_usage(folder).free / 2**30:.1f} GiB",
    )
    table.add_row("memory at the peak", _memory_text(preparation))
    table.add_row("store", str(path))
    out.print(table)


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
