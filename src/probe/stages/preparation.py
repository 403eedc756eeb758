"""A study as a plan: prompts rendered, labels checked, identity named. Loads a tokenizer and no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

from tqdm import tqdm

from probe.capture.planning import JobPlanner, Planned, PlannedCells, plan_jobs
from probe.capture.sampling import SAMPLER_VERSION
from probe.models import weights_identity
from probe.organism import duration_task, planned, planned_duration, triage_task
from probe.prompts import BUILDER_VERSION, AnswerSites, LetterVocabulary, parser_name, tokenizer_identity
from probe.stages.given import with_given_texts
from probe.stages.recipes import interventions_told, recipes_of, with_recipes
from probe.stages.resolution import Resolved, resolve
from probe.store import Plan
from probe.study import GenerationSpec, LabelSpec, Study
from probe.values import Case, Cell, ParserSettings, canonical_json, sha256_of
from probe.values.blocks import BLOCKS, block_of
from probe.values.cases import is_content_free

SHARD_ROWS = 256
SHARD_BYTES = 256 * 2**20
SHARD_SECONDS = 60
SMALLEST_SHARD = 8
_FLOPS = {"cpu": 5e10, "cuda": 1e14}
"""Rough sustained operations per second, only to keep a shard near ``SHARD_SECONDS``."""


@dataclass(frozen=True, eq=False)
class Preparation:
    """Everything that is known of a study's capture before a weight is loaded: the plan, and the store's identity."""

    resolved: Resolved
    cells: PlannedCells
    plan: Plan

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """The identity of the store; the weights are hashed for it when it is first asked for."""
        return manifest_of(self.resolved)

    @property
    def label_tokens(self) -> tuple[int, ...]:
        """Every token that stands for a label in some cell, or may do so where an answer comes to its letter."""
        reads = {job.labels: None for job in self.cells.jobs}
        for job in self.cells.jobs:
            reads |= {part.labels: None for part in (job.forced, job.reopener) if part is not None}
        in_answers = LetterVocabulary(self.resolved.tokenizer, self.resolved.study.task.letters).counterpart_ids
        return tuple(sorted({*in_answers, *(token for labels in reads for ids in labels.ids for token in ids)}))

    @property
    def n_shards(self) -> int:
        """How many shards the plan has."""
        return len({row.shard for row in self.cells.rows})


def prepare(study: Study, device: str | None = None) -> Preparation:
    """Resolve the model, render every prompt and check every label; ``device`` as :func:`resolve` has it.

    Raises:
        ModelError: the model, its tokenizer or its chat template cannot serve the study.
        LabelError: a label cannot be read at an answer site.
        ProbeError: the store of the given texts, or the source of an intervention, does not hold what the study asks of
            it.
        StudyError: the study asks for residual points that the model does not have.
    """
    resolved = resolve(study, device)
    texts = with_given_texts(study, tokenizer_identity(resolved.tokenizer)["tokenizer_sha256"])
    resolved = replace(resolved, study=with_recipes(texts, resolved.shape))
    cells = _plan_cells(resolved)
    return Preparation(resolved, cells, _plan(resolved, cells))


def _plan_cells(resolved: Resolved) -> PlannedCells:
    study = resolved.study
    cells = study.cells(resolved.placement)
    return plan_jobs(
        planner_of(resolved),
        cells,
        rows_per_shard=_rows_per_shard(resolved),
        planned=planned_of(resolved),
        keep_text=study.capture.keep_text,
        shape=resolved.shape,
        shown=_with_progress,
    )


def planner_of(resolved: Resolved) -> JobPlanner:
    """What renders the cells of a study whose given texts were read."""
    study = resolved.study
    given = study.given.texts if study.given else ()
    return JobPlanner(
        resolved.builder,
        study.personas,
        study.cases,
        sites=answer_sites(resolved),
        given=given,
        recipes=recipes_of(study),
        grouping=_grouping(study) if study.capture.keep == "moments" else None,
    )


def _grouping(study: Study) -> Callable[[Case], str]:
    """Which cases are added up: those of a stratum whose families lie in one block; what says nothing stands apart."""

    def group(case: Case) -> str:
        block = block_of(case.family or case.id, study.split_seed)
        return canonical_json([case.stratum, block, is_content_free(case.input)])

    return group


def answer_sites(resolved: Resolved) -> AnswerSites:
    """The answer sites that a study reads, for its model's tokenizer."""
    labels = resolved.study.labels
    return AnswerSites(resolved.builder, labels.sites, labels.forced, labels.score)


def _with_progress(cells: Sequence[Cell]) -> Iterator[Cell]:
    yield from tqdm(cells, desc="prompts", unit="cell", dynamic_ncols=True, leave=False, delay=1)


def _rows_per_shard(resolved: Resolved) -> int:
    new = resolved.study.generation.max_new_tokens
    return rows_per_shard(resolved.row_bytes, resolved.parameters, new, resolved.device, resolved.batch_size)


