"""Jobs into cell records: batches by length, answers parsed, sites assigned. Knows the pass; knows no store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from probe.prompts import LetterVocabulary, Parsed, parse_answer, parser_name
from probe.values import DEFAULT_PARSER, CellRecord, LabelRead, ParserSettings, RowRefused

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
    allow_nonfinite: bool = False
    parser: ParserSettings = DEFAULT_PARSER


@dataclass(frozen=True)
class FailedRow:
    """A row whose pass gave something that must not be stored as data."""

    job: Job
    kind: str
    reason: str


@dataclass(frozen=True, eq=False)
class ShardResult:
    """The records of a shard in the order of its jobs, the rows that failed, and how many rows each pass had."""

    records: list[CellRecord]
    failed: list[FailedRow]
    batches: tuple[int, ...]


def capture_shard(capturer: Capturer, jobs: Sequence[Job], on_rows: Callable[[int], None]) -> ShardResult:
    """Run the jobs in batches of similar length; out of memory, the same rows again in batches of half the size.

    The smaller size holds to the end of the shard. A row that does not fit into memory alone has failed; the others
    run. ``on_rows`` is told how many rows each finished batch had.
    """
    done: dict[str, CellRecord] = {}
    failed: list[FailedRow] = []
    batches: list[int] = []
    left = sorted(jobs, key=lambda job: (len(job.prompt.token_ids), job.row.cell.row_id))
    size = capturer.batch_size
    while left:
        batch = left[:size]
        raws = _run(capturer, batch)
        if raws is None and len(batch) > 1:
            size = len(batch) // 2
            continue
        if raws is None:
            failed.append(_without_memory(batch[0]))
        for job, raw in zip(batch, raws or (), strict=False):
            try:
                done[job.row.cell.row_id] = _record(capturer, job, raw)
            except RowRefused as refusal:
                failed.append(FailedRow(job, refusal.kind, refusal.reason))
        left = left[len(batch) :]
        batches.append(len(batch))
        on_rows(len(batch))
    records = [done[job.row.cell.row_id] for job in jobs if job.row.cell.row_id in done]
    return ShardResult(records, failed, tuple(batches))


def _without_memory(job: Job) -> FailedRow:
    length = len(job.prompt.token_ids)
    reason = f"a pass over this row alone ({length} prompt tokens) does not fit into the device's memory"
    return FailedRow(job, "OutOfMemory", reason)


def _is_out_of_memory(error: Exception) -> bool:
    """Accelerators have an error of their own; the CPU's allocator and MPS only say it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory"))


def _run(capturer: Capturer, batch: list[Job]) -> list[RawRow] | None:
    """One pass; None where it does not fit into memory."""
    rows = [
        PassInput(
            job.prompt.token_ids,
            job.prompt.persona_end,
            job.prompt.case_tokens,
            job.labels,
            key=(job.row.cell.row_id, job.row.cell.condition.seed),
        )
        for job in batch
    ]
    try:
        return run_pass(capturer.backend, rows, capturer.settings, capturer.vocabulary)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
    if capturer.backend.facts.device.type == "cuda":
        torch.cuda.empty_cache()  # what the failed pass held lies in pieces of the larger batch
    return None


def _record(capturer: Capturer, job: Job, raw: RawRow) -> CellRecord:
    text = capturer.tokenizer.decode(raw.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    parsed = parse_answer(
        text, job.labels.letters, truncated=raw.stop != "end", texts=job.texts, settings=capturer.parser
    )
    step = _answer_step(capturer.tokenizer, raw, parsed)
    positions, resid, labels = _sites(capturer, job, raw, step)
    arrays = {name: _to_numpy(value, capturer.dtype) for name, value in resid.items()}
    nonfinite, where = _nonfinite(arrays, labels, capturer.settings.layers)
    if nonfinite and not capturer.allow_nonfinite:
        raise RowRefused("NonFinite", f"{where} (--allow-nonfinite stores such rows, marked)")
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
        letter=None if parsed.in_words else parsed.letter,
        span=parsed.span,
        letter_first=letter_first,
        nonfinite=nonfinite,
        extra={
            "stop": raw.stop,
            "rule": parsed.rule,
            "parser": parser_name(capturer.parser),
            "letter_steps": raw.n_letter_steps,
            "answer_given_up": parsed.span is not None and not parsed.in_words and step is None,
        },
    )


def _answer_step(tokenizer: Any, raw: RawRow, parsed: Parsed) -> LetterStep | None:
    """The step whose token wrote the accepted letter; None where an option's words stand for it, or it gave way.

    The first token's step is the end of the prompt, which is always kept.
    """
    if parsed.span is None or parsed.in_words:
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
        if not np.isneginf(read.logp).any():  # else a letter has no token of the written form, and no read is made
            labels["answer"] = read
    positions = {name: -1 if places[name] is None else int(places[name] or 0) for name in wanted}
    return positions, {name: found[name] for name in wanted if positions[name] >= 0}, labels


def _in_option_order(read: LabelRead, letters: tuple[str, ...], by_option: tuple[str, ...]) -> LabelRead:
    """A read over the task's letters, reordered by the option that each letter stands for in this cell."""
    order = [letters.index(letter) for letter in by_option]
    return replace(
        read,
        logp=read.logp[order],
        variant_ids=tuple(read.variant_ids[k] for k in order) if read.variant_ids else (),
        variant_logp=tuple(read.variant_logp[k] for k in order) if read.variant_logp else (),
    )


def _to_numpy(value: Tensor, dtype: str) -> np.ndarray:
    torch_dtype, numpy_dtype = _STORED[dtype]
    cast = value.to("cpu", torch_dtype).contiguous()
    if torch_dtype is torch.bfloat16:
        return cast.view(torch.int16).numpy().view(numpy_dtype)
    return cast.numpy()


def _nonfinite(arrays: dict[str, np.ndarray], labels: dict[str, LabelRead], layers: tuple[int, ...]) -> tuple[int, str]:
    """How many of a row's values are not finite, and where the first of them stand."""
    count, places = 0, []
    for position, array in arrays.items():
        bad = np.asarray(~np.isfinite(array.astype(np.float32)).all(axis=1))
        if bad.any():
            count += int((~np.isfinite(array[bad].astype(np.float32))).sum())
            points = ", ".join(str(layers[k]) for k in np.flatnonzero(bad))
            places.append(f"the residual at {position} is not finite at point {points}")
    for site, read in labels.items():
        bad_labels = int((~np.isfinite([*read.logp, read.mass, read.entropy])).sum())
        if bad_labels:
            count += bad_labels
            places.append(f"the label log-probabilities at {site} are not finite")
    return count, "; ".join(places)
