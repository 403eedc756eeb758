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
from probe.stages.places import store_path
from probe.stages.preparation import Preparation, prepare
from probe.stages.terminal import console, say
from probe.study import Study
from probe.values import ALL

_ASSUMED_DISCORDANT = 0.2


def dry_run(study: Study, *, store: str | Path | None = None) -> None:
    """Print the first prompts with the tokens that are read, the plan with its bytes, and what this n can show."""
    preparation = prepare(study)
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
    """The rendered prompt of a cell, then each site with its token and its neighbours."""
    tokenizer, prompt = preparation.resolved.tokenizer, job.prompt
    cell = job.row.cell
    out.rule(f"{title}: {escape(cell.persona)} / {escape(cell.case)} / {cell.condition.name}")
    say(prompt.text)  # never wrapped: a line break here is one that the model reads
    out.rule("tokens that are read")
    table = Table("site", "index", "token", "before and after")
    pieces = [repr(tokenizer.decode([token])) for token in prompt.token_ids]
    places = {
        "prompt_end": len(pieces) - 1,
        "persona_end": prompt.persona_end,
        "case_mean (first)": prompt.case_tokens[0] if prompt.case_tokens else None,
        "case_mean (last)": prompt.case_tokens[1] - 1 if prompt.case_tokens else None,
    }
    for site, place in places.items():
        if site.split()[0] not in preparation.resolved.study.capture.positions:
            continue
        if place is None:
            table.add_row(site, "absent", "", "")
            continue
        around = "".join(pieces[max(place - 2, 0) : place]) + " | " + "".join(pieces[place + 1 : place + 3])
        table.add_row(site, str(place), escape(pieces[place]), escape(around))
    for option, ids in zip(preparation.resolved.study.task.option_ids, job.labels.ids, strict=True):
        shown = ", ".join(f"{token} {tokenizer.decode([token])!r}" for token in ids)
        table.add_row(f"label {escape(option)}", "next", escape(shown), "")
    out.print(table)


def _show_costs(out: Console, preparation: Preparation, path: str | Path) -> None:
    resolved = preparation.resolved
    study, shape = resolved.study, resolved.shape
    rows = len(preparation.cells.jobs)
    lengths = [len(job.prompt.token_ids) for job in preparation.cells.jobs] or [0]
    longest = max(lengths) + study.generation.max_new_tokens
    if shape.context is not None:
        longest = min(longest, shape.context)
    resid = rows * resolved.row_bytes
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
        "residuals on disk",
        f"{resid / 2**20:.1f} MiB ({resolved.stored_dtype}); free {shutil.disk_usage(folder).free / 2**30:.1f} GiB",
    )
    table.add_row("weights in memory", f"{resolved.weight_bytes / 2**20:.1f} MiB ({resolved.compute_dtype})")
    table.add_row("store", str(path))
    out.print(table)


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
