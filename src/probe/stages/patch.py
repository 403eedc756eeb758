"""Activation patching of a study: where a persona's state lives, by layer and role of tokens. Knows both wings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pandas as pd
from tqdm import tqdm

from probe.mechanism.patching.estimates import construction_check, patch_effects, patch_labels, run_totals
from probe.mechanism.patching.grid import ATTN_OUT, HEAD_OUT, MLP_OUT, Grid
from probe.mechanism.patching.paths import path_shares
from probe.mechanism.patching.reads import LATENT, STATED, patch_reads
from probe.stages.interrupts import Interrupted, terminable
from probe.stages.patch_parts import SUFFIX, PatchFolder, Record
from probe.stages.patch_request import PatchRequest
from probe.stages.places import figures_path, folder_beside, store_path
from probe.store import open_store
from probe.study import Study
from probe.values import ProbeError, sha256_of
from probe.values.nearest import nearest

if TYPE_CHECKING:
    from probe.models.protocol import Backend
    from probe.stages.inside import Inside
    from probe.stages.patch_plan import PatchPlan
    from probe.stages.policy import CapturePolicy
    from probe.stages.resolution import Resolved

Key = TypeVar("Key", bound=tuple[str, ...])

PATCH_VERSION = "2"
"""Changes when the same unit would be read otherwise: finished parts of another version are not taken over."""


@dataclass(frozen=True, eq=False)
class PatchTables:
    """What a patching run says; see the functions of :mod:`probe.mechanism.patching`.

    ``left_out`` and ``absent`` count what could not be patched, by reason; ``pending`` parts are still to be run.
    """

    totals: pd.DataFrame
    effects: pd.DataFrame
    labels: pd.DataFrame
    paths: pd.DataFrame
    check: pd.DataFrame
    sentences: pd.DataFrame
    missing: Mapping[str, str] = field(default_factory=dict)
    left_out: pd.DataFrame = field(default_factory=pd.DataFrame)
    absent: pd.DataFrame = field(default_factory=pd.DataFrame)
    pending: int = 0

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by the names of their files."""
        return {f"patch_{name}": table for name, table in vars(self).items() if isinstance(table, pd.DataFrame)}


def capture_patch(
    study: Study,
    request: PatchRequest | None = None,
    *,
    store: str | Path | None = None,
    fresh: bool = False,
    policy: CapturePolicy | None = None,
) -> PatchFolder:
    """Run every part of a patching grid that is not finished yet; a second call continues or finds nothing to do.

    Answers whose texts are to be forced are captured first, into ``store`` (by default ``cache/<study name>``); the
    parts lie beside it (:func:`patch_path`). ``fresh`` runs the parts again and leaves the answers.

    Raises:
        ProbeError: the study, the model or a store refuses, or nothing can be patched.
        Interrupted: SIGINT or SIGTERM; finished parts stay.
    """
    asked = request or PatchRequest()
    resolved, plan = plan_patch(study, asked, store=store, policy=policy)
    folder = PatchFolder(patch_path(study, store))
    if fresh:
        folder.clear()
    if all(folder.has(part.key) for part in plan.parts):
        folder.record(_record(resolved, asked, plan, folder.missing))
        return folder
    from probe.stages.running import load_model

    backend = load_model(resolved)
    grid, missing = grid_as_the_model_has(plan.grid, backend, asked.streams)
    folder.record(_record(resolved, asked, plan, missing))
    _run(folder, replace(plan, grid=grid), asked, resolved, backend)
    return folder


