"""The command ``probe tokens``: which tokens a study reads, for this tokenizer. Loads a tokenizer and no weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from rich.markup import escape

from probe.capture.planning import JobPlanner
from probe.prompts import LetterVocabulary, tokenizer_identity
from probe.stages.given import with_given_texts
from probe.stages.preparation import answer_sites
from probe.stages.resolution import Resolved, resolve
from probe.stages.terminal import console, say
from probe.stages.token_reads import CellTokens, cell_tokens, show_cell_tokens
from probe.study import Study
from probe.values import Cell, ProbeError, RowRefused

_LISTED = 24


def show_tokens(study: Study, *, persona: str | None = None, case: str | None = None, as_json: bool = False) -> int:
    """Print what the first cell of every persona reads, or that of one persona or case; 3 where one is refused.

    Raises:
        LabelError: a label cannot be read at an answer site.
        ProbeError: the study, its model or its template refuses; or the persona or case is not in the study.
    """
    resolved = resolve(study)
    tokenizer = resolved.tokenizer
    study = with_given_texts(study, tokenizer_identity(tokenizer)["tokenizer_sha256"])
    study = replace(study, interventions=())  # they change no token
    found: list[CellTokens] = []
    refused: list[tuple[Cell, RowRefused]] = []
    for cell in _first_cells(study, resolved.placement, persona, case):
        try:
            found.append(_of(resolved, study, cell))
        except RowRefused as refusal:
            refused.append((cell, refusal))
    letters = LetterVocabulary(tokenizer, study.task.letters)
    if as_json:
        cells = [tokens.as_json() for tokens in found]
        failed = [{"persona": c.persona, "case": c.case, "kind": r.kind, "reason": r.reason} for c, r in refused]
        say(json.dumps({"cells": cells, "letter_tokens": list(letters.token_ids), "refused": failed}))
        return 3 if refused else 0
    out = console()
    for tokens in found:
        out.rule(f"{escape(tokens.persona)} / {escape(tokens.case)} / {escape(tokens.condition)}")
        show_cell_tokens(out, tokens)
    pieces = [repr(tokenizer.decode([token])) for token in letters.token_ids]
    more = ", ..." if len(pieces) > _LISTED else ""
    say(f"tokens that may write a letter in an answer ({len(pieces)}): {', '.join(pieces[:_LISTED])}{more}")
    for cell, refused_as in refused:
        say(f"would fail: {cell.persona}/{cell.case}: {refused_as.kind}: {refused_as.reason}")
    return 3 if refused else 0


def _of(resolved: Resolved, study: Study, cell: Cell) -> CellTokens:
    given = study.given.texts if study.given else ()
    planner = JobPlanner(resolved.builder, study.personas, study.cases, sites=answer_sites(resolved), given=given)
    job = planner.job(cell, 0, planned=lambda persona, case: None, keep_text=False)
    return cell_tokens(study, resolved.builder, job)


def _first_cells(study: Study, placement: str, persona: str | None, case: str | None) -> Iterator[Cell]:
    wanted = study.persona(persona).id if persona is not None else None
    at = study.case(case).id if case is not None else None
    seen: set[str] = set()
    for cell in study.cells(placement):
        if cell.persona not in seen and at in (None, cell.case) and wanted in (None, cell.persona):
            seen.add(cell.persona)
            yield cell
    if not seen:
        raise ProbeError(
            f"no text is given for the case {at!r}, and `given.only` has no other cells; name another case"
        )
