"""Cells as prompts with their label tokens, grouped into shards. Knows a tokenizer; imports no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from probe.capture.given_answers import GivenAnswer, GivenTexts, sha_of
from probe.models import ModelShape
from probe.prompts import AnswerSites, ForcedText, LabelTokens, Prompt, PromptBuilder, Reopener
from probe.values import (
    Case,
    Cell,
    GivenText,
    Intervention,
    LabelError,
    ModelError,
    Persona,
    PlannedRow,
    Recipe,
    RowRefused,
)


@dataclass(frozen=True)
class Job:
    """A planned row with its prompt, and its label tokens and option texts in option order.

    ``forced`` and ``reopener`` are what the sites ``forced`` and ``after_reasoning`` read, None where they were not
    asked for. ``reasoning_open``: the prompt ends inside reasoning. ``given`` is an answer that is fed instead of
    generated. ``interventions`` act in their order during the whole pass. ``group`` is that of the record that is made.
    """

    row: PlannedRow
    prompt: Prompt
    labels: LabelTokens
    texts: tuple[str, ...] = ()
    forced: ForcedText | None = None
    reopener: Reopener | None = None
    reasoning_open: bool = False
    given: GivenAnswer | None = None
    interventions: tuple[Intervention, ...] = ()
    group: str = ""

    @property
    def n_tokens(self) -> int:
        """Tokens that are known before the pass: the prompt's, and those of a given answer."""
        return len(self.prompt.token_ids) + (len(self.given.token_ids) if self.given else 0)


@dataclass(frozen=True)
class Refusal:
    """A cell that cannot be captured for good, and why."""

    cell: Cell
    prompt_sha: str
    kind: str
    reason: str


Planned = Callable[[str | None, Case], Mapping[str, list[float]] | None]

Grouping = Callable[[Case], str]
"""Which cases a store that keeps moments adds up."""


class JobPlanner:
    """Turns cells into jobs, one after the other, so that a caller can show progress.

    ``sites`` are the answer sites that are read, by default those at the prompt's end and where the letter is written.
    ``given`` are the texts that conditions name by their source, ``recipes`` the interventions that they name by hash.
    ``grouping`` is None where every row is kept.
    """

    def __init__(
        self,
        builder: PromptBuilder,
        personas: Sequence[Persona],
        cases: Sequence[Case],
        *,
        sites: AnswerSites | None = None,
        given: Sequence[GivenText] = (),
        recipes: Sequence[Recipe] = (),
        grouping: Grouping | None = None,
    ) -> None:
        self._grouping = grouping
        self._builder = builder
        self._sites = sites or AnswerSites(builder, ("prompt_end", "answer"), "")
        self._given = GivenTexts(builder.tokenizer, given)
        self._personas = {persona.id: persona for persona in personas}
        self._cases = {case.id: case for case in cases}
        self._recipes = {recipe.sha256: recipe for recipe in recipes}

    def job(self, cell: Cell, shard: int, *, planned: Planned, keep_text: bool) -> Job:
        """The job of one cell.

        Raises:
            RowRefused: this cell's text cannot be a prompt, its given text no answer to it, or its intervention has no
                value for it or no token to act at.
            LabelError: a label cannot be read at an answer site.
        """
        persona = self._personas[cell.persona].text(cell.condition.wording)
        case = self._cases[cell.case]
        prompt = self._builder.build(persona, case, cell.condition)
        given = self._given.answer(prompt, cell)
        edits, own = self._edits(cell, prompt)
        row = PlannedRow(
            cell=cell,
            shard=shard,
            prompt_sha=sha_of(prompt, given, own),
            tokens_sha=prompt.tokens_sha,
            n_tokens=len(prompt.token_ids),
            text=prompt.text if keep_text else None,
            planned=planned(persona, case) if given is None and not edits else None,
        )
        try:
            reads = self._sites.reads(prompt, cell.condition)
        except LabelError as error:
            raise LabelError(f"{cell.persona}/{cell.case}: {error}") from error
        texts = case.choices or tuple(option.text for option in self._builder.task.options)
        return Job(
            row,
            prompt,
            reads.labels,
            texts,
            reads.forced,
            reads.reopener,
            reads.reasoning_open,
            given,
            edits,
            self.group(cell),
        )

    def group(self, cell: Cell) -> str:
        """The group of a cell's case; empty where every row is kept."""
        return self._grouping(self._cases[cell.case]) if self._grouping else ""

    def _edits(self, cell: Cell, prompt: Prompt) -> tuple[tuple[Intervention, ...], tuple[str, ...]]:
        """The interventions on a cell, and the hashes of those whose values are its own."""
        if not cell.condition.intervention:
            return (), ()
        recipe = self._recipes[cell.condition.intervention]
        edits = recipe.on(cell)
        there = {"persona": prompt.persona_tokens, "persona_end": prompt.persona_end, "case": prompt.case_tokens}
        for edit in edits:
            if there.get(edit.position, ()) is None:
                raise RowRefused(
                    "NoTokens",
                    f"the intervention {recipe.name!r} acts at {edit.position}, and this prompt has no such token; "
                    "name the personas that it is for",
                    prompt.prompt_sha,
                )
        return edits, tuple(edit.sha256 for edit in edits) if recipe.depends_on_case else ()