def plan_patch(
    study: Study, request: PatchRequest, *, store: str | Path | None = None, policy: CapturePolicy | None = None
) -> tuple[Resolved, PatchPlan]:
    """The study with its model's files and what is to be run; loads no weights unless answers are to be captured.

    Raises:
        ProbeError: as :func:`capture_patch`.
    """
    from probe.stages.capture import capture
    from probe.stages.patch_plan import PatchPlanner, patched_personas
    from probe.stages.patch_texts import stated_texts
    from probe.stages.resolution import model_identity, resolve

    personas = patched_personas(study, request.personas)
    texts = {}
    if STATED in request.reads:
        source = open_store(capture(study, store=store_path(study, store), policy=policy).store, warn=False)
        texts = stated_texts(source, personas if request.text == "own" else [study.base])
    resolved = resolve(replace(study, capture=replace(study.capture, streams=("resid",))))
    return resolved, PatchPlanner(resolved, request, texts).plan(sha256_of([model_identity(resolved), PATCH_VERSION]))


def grid_as_the_model_has(grid: Grid, backend: Backend, asked: Sequence[str] | None) -> tuple[Grid, dict[str, str]]:
    """The grid without streams that this model does not have, and why it has none of each.

    Raises:
        ModelError: one of them was asked for by its name.
    """
    from probe.models.points import HookPoint

    facts, missing = backend.facts, {}
    for stream in (ATTN_OUT, MLP_OUT, HEAD_OUT):
        if stream in grid.streams and stream not in facts.widths:
            facts.require([HookPoint(stream, 0)] if asked else [])
            missing[stream] = facts.missing.get(stream, "this model has none")
    if (
        HEAD_OUT in grid.streams
        and HEAD_OUT not in missing
        and (not grid.n_heads or facts.widths[HEAD_OUT] % grid.n_heads)
    ):
        missing[HEAD_OUT] = "its configuration does not say how many heads stand side by side"
    return replace(grid, streams=tuple(name for name in grid.streams if name not in missing)), missing


def _record(resolved: Resolved, asked: PatchRequest, plan: PatchPlan, missing: Mapping[str, str]) -> Record:
    study = resolved.study
    return Record(
        study=study.name,
        base=study.base,
        model={"id": study.model.id, "revision": resolved.source.revision, "dtype": resolved.compute_dtype},
        n_layers=resolved.shape.n_layers,
        options=study.task.option_ids,
        high_risk=study.task.high_risk,
        personas=plan.personas,
        request=asdict(asked),
        parts=tuple((part.key, part.persona) for part in plan.parts),
        left_out=_counted(plan.left_out, "persona", "read", "reason"),
        absent=_counted(plan.absent, "persona", "read", "control", "group", "reason"),
        missing=missing,
    )


def _counted(counts: Mapping[Key, int], *names: str) -> tuple[dict[str, str | int], ...]:
    return tuple({**dict(zip(names, key, strict=True)), "n": n} for key, n in counts.items())


def _run(folder: PatchFolder, plan: PatchPlan, asked: PatchRequest, resolved: Resolved, backend: Backend) -> None:
    """Run the parts that are not finished; each is saved when it is done."""
    from probe.stages.patch_runs import Patcher
    from probe.stages.running import threads_for

    patcher = Patcher(backend, plan.grid, asked, resolved.batch_size)
    options = resolved.study.task.option_ids
    done = sum(len(part.units) for part in plan.parts if folder.has(part.key))
    bar = tqdm(total=plan.n_units, initial=done, desc="patching", unit="pair", dynamic_ncols=True)
    with bar, threads_for(resolved), terminable() as interrupts:
        try:
            for part in plan.parts:
                if folder.has(part.key):
                    continue
                tables = []
                for _, table in patcher.reads(part.units, options):
                    tables.append(table)
                    bar.update()
                with interrupts.shielded():
                    folder.save(part.key, pd.concat(tables, ignore_index=True))
        except KeyboardInterrupt as interrupt:
            n = sum(folder.has(part.key) for part in plan.parts)
            raise Interrupted(
                f"interrupted: {n} of {len(plan.parts)} parts are saved in {folder.path}; run the same command again "
                "to continue",
                143 if interrupt.args else 130,
            ) from None


def patch_path(study: Study, store: str | Path | None = None) -> Path:
    """Where the parts of a study lie: beside the store of its captures, ``cache/<study name>-patch`` by default."""
    return folder_beside(store_path(study, store), SUFFIX, study.name)


