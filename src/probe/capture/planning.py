"""Cells as prompts with their label tokens, grouped into shards. Knows a tokenizer; imports no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from probe.models import ModelShape
from probe.prompts import LabelTokens, Prompt, PromptBuilder, label_tokens
from probe.values import Case, Cell, LabelError, ModelError, Persona, PlannedRow, RowRefused

_TAIL = 48
"""Prompts that end in the same characters read their labels from the same tokens."""


@dataclass(frozen=True)
class Job:
    """A planned row with its prompt, and its label tokens and option texts in option order."""

    row: PlannedRow
    prompt: Prompt
    labels: LabelTokens
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """A cell that cannot be captured for good, and why."""

    cell: Cell
    prompt_sha: str
    kind: str
    reason: str


Planned = Callable[[str | None, Case], Mapping[str, list[float]] | None]


class JobPlanner:
    """Turns cells into jobs, one after the other, so that a caller can show progress."""

    def __init__(self, builder: PromptBuilder, personas: Sequence[Persona], cases: Sequence[Case]) -> None:
        self._builder = builder
        self._personas = {persona.id: persona for persona in personas}
        self._cases = {case.id: case for case in cases}
        self._labels: dict[tuple[str, tuple[str, ...]], LabelTokens] = {}

    def job(self, cell: Cell, shard: int, *, planned: Planned, keep_text: bool) -> Job:
        """The job of one cell.

        Raises:
            RowRefused: this cell's text cannot be a prompt.
            LabelError: a label is not one token after it.
        """
        persona = self._personas[cell.persona].text(cell.condition.wording)
        case = self._cases[cell.case]
        prompt = self._builder.build(persona, case, cell.condition)
        row = PlannedRow(
            cell=cell,
            shard=shard,
            prompt_sha=prompt.prompt_sha,
            tokens_sha=prompt.tokens_sha,
            n_tokens=len(prompt.token_ids),
            text=prompt.text if keep_text else None,
            planned=planned(persona, case),
        )
        texts = case.choices or tuple(option.text for option in self._builder.task.options)
        return Job(row, prompt, self._label_tokens(prompt, cell), texts)

    def _label_tokens(self, prompt: Prompt, cell: Cell) -> LabelTokens:
        letters = self._builder.task.letters_by_option(cell.condition.rotation)
        key = (prompt.text[-_TAIL:], letters)
        if key not in self._labels:
            try:
                self._labels[key] = label_tokens(self._builder.tokenizer, prompt.text, letters)
            except LabelError as error:
                raise LabelError(f"{cell.persona}/{cell.case}: {error}") from error
        return self._labels[key]


@dataclass(frozen=True)
class PlannedCells:
    """All rows in plan order, refused ones too (so that "812 of 1000" counts them), and the jobs that can run."""

    rows: tuple[PlannedRow, ...]
    jobs: tuple[Job, ...]
    refusals: tuple[Refusal, ...]


def plan_jobs(
    planner: JobPlanner,
    cells: Iterable[Cell],
    *,
    rows_per_shard: int,
    planned: Planned,
    keep_text: bool,
    shape: ModelShape,
) -> PlannedCells:
    """Render every cell, in order, and cut the rows into shards of ``rows_per_shard``.

    Raises:
        LabelError: a label letter is not one token; no cell could be read rightly.
        ModelError: the tokenizer makes a token that the model has no embedding for.
    """
    rows: list[PlannedRow] = []
    jobs: list[Job] = []
    refusals: list[Refusal] = []
    for index, cell in enumerate(cells):
        shard = index // rows_per_shard
        try:
            job = planner.job(cell, shard, planned=planned, keep_text=keep_text)
        except RowRefused as refusal:
            rows.append(PlannedRow(cell, shard, prompt_sha=refusal.prompt_sha, tokens_sha="", n_tokens=0))
            refusals.append(Refusal(cell, refusal.prompt_sha, refusal.kind, refusal.reason))
            continue
        rows.append(job.row)
        length = len(job.prompt.token_ids)
        if max(job.prompt.token_ids) >= shape.vocab:
            raise ModelError(
                f"the tokenizer makes token {max(job.prompt.token_ids)}, but the model embeds only {shape.vocab}; "
                "they do not belong together"
            )
        if shape.context is not None and length >= shape.context:
            reason = f"{length} prompt tokens leave no room in a context of {shape.context} tokens; shorten the case"
            refusals.append(Refusal(cell, job.row.prompt_sha, "PromptTooLong", reason))
        else:
            jobs.append(job)
    return PlannedCells(tuple(rows), tuple(jobs), tuple(refusals))
