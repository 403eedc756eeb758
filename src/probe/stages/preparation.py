"""A study as a plan: prompts rendered, labels checked, identity named. Loads a tokenizer and no weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from probe import __version__
from probe.capture.planning import JobPlanner, PlannedCells, plan_jobs
from probe.models import ModelShape, ModelSource, find_model, read_shape, weights_identity
from probe.models.hf import resolve_device
from probe.models.loading import compute_dtype
from probe.organism import planned, triage_task
from probe.prompts import BUILDER_VERSION, PARSER_VERSION, PromptBuilder, load_tokenizer, tokenizer_identity
from probe.store import Plan
from probe.study import Study
from probe.values import Case, Cell, StudyError, sha256_of

BATCH_SIZE = {"cpu": 64, "cuda": 32, "mps": 16}
"""``batch_size: auto``, by kind of device."""

SHARD_ROWS = 256
SHARD_BYTES = 256 * 2**20
SHARD_SECONDS = 60
_FLOPS = {"cpu": 5e10, "cuda": 1e14, "mps": 2e12}
"""Rough sustained operations per second, only to keep a shard near ``SHARD_SECONDS``."""

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, eq=False)
class Preparation:
    """Everything that is known of a study's capture before a weight is loaded."""

    study: Study
    source: ModelSource
    shape: ModelShape
    tokenizer: Any
    layers: tuple[int, ...]
    placement: str
    compute_dtype: str
    stored_dtype: str
    batch_size: int
    cells: PlannedCells
    manifest: Mapping[str, Any]
    plan: Plan

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's residuals."""
        per_site = len(self.layers) * self.shape.d_model * _BYTES[self.stored_dtype]
        return per_site * len(self.study.capture.positions)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the checkpoint's weights."""
        return sum(path.stat().st_size for path in self.source.folder.glob("*.safetensors"))

    @property
    def n_shards(self) -> int:
        """How many shards the plan has."""
        return len({row.shard for row in self.cells.rows})


def prepare(study: Study) -> Preparation:
    """Resolve the model, render every prompt and check every label.

    Raises:
        ModelError: the model, its tokenizer or its chat template cannot serve the study.
        LabelError: a label letter is not one token at the end of a prompt.
        StudyError: the study asks for residual points that the model does not have.
    """
    source = find_model(study.model.id, study.model.revision, trust_remote_code=study.model.trust_remote_code)
    shape = read_shape(source)
    layers = _layers(study, shape)
    computing = compute_dtype(study.model.dtype, study.model.device, shape.dtype)
    tokenizer = load_tokenizer(
        source.folder, chat_template=study.model.chat_template, trust_remote_code=source.trust_remote_code
    )
    builder = PromptBuilder(tokenizer, study.task)
    placement = builder.resolve_placement(study.conditions.placement)
    stored = computing if study.capture.dtype == "auto" else study.capture.dtype
    if stored == "float16":
        stored = "float32"  # float16 overflows on massive activations
    preparation = Preparation(
        study=study,
        source=source,
        shape=shape,
        tokenizer=tokenizer,
        layers=layers,
        placement=placement,
        compute_dtype=computing,
        stored_dtype=stored,
        batch_size=_batch_size(study),
        cells=PlannedCells((), (), ()),
        manifest={},
        plan=Plan((), (), (), 0, 0),
    )
    cells = _plan_cells(preparation, builder)
    return replace(preparation, cells=cells, manifest=_manifest(preparation, cells), plan=_plan(preparation, cells))


def _layers(study: Study, shape: ModelShape) -> tuple[int, ...]:
    if study.capture.layers == "all":
        return tuple(range(shape.n_layers + 1))
    beyond = [layer for layer in study.capture.layers if layer > shape.n_layers]
    if beyond:
        raise StudyError(
            f"capture.layers names residual point {beyond[0]}, but this model has points 0 to {shape.n_layers} "
            f"(0 = embeddings, {shape.n_layers} = output of the last block)"
        )
    return tuple(study.capture.layers)