def rows_per_shard(row_bytes: int, parameters: int, new: int, device: str, batch: int) -> int:
    """At most 256 rows, 256 MB and about a minute of work; whole batches where that allows, and never under 8 rows."""
    seconds = 2 * parameters * (new + 256) / _FLOPS.get(device, 5e10)
    rows = min(SHARD_ROWS, SHARD_BYTES // max(row_bytes, 1), int(SHARD_SECONDS / max(seconds, 1e-9)))
    return rows // batch * batch if rows >= batch else max(rows, min(batch, SMALLEST_SHARD))


def planned_of(resolved: Resolved) -> Planned:
    """What the organism's plan says of a cell. It has one for its two tasks: of options, whatever their letters."""
    task = resolved.study.task
    plans = ((triage_task(), planned), (duration_task(), planned_duration)) if resolved.source.is_organism else ()
    plan = next((plan for known, plan in plans if known == task), None)

    def truth(persona: str | None, case: Case) -> dict[str, list[float]] | None:
        found = None if plan is None or case.choices else plan(persona, case)
        if found is None:
            return None
        stated = found.stated
        return {"direct": found.direct.tolist(), **({} if stated is None else {"reasoned": stated.tolist()})}

    return truth


def manifest_of(resolved: Resolved) -> dict[str, Any]:
    """What a store says of a study's captures: all that two rows of one store have in common."""
    study, source, shape = resolved.study, resolved.source, resolved.shape
    return {
        "created_by": f"persona-probe {version('persona-probe')}",
        "study": study.to_mapping(cases=False),
        "model": {
            "id": study.model.id,
            "revision": source.revision,
            **weights_identity(source),
            **tokenizer_identity(resolved.tokenizer),
            "compute_dtype": resolved.compute_dtype,
        },
        "capture": {
            "stream": "resid",
            "hook": "residual point k = input of block k; point n_layers = output of the last block, before the norm",
            "layers": list(resolved.layers),
            "positions": list(study.capture.positions),
            "dtype": resolved.stored_dtype,
            "n_layers": shape.n_layers,
            "d_model": shape.d_model,
            **_inner_streams(resolved),
            **_moments(study),
        },
        "labels": {
            "options": list(study.task.option_ids),
            "texts": [option.text for option in study.task.options],
            "letters": list(study.task.letters),
            "high_risk": study.task.high_risk,
            **_reads(study.labels, study.task.parser),
        },
        "generation": {
            **_decoding(study.generation),
            "max_new_tokens": study.generation.max_new_tokens,
            "end_ids": list(shape.end_ids),
        },
        "prompt_builder": BUILDER_VERSION,
        "parser": parser_name(study.task.parser),
    }


def _moments(study: Study) -> dict[str, Any]:
    """How rows are added up; nothing where each is kept."""
    if study.capture.keep == "rows":
        return {}
    return {"moments": {"blocks": BLOCKS, "seed": study.split_seed, "covariance": study.capture.covariance}}


def _inner_streams(resolved: Resolved) -> dict[str, Any]:
    """The streams beside the residual; nothing where there are none, so that stores of before stay what they are."""
    found: dict[str, Any] = {}
    for point in resolved.points:
        if point.stream != "resid":
            entry = found.setdefault(point.stream, {"layers": [], "width": resolved.widths[point.stream]})
            entry["layers"].append(point.layer)
    return {"streams": found} if found else {}


def _reads(labels: LabelSpec, parser: ParserSettings) -> dict[str, Any]:
    """Where labels are read and how they are scored, as far as it is not what every store of before has."""
    found: dict[str, Any] = {}
    if set(labels.sites) != set(LabelSpec().sites):
        found["sites"] = sorted(labels.sites)
    if labels.forces:
        found["forced"] = labels.forced
    if "after_reasoning" in labels.sites and parser.reasoning:
        found["reasoning"] = [[marks.open, marks.close] for marks in parser.reasoning]
    if labels.score != LabelSpec().score:
        found["score"] = labels.score
    return found


def _decoding(generation: GenerationSpec) -> dict[str, Any]:
    """How tokens are chosen. The number of seeds is no part of it: more seeds are more rows of the same store."""
    if generation.greedy:
        return {"decoding": "greedy"}
    return {
        "decoding": "sampling",
        "sampler": SAMPLER_VERSION,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
    }


def _plan(resolved: Resolved, cells: PlannedCells) -> Plan:
    study = resolved.study
    personas = tuple(
        {
            "id": persona.id,
            "role": persona.role,
            "style": persona.style,
            "wordings": list(persona.wordings),
            "sha256": sha256_of(list(persona.wordings)),
        }
        for persona in study.personas
    )
    cases = tuple(
        {
            "id": case.id,
            "family": case.family,
            "stratum": case.stratum,
            "target": case.target,
            "text": case.input,
            **({"choices": list(case.choices)} if case.choices else {}),
            **({"category": str(case.metadata["category"])} if "category" in case.metadata else {}),
            "sha256": sha256_of([case.input, case.target, list(case.choices or ())]),
        }
        for case in study.cases
    )
    return Plan(cells.rows, personas, cases, study.split_seed, resolved.batch_size, interventions_told(study))
