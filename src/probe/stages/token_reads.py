"""Which tokens a cell's sites and labels read. Knows jobs and a tokenizer; loads no weights and captures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from probe.capture.planning import Job
from probe.prompts import LabelTokens, PromptBuilder, continuation
from probe.stages.terminal import say
from probe.study import Study
from probe.values.visible import visible

LATER = {
    "answer": "the token before the letter that the parser accepts, once the answer is there",
    "response_mean": "every generated token",
    "after_reasoning": "the forced text, once the answer's reasoning is closed",
}
"""Sites that only a generated answer has."""

_AROUND = 2


@dataclass(frozen=True)
class SiteToken:
    """One site: the index of the token that it reads (None where it has none, or has none yet), the token, what stands
    before and after it, and a remark."""

    site: str
    index: int | None = None
    token_id: int | None = None
    token: str = ""
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class LabelVariant:
    """One spelling of a label at a site: the tokens that write it. Those of several are scored as a continuation."""

    site: str
    option: str
    letter: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class CellTokens:
    """What one cell reads.

    ``structural`` counts the prompt's special tokens, ``of_template`` those that the chat template writes for any text:
    they differ where a text would end a turn.
    """

    persona: str
    case: str
    condition: str
    n_tokens: int
    structural: int
    of_template: int
    sites: tuple[SiteToken, ...]
    labels: tuple[LabelVariant, ...]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def cell_tokens(study: Study, builder: PromptBuilder, job: Job) -> CellTokens:
    """Every site that a study captures or reads labels at, for the cell of one job."""
    cell = job.row.cell
    persona = study.persona(cell.persona).text(cell.condition.wording)
    structural, of_template = builder.structural_tokens(job.prompt, persona, cell.condition)
    wanted = [*study.capture.positions, *(site for site in study.labels.sites if site not in study.capture.positions)]
    at_site = {"prompt_end": job.labels}
    if job.forced is not None:
        at_site["forced"] = job.forced.labels
    if job.reopener is not None:
        at_site["after_reasoning"] = job.reopener.labels
    read = {site: labels for site, labels in at_site.items() if site in study.labels.sites}
    return CellTokens(
        cell.persona,
        cell.case,
        cell.condition.name,
        len(job.prompt.token_ids),
        structural,
        of_template,
        tuple(token for site in wanted for token in _site(builder.tokenizer, job, site)),
        tuple(one for site, labels in read.items() for one in _variants(builder.tokenizer, study, site, labels)),
        tuple(_notes(builder.tokenizer, job)),
    )


def show_cell_tokens(out: Console, found: CellTokens) -> None:
    """The sites with their tokens, then the labels with their ids, as two tables."""
    sites = Table("site", "index", "token", "before | after")
    for site in found.sites:
        if site.index is None:
            sites.add_row(site.site, "", f"[dim]{escape(site.note)}[/dim]", "")
            continue
        around = f"{_shown(site.before)} | {_shown(site.after) or 'the answer'}"
        sites.add_row(site.site, str(site.index), f"{site.token_id} {_shown([site.token])}", around)
    out.print(sites)
    labels = Table("labels at", "option", "letter", "tokens")
    by_label: dict[tuple[str, str, str], list[str]] = {}
    for one in found.labels:
        ids = "+".join(map(str, one.token_ids))
        by_label.setdefault((one.site, one.option, one.letter), []).append(f"{ids} {_shown(one.tokens)}")
    for (place, option, letter), variants in by_label.items():
        labels.add_row(place, escape(visible(option)), escape(letter), ", ".join(variants))
    out.print(labels)
    same = "as many as" if found.structural == found.of_template else "but"
    say(f"{found.n_tokens} tokens, {found.structural} of them special: {same} the template's own {found.of_template}")
    for note in found.notes:
        say(note)


def _shown(pieces: Sequence[str]) -> str:
    return escape(" ".join(repr(piece) for piece in pieces))


def _site(tokenizer: Any, job: Job, site: str) -> Iterator[SiteToken]:
    prompt = job.prompt
    if site in LATER:
        fed = ""
        if site == "after_reasoning" and job.reopener is not None:
            fed = f" ({job.reopener.forced!r})"
        yield SiteToken(site, note=LATER[site] + fed)
    elif site == "forced" and job.forced is not None:
        whole = (*prompt.token_ids, *job.forced.token_ids)
        yield _token(tokenizer, site, whole, len(whole) - 1)
    elif site == "case_mean" and prompt.case_tokens is not None:
        first, stop = prompt.case_tokens
        yield _token(tokenizer, "case_mean (first)", prompt.token_ids, first)
        yield _token(tokenizer, "case_mean (last)", prompt.token_ids, stop - 1)
    else:
        place = {"prompt_end": len(prompt.token_ids) - 1, "persona_end": prompt.persona_end}.get(site)
        yield SiteToken(site, note="absent") if place is None else _token(tokenizer, site, prompt.token_ids, place)


def _token(tokenizer: Any, site: str, ids: Sequence[int], at: int) -> SiteToken:
    start, stop = max(at - _AROUND, 0), at + 1 + _AROUND
    pieces = [tokenizer.decode([token]) for token in ids[start:stop]]
    here = at - start
    return SiteToken(site, at, ids[at], pieces[here], tuple(pieces[:here]), tuple(pieces[here + 1 :]))


def _variants(tokenizer: Any, study: Study, site: str, labels: LabelTokens) -> Iterator[LabelVariant]:
    spelled = labels.spelled or ((),) * len(labels.letters)
    rows = zip(study.task.option_ids, labels.letters, labels.ids, spelled, strict=True)
    for option, letter, single, several in rows:
        for ids in (*((token,) for token in single), *several):
            yield LabelVariant(site, option, letter, ids, tuple(tokenizer.decode([token]) for token in ids))


def _notes(tokenizer: Any, job: Job) -> Iterator[str]:
    if job.reasoning_open:
        yield (
            "the chat template opens the reasoning: prompt_end stands inside it, and an answer that never closes it "
            "states no label"
        )
        if job.forced is not None and job.reopener is None:
            yield "the forced text is fed inside the reasoning, unless it begins with its close, as '</think>'"
    if job.forced is not None:
        fed = tokenizer.decode(list(job.forced.token_ids))
        letter = job.forced.labels.letters[0]
        spaced = continuation(tokenizer, fed, f" {letter}")
        if spaced is not None and len(spaced) > 1 and not job.forced.labels.spelled:
            yield (
                f"after {fed!r} the letter with a space before it is {len(spaced)} tokens, and only the bare letter is "
                "read; let labels.forced end in a space where the model writes one"
            )