def patch_tables(folder: PatchFolder) -> PatchTables:
    """What the finished parts of a folder say; needs no model, and no torch.

    Raises:
        ProbeError: the folder holds no patching run, or no finished part.
    """
    told = folder.read_record()
    table = folder.reads(told)
    reads = patch_reads(table)
    sentences = pd.DataFrame([{"persona": name, **texts} for name, texts in told.personas.items()])
    return PatchTables(
        totals=run_totals(reads, told.base),
        effects=patch_effects(reads, told.base, told.n_layers),
        labels=patch_labels(reads, told.base),
        paths=path_shares(reads, told.base),
        check=construction_check(reads, told.n_layers),
        sentences=sentences,
        left_out=pd.DataFrame(list(told.left_out)),
        absent=pd.DataFrame(list(told.absent)),
        missing=dict(told.missing),
        pending=int(table.attrs["pending"]),
    )


def run_patch(
    target: Study | Path,
    request: PatchRequest,
    *,
    store: str | Path | None = None,
    fresh: bool = False,
    policy: CapturePolicy | None = None,
    out: Path | None = None,
    outcome: str | None = None,
) -> int:
    """Run what is not finished where ``target`` is a study, analyse, draw and tell; the exit status.

    A folder is one of finished parts, of which the analysis alone is made. ``outcome`` is what is drawn and told.
    """
    from probe.stages.terminal import announce_files

    if isinstance(target, Study):
        folder = capture_patch(target, request, store=store, fresh=fresh, policy=policy)
    else:
        folder = PatchFolder(target)
    figures = figures_path(folder.read_record().study, out)
    tables = patch_tables(folder)
    found = _inside(tables, outcome_of(tables, outcome))
    found.show()
    announce_files(figures, found.save(figures))
    return 3 if tables.pending else 0


def patch_inside(folder: PatchFolder) -> Inside:
    """What the finished parts of a folder say, as an analysis of a study."""
    tables = patch_tables(folder)
    return _inside(tables, outcome_of(tables, None))


def _inside(tables: PatchTables, outcome: str) -> Inside:
    from probe.report.patching import patch_figures
    from probe.stages.inside import Inside
    from probe.stages.terminal_patch import show_patch

    figures = patch_figures(tables.effects, tables.paths, tables.totals, outcome)
    return Inside(tables.tables, figures, lambda: show_patch(tables, outcome))


def outcome_of(tables: PatchTables, asked: str | None) -> str:
    """The outcome that is drawn and told: the first of the tables unless another is asked for.

    Raises:
        ProbeError: it is not one of theirs.
    """
    known = list(dict.fromkeys(tables.totals["outcome"]))
    if asked is not None and asked not in known:
        raise ProbeError(f"an outcome is one of {', '.join(known)}. {nearest(asked, known, 'outcome')}")
    return asked or str(known[0])


def patch(study: Study, request: PatchRequest | None = None, *, store: str | Path | None = None) -> PatchTables:
    """Where a persona's effect lives: the patching grid of a study, run where it is not yet, in one call.

    See :func:`capture_patch` and :func:`patch_tables`.

    Raises:
        ProbeError: as these.
    """
    return patch_tables(capture_patch(study, request, store=store))


def describe_patch(study: Study, request: PatchRequest) -> None:
    """What a run would do: sentences, pairs of runs, reads of each. Captures nothing and loads no weights."""
    from probe.stages.terminal_patch import show_plan

    _, plan = plan_patch(study, replace(request, reads=(LATENT,)))
    unit = next((unit for part in plan.parts for unit in part.units), None)
    if unit is None:
        raise ProbeError("no persona has a case that can be patched; see what is left out, or add cases")
    reads = plan.grid.places(tuple(unit.aligned.pairs), unit.base.layout.read_group)
    show_plan(plan.personas, request.reads, n_units=plan.n_units, per_unit=len(reads) * (1 + request.noising))