def shard_numbers(cells: Sequence[Cell], rows_per_shard: int, groups: Sequence[str] = ()) -> list[int]:
    """The shard of each cell: cells whose prompts begin alike stand together, in their order, so that what they share
    (persona, wording, instruction) is run once in a shard. Where they have ``groups``, rows that are added up come one
    after the other: a shard then holds few sums."""
    kinds: dict[tuple[object, ...], int] = {}
    sums: dict[tuple[object, ...], int] = {}
    at = [(cell.condition, group) for cell, group in zip(cells, groups, strict=True)] if groups else [()] * len(cells)
    for cell, added in zip(cells, at, strict=True):
        kinds.setdefault(_beginning(cell), len(kinds))
        sums.setdefault(added, len(sums))
    order = sorted(range(len(cells)), key=lambda index: (kinds[_beginning(cells[index])], sums[at[index]]))
    shard = {index: place // rows_per_shard for place, index in enumerate(order)}
    return [shard[index] for index in range(len(cells))]


def _beginning(cell: Cell) -> tuple[object, ...]:
    condition = cell.condition
    return cell.persona, condition.wording, condition.instruction, condition.placement, condition.intervention


@dataclass(frozen=True)
class PlannedCells:
    """All rows in plan order, refused ones too (so that "812 of 1000" counts them), and the jobs that can run."""

    rows: tuple[PlannedRow, ...]
    jobs: tuple[Job, ...]
    refusals: tuple[Refusal, ...]


def plan_jobs(
    planner: JobPlanner,
    cells: Sequence[Cell],
    *,
    rows_per_shard: int,
    planned: Planned,
    keep_text: bool,
    shape: ModelShape,
    shown: Callable[[Sequence[Cell]], Iterable[Cell]] = iter,
) -> PlannedCells:
    """Render every cell, in order, as rows of shards of ``rows_per_shard``; ``shown`` may show how far that is.

    Raises:
        LabelError: a label letter is not one token; no cell could be read rightly.
        ModelError: the tokenizer makes a token that the model has no embedding for.
    """
    rows: list[PlannedRow] = []
    jobs: list[Job] = []
    refusals: list[Refusal] = []
    groups = [planner.group(cell) for cell in cells]
    numbers = shard_numbers(cells, rows_per_shard, groups if any(groups) else ())
    for cell, shard in zip(shown(cells), numbers, strict=True):
        try:
            job = planner.job(cell, shard, planned=planned, keep_text=keep_text)
        except RowRefused as refusal:
            rows.append(PlannedRow(cell, shard, prompt_sha=refusal.prompt_sha, tokens_sha="", n_tokens=0))
            refusals.append(Refusal(cell, refusal.prompt_sha, refusal.kind, refusal.reason))
            continue
        rows.append(job.row)
        length, largest = job.n_tokens, max(job.prompt.token_ids + (job.given.token_ids if job.given else ()))
        if largest >= shape.vocab:
            raise ModelError(
                f"the tokenizer makes token {largest}, but the model embeds only {shape.vocab}; "
                "they do not belong together"
            )
        # A given answer may fill the context to its last token; one that is generated needs room for a first one.
        if shape.context is not None and length + (job.given is None) > shape.context:
            what, remedy = "prompt tokens leave no room", "shorten the case"
            if job.given is not None:
                what, remedy = "tokens of prompt and given text do not fit", "shorten the case or the text"
            reason = f"{length} {what} in a context of {shape.context} tokens; {remedy}"
            refusals.append(Refusal(cell, job.row.prompt_sha, "PromptTooLong", reason))
        else:
            jobs.append(job)
    return PlannedCells(tuple(rows), tuple(jobs), tuple(refusals))
