"""Jobs into cell records: batches by length, answers parsed, sites assigned. Knows the pass; knows no store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from probe.capture.batching import PassInput, PassSettings
from probe.capture.decoding import LetterStep, RawRow, run_pass
from probe.capture.planning import Job
from probe.models.protocol import Backend
from probe.prompts import LetterVocabulary, Parsed, parse_answer
from probe.values import CellRecord, LabelRead, RowRefused

_STORED: dict[str, tuple[torch.dtype, Any]] = {
    "float32": (torch.float32, np.float32),
    "bfloat16": (torch.bfloat16, ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class Capturer:
    """Everything that is the same for every shard of a study."""

    backend: Backend
    tokenizer: Any
    vocabulary: LetterVocabulary
    letters: tuple[str, ...]
    options: tuple[str, ...]
    settings: PassSettings
    batch_size: int
    dtype: str


@dataclass(frozen=True)
class FailedRow:
    """A row whose pass gave something that must not be stored as data."""

    job: Job
    kind: str
    reason: str


def capture_shard(
    capturer: Capturer, jobs: Sequence[Job], on_rows: Callable[[int], None]
) -> tuple[list[CellRecord], list[FailedRow]]:
    """Run the jobs in batches of similar length; the records come back in the order of the jobs.

    ``on_rows`` is told how many rows each finished batch had.
    """
    done: dict[str, CellRecord] = {}
    failed: list[FailedRow] = []
    for batch in _batches(jobs, capturer.batch_size):
        for job, raw in zip(batch, _run(capturer, batch), strict=True):
            try:
                done[job.row.cell.row_id] = _record(capturer, job, raw)
            except RowRefused as refusal:
                failed.append(FailedRow(job, refusal.kind, refusal.reason))
        on_rows(len(batch))
    return [done[job.row.cell.row_id] for job in jobs if job.row.cell.row_id in done], failed


def _batches(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    ordered = sorted(jobs, key=lambda job: (len(job.prompt.token_ids), job.row.cell.row_id))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _run(capturer: Capturer, batch: list[Job]) -> list[RawRow]:
    """One pass; out of memory, the two halves of the batch one after the other."""
    rows = [
        PassInput(job.prompt.token_ids, job.prompt.persona_end, job.prompt.case_tokens, job.labels) for job in batch
    ]
    try:
        return run_pass(capturer.backend, rows, capturer.settings, capturer.vocabulary)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    half = len(batch) // 2
    return _run(capturer, batch[:half]) + _run(capturer, batch[half:])


def _record(capturer: Capturer, job: Job, raw: RawRow) -> CellRecord:
    text = capturer.tokenizer.decode(raw.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    parsed = parse_answer(text, capturer.letters, truncated=raw.stop != "end")
    step = _answer_step(capturer.tokenizer, raw, parsed)
    positions, resid, labels = _sites(capturer, job, raw, step)
    arrays = {name: _to_numpy(value, capturer.dtype) for name, value in resid.items()}
    _refuse_nonfinite(arrays, labels, capturer.settings.layers)
    letter_first = step is not None and step.index == 0
    return CellRecord(
        cell=job.row.cell,
        prompt_sha=job.row.prompt_sha,
        tokens_sha=job.row.tokens_sha,
        prompt_tokens=job.prompt.token_ids,
        positions=positions,
        resid=arrays,
        labels=labels,
        gen_tokens=tuple(raw.tokens),
        gen_text=text,
        status=parsed.status,
        label=None if parsed.letter is None else capturer.options[job.labels.letters.index(parsed.letter)],
        letter=parsed.letter,
        span=parsed.span,
        letter_first=letter_first,
        extra={
            "stop": raw.stop,
            "rule": parsed.rule,
            "letter_steps": raw.n_letter_steps,
            "answer_given_up": parsed.span is not None and step is None,
        },
    )


def _answer_step(tokenizer: Any, raw: RawRow, parsed: Parsed) -> LetterStep | None:
    """The step whose token wrote the accepted letter; None without one, or where it gave way to newer ones.

    The first token's step is the end of the prompt, which is always kept.
    """
    if parsed.span is None:
        return None
    first = LetterStep(0, raw.resid["prompt_end"], raw.prompt_read)
    for step in (*reversed(raw.letter_steps), first):
        before, upto = (
            len(tokenizer.decode(raw.tokens[:n], skip_special_tokens=True, clean_up_tokenization_spaces=False))
            for n in (step.index, step.index + 1)
        )
        if before <= parsed.span[0] and parsed.span[1] <= upto:
            return step
    return None


def _sites(
    capturer: Capturer, job: Job, raw: RawRow, step: LetterStep | None
) -> tuple[dict[str, int], dict[str, Tensor], dict[str, LabelRead]]:
    """Positions (-1 where absent), residuals and label reads of the sites that this row has."""
    wanted = capturer.settings.positions
    n_prompt = len(job.prompt.token_ids)
    places = {
        "prompt_end": n_prompt - 1,
        "persona_end": job.prompt.persona_end,
        "case_mean": None if job.prompt.case_tokens is None else job.prompt.case_tokens[1] - 1,
        "answer": None if step is None else n_prompt - 1 + step.index,
        "response_mean": n_prompt + len(raw.tokens) - 1 if "response_mean" in raw.resid else None,
    }
    found = dict(raw.resid)
    labels = {"prompt_end": raw.prompt_read}
    if step is not None:
        found["answer"] = step.resid
        # Where the letter comes first both sites are one position: its label tokens are those of the prompt's end.
        read = raw.prompt_read if step.index == 0 else _in_option_order(step.read, capturer.letters, job.labels.letters)
        if np.isfinite(read.logp).all():  # else a letter has no token of the written form, and no read is made
            labels["answer"] = read
    positions = {name: -1 if places[name] is None else int(places[name] or 0) for name in wanted}
    return positions, {name: found[name] for name in wanted if positions[name] >= 0}, labels


def _in_option_order(read: LabelRead, letters: tuple[str, ...], by_option: tuple[str, ...]) -> LabelRead:
    """A read over the task's letters, reordered by the option that each letter stands for in this cell."""
    order = [letters.index(letter) for letter in by_option]
    return replace(read, logp=read.logp[order])


def _to_numpy(value: Tensor, dtype: str) -> np.ndarray:
    torch_dtype, numpy_dtype = _STORED[dtype]
    cast = value.to("cpu", torch_dtype).contiguous()
    if torch_dtype is torch.bfloat16:
        return cast.view(torch.int16).numpy().view(numpy_dtype)
    return cast.numpy()


def _refuse_nonfinite(arrays: dict[str, np.ndarray], labels: dict[str, LabelRead], layers: tuple[int, ...]) -> None:
    for position, array in arrays.items():
        bad = ~np.isfinite(array.astype(np.float32)).all(axis=1)
        if bad.any():
            raise RowRefused("NonFinite", f"residual point {layers[int(bad.argmax())]} at {position} is not finite")
    if not np.isfinite(labels["prompt_end"].logp).all():
        raise RowRefused("NonFinite", "the label log-probabilities at prompt_end are not finite")