def _batch_size(study: Study) -> int:
    if study.capture.batch_size != "auto":
        return study.capture.batch_size
    return BATCH_SIZE.get(resolve_device(study.model.device).type, 16)


def _plan_cells(preparation: Preparation, builder: PromptBuilder) -> PlannedCells:
    study = preparation.study
    planner = JobPlanner(builder, study.personas, study.cases)
    cells = study.cells(preparation.placement)
    return plan_jobs(
        planner,
        _with_progress(cells),
        rows_per_shard=_rows_per_shard(preparation),
        planned=_planned_truth if _has_planned_truth(preparation) else _no_truth,
        keep_text=study.capture.keep_text,
        context=preparation.shape.context,
    )


def _with_progress(cells: tuple[Cell, ...]) -> Iterator[Cell]:
    yield from tqdm(cells, desc="prompts", unit="cell", dynamic_ncols=True, leave=False, delay=1)


def _rows_per_shard(preparation: Preparation) -> int:
    """At most 256 rows, 256 MB and about a minute of work; whole batches where that allows."""
    parameters = preparation.weight_bytes / _BYTES.get(preparation.shape.dtype, 4)
    tokens = preparation.study.generation.max_new_tokens + 256
    kind = resolve_device(preparation.study.model.device).type
    seconds = 2 * parameters * tokens / _FLOPS.get(kind, 5e10)
    rows = min(SHARD_ROWS, SHARD_BYTES // max(preparation.row_bytes, 1), int(SHARD_SECONDS / max(seconds, 1e-9)))
    batch = preparation.batch_size
    return max(1, rows // batch * batch if rows >= batch else rows)


def _has_planned_truth(preparation: Preparation) -> bool:
    """Only the organism on its own task, with the letters where its training had them, has a plan."""
    study = preparation.study
    return preparation.source.is_organism and study.task == triage_task() and study.conditions.rotations == "none"


def _planned_truth(persona: str | None, case: Case) -> dict[str, list[float]] | None:
    truth = planned(persona, case)
    if truth is None:
        return None
    return {"direct": truth.direct.tolist(), "reasoned": truth.reasoned.tolist()}


def _no_truth(persona: str | None, case: Case) -> None:
    return None


def _manifest(preparation: Preparation, cells: PlannedCells) -> dict[str, Any]:
    study, source, shape = preparation.study, preparation.source, preparation.shape
    variants = sorted({(letter, ids) for job in cells.jobs for letter, ids in _letters(job.labels)})
    return {
        "created_by": f"persona-probe {__version__}",
        "study": study.to_mapping(cases=False),
        "model": {
            "id": study.model.id,
            "revision": source.revision,
            **weights_identity(source),
            **tokenizer_identity(preparation.tokenizer),
            "compute_dtype": preparation.compute_dtype,
        },
        "capture": {
            "stream": "resid",
            "hook": "residual point k = input of block k; point n_layers = output of the last block, before the norm",
            "layers": list(preparation.layers),
            "positions": list(study.capture.positions),
            "dtype": preparation.stored_dtype,
            "n_layers": shape.n_layers,
            "d_model": shape.d_model,
        },
        "labels": {
            "options": list(study.task.option_ids),
            "texts": [option.text for option in study.task.options],
            "letters": list(study.task.letters),
            "high_risk": study.task.high_risk,
            "token_ids": [[letter, list(ids)] for letter, ids in variants],
        },
        "generation": {
            "decoding": "greedy",
            "max_new_tokens": study.generation.max_new_tokens,
            "end_ids": list(shape.end_ids),
        },
        "prompt_builder": BUILDER_VERSION,
        "parser": PARSER_VERSION,
    }


def _letters(labels: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from zip(labels.letters, labels.ids, strict=True)


def _plan(preparation: Preparation, cells: PlannedCells) -> Plan:
    study = preparation.study
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
            "sha256": sha256_of([case.input, case.target, list(case.choices or ())]),
        }
        for case in study.cases
    )
    return Plan(cells.rows, personas, cases, study.split_seed, preparation.batch_size)
