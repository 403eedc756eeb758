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
from probe.capture.decoding import stream_pass
from probe.capture.planning import Job
from probe.capture.raw_rows import LetterStep, RawRow
from probe.capture.site_forks import ForkedSites, forked_sites, forks_of
from probe.models.points import HookPoint
from probe.models.protocol import Backend
from probe.prompts import LabelTokens, LetterVocabulary, Parsed, parse_answer, parser_name
from probe.study import LabelSpec
from probe.values import DEFAULT_PARSER, CellRecord, LabelRead, ParserSettings, RowRefused, is_cut

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
    label_sites: tuple[str, ...] = LabelSpec().sites


@dataclass(frozen=True)
class FailedRow:
    """A row whose pass gave something that must not be stored as data."""

    job: Job
    kind: str
    reason: str


@dataclass(frozen=True, eq=False)
class ShardResult:
    """The records of a shard in the order of its jobs, the rows that failed, and how many rows ran at a time: the size
    asked for, or all rows, then half of that after each time that memory ran out."""

    records: list[CellRecord]
    failed: list[FailedRow]
    batches: tuple[int, ...]


def capture_shard(capturer: Capturer, jobs: Sequence[Job], on_rows: Callable[[int], None]) -> ShardResult:
    """Run the jobs in one pass; out of memory, those that have not ended in another, half as many at a time.

    The smaller size holds to the end of the shard. A row that does not fit into memory alone has failed; the others
    run. ``on_rows`` is told of each row that has ended.
    """
    done: dict[str, CellRecord] = {}
    failed: list[FailedRow] = []
    left = list(jobs)
    sizes = [min(capturer.batch_size, len(left))]
    while left:
        ended: set[int] = set()
        some = left if sizes[-1] > 1 else left[:1]  # one by one, so that a row that does not fit is known
        for place, raw in _ended(capturer, some, sizes[-1]):
            ended.add(place)
            try:
                done[some[place].row.cell.row_id] = _record(capturer, some[place], raw)
            except RowRefused as refusal:
                failed.append(FailedRow(some[place], refusal.kind, refusal.reason))
            on_rows(1)
        if len(ended) < len(some) and sizes[-1] > 1:
            sizes.append(min(sizes[-1], len(some) - len(ended)) // 2 or 1)
        elif len(ended) < len(some):
            failed.append(_without_memory(some[0]))
            ended.add(0)
            on_rows(1)
        left = [job for place, job in enumerate(left) if place not in ended]
    records = [done[job.row.cell.row_id] for job in jobs if job.row.cell.row_id in done]
    return ShardResult(records, failed, tuple(sizes))


def pass_input(job: Job) -> PassInput:
    """What a pass is asked of a job."""
    return PassInput(
        job.prompt.token_ids,
        job.prompt.persona_end,
        job.prompt.case_tokens,
        job.labels,
        key=(job.row.cell.row_id, job.row.cell.condition.seed),
        forks=forks_of(job),
        reasoning_end=job.reopener,
        given=None if job.given is None else job.given.token_ids,
        interventions=job.interventions,
        persona_tokens=job.prompt.persona_tokens,
    )


def _without_memory(job: Job) -> FailedRow:
    length = len(job.prompt.token_ids)
    reason = f"a pass over this row alone ({length} prompt tokens) does not fit into the device's memory"
    return FailedRow(job, "OutOfMemory", reason)


def _is_out_of_memory(error: Exception) -> bool:
    """Accelerators have an error of their own; the CPU's allocator and MPS only say it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory"))


def _ended(capturer: Capturer, jobs: Sequence[Job], size: int) -> Iterator[tuple[int, RawRow]]:
    """The rows of one pass as they end, by their places among the jobs; they stop where memory runs out."""
    rows = [pass_input(job) for job in jobs]
    try:
        yield from stream_pass(capturer.backend, rows, capturer.settings, capturer.vocabulary, batch_size=size)
    except (RuntimeError, MemoryError) as error:
        # Of processes that hold a model together one alone cannot begin again with fewer rows.
        if not _is_out_of_memory(error) or capturer.backend.facts.tensor_parallel > 1:
            raise
    else:
        return
    if capturer.backend.facts.device.type == "cuda":
        torch.cuda.empty_cache()  # what the failed pass held lies in pieces of the larger batch


def _record(capturer: Capturer, job: Job, raw: RawRow) -> CellRecord:
    text = capturer.tokenizer.decode(raw.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    stop = "given_cut" if job.given is not None and job.given.cut else raw.stop
    parsed = parse_answer(
        text,
        job.labels.letters,
        truncated=is_cut(stop),
        texts=job.texts,
        settings=capturer.parser,
        reasoning_open=job.reasoning_open,
    )
    step = _answer_step(capturer.tokenizer, job.labels, raw, parsed)
    forked = forked_sites(job, raw.prompt_read, raw.tokens, raw.forks)
    positions, values, labels = _sites(capturer, job, raw, step, forked)
    streams = dict.fromkeys(point.stream for point in capturer.settings.points)
    arrays: dict[str, dict[str, np.ndarray]] = {stream: {} for stream in streams}
    for (stream, position), value in values.items():
        arrays[stream][position] = _to_numpy(value, capturer.dtype)
    nonfinite, where = _nonfinite(arrays, labels, capturer.settings.points)
    if raw.given_logp is not None and (bad := int((~raw.given_logp.isfinite()).sum())):
        nonfinite, where = nonfinite + bad, where or "the log-probabilities of the given text are not finite"
    if nonfinite and not capturer.allow_nonfinite:
        raise RowRefused("NonFinite", f"{where} (--allow-nonfinite stores such rows, marked)")
    letter_first = step is not None and step.index == 0
    return CellRecord(
        cell=job.row.cell,
        prompt_sha=job.row.prompt_sha,
        tokens_sha=job.row.tokens_sha,
        prompt_tokens=job.prompt.token_ids,
        positions=positions,
        resid=arrays.pop("resid", {}),
        streams=arrays,
        labels=labels,
        gen_tokens=tuple(raw.tokens),
        gen_text=text,
        status=parsed.status,
        label=None if parsed.letter is None else capturer.options[job.labels.letters.index(parsed.letter)],
        letter=None if parsed.in_words else parsed.letter,
        span=parsed.span,
        letter_first=letter_first,
        nonfinite=nonfinite,
        given_logp=() if raw.given_logp is None else tuple(raw.given_logp.tolist()),
        extra={
            "stop": stop,
            "rule": parsed.rule,
            "parser": parser_name(capturer.parser),
            "letter_steps": raw.n_letter_steps,
            "answer_given_up": parsed.span is not None and not parsed.in_words and step is None,
            **_noted(job, raw, forked),
        },
        group=job.group,
    )


def _noted(job: Job, raw: RawRow, forked: ForkedSites) -> dict[str, Any]:
    """What is recorded of a row only where there is something to say."""
    found: dict[str, Any] = {}
    if forked.absent:
        found["absent_sites"] = forked.absent
    if job.reasoning_open:
        found["reasoning_open"] = True
    if raw.given_logp is not None and raw.given_logp.isfinite().all():
        found["given_logp"] = float(raw.given_logp.double().sum())
    return found


def _answer_step(tokenizer: Any, labels: LabelTokens, raw: RawRow, parsed: Parsed) -> LetterStep | None:
    """The step whose token wrote the accepted letter; None where an option's words stand for it, or it gave way.

    The first token's step is the end of the prompt, which is always kept. A letter of several tokens is found there
    only, by its first token: no later step is known to begin one.
    """
    if parsed.span is None or parsed.in_words:
        return None
    first = LetterStep(0, raw.at("prompt_end"), raw.prompt_read)
    for step in (*reversed(raw.letter_steps), first):
        before, upto = (
            len(tokenizer.decode(raw.tokens[:n], skip_special_tokens=True, clean_up_tokenization_spaces=False))
            for n in (step.index, step.index + 1)
        )
        if before <= parsed.span[0] and (parsed.span[0] < upto if labels.spelled else parsed.span[1] <= upto):
            return step
    return None


def _sites(
    capturer: Capturer, job: Job, raw: RawRow, step: LetterStep | None, forked: ForkedSites
) -> tuple[dict[str, int], dict[tuple[str, str], Tensor], dict[str, LabelRead]]:
    """Positions (-1 where absent), activations by stream and position, and label reads of the sites of this row."""
    wanted = capturer.settings.positions
    n_prompt = len(job.prompt.token_ids)
    places = {
        "prompt_end": n_prompt - 1,
        "persona_end": job.prompt.persona_end,
        "case_mean": None if job.prompt.case_tokens is None else job.prompt.case_tokens[1] - 1,
        "answer": None if step is None else n_prompt - 1 + step.index,
        "response_mean": n_prompt + len(raw.tokens) - 1 if raw.at("response_mean") else None,
    }
    found = {**raw.values, **forked.values}
    labels = dict(forked.reads)
    if step is not None:
        found |= {(stream, "answer"): value for stream, value in step.values.items()}
        # Where the letter comes first both sites are one position: its label tokens are those of the prompt's end.
        read = labels.get("prompt_end") if step.index == 0 else step.read
        if read is not None and step.index > 0:
            read = _in_option_order(read, capturer.letters, job.labels.letters)
        # Where a letter has no token of the written form no read is made.
        if read is not None and not np.isneginf(read.logp).any():
            labels["answer"] = read
    places |= forked.positions
    positions = {name: -1 if (place := places.get(name)) is None else place for name in wanted}
    labels = {site: read for site, read in labels.items() if site in capturer.label_sites}
    return positions, {place: value for place, value in found.items() if positions.get(place[1], -1) >= 0}, labels


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


def _nonfinite(
    arrays: dict[str, dict[str, np.ndarray]], labels: dict[str, LabelRead], points: tuple[HookPoint, ...]
) -> tuple[int, str]:
    """How many of a row's values are not finite, and where the first of them stand."""
    count, places = 0, []
    for stream, position, array in ((s, p, array) for s, own in arrays.items() for p, array in own.items()):
        bad = np.asarray(~np.isfinite(array.astype(np.float32)).all(axis=1))
        if bad.any():
            count += int((~np.isfinite(array[bad].astype(np.float32))).sum())
            layers = [point.layer for point in points if point.stream == stream]
            where = ", ".join(str(layers[k]) for k in np.flatnonzero(bad))
            what = ("the residual", "at point") if stream == "resid" else (stream, "in block")
            places.append(f"{what[0]} at {position} is not finite {what[1]} {where}")
    for site, read in labels.items():
        bad_labels = int((~np.isfinite([*read.logp, read.mass, read.entropy])).sum())
        if bad_labels:
            count += bad_labels
            places.append(f"the label log-probabilities at {site} are not finite")
    return count, "; ".join(places)
