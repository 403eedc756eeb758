"""The text swap: every persona's texts under another's prompt, captured and told apart. Knows both wings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from probe.mechanism.relation.verdicts import MARGIN
from probe.mechanism.swap.listener import confusion, identifiability, parroting
from probe.mechanism.swap.paths import path_effects, path_verdicts
from probe.stages.analysis import save_tables
from probe.stages.places import beside, figures_path, store_path
from probe.stages.swap_reads import control, left_out, swap_reads
from probe.store import Store, open_store
from probe.study import Study
from probe.values import ProbeError, StoreError

if TYPE_CHECKING:
    from probe.stages.policy import CaptureOutcome, CapturePolicy

SUFFIX = "-swap"
"""The reads lie beside the captures, in a store of their own: ``cache/<study name>-swap``."""


@dataclass(frozen=True)
class SwapRequest:
    """What is swapped: with which base (None: the study's), every persona with every other or each with the base, and
    whether the texts are read again with persona words masked, ``words`` among them."""

    base: str | None = None
    all_pairs: bool = False
    mask: bool = True
    words: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Swapped:
    """The open store of the reads, how its capture ended, and the words that were masked."""

    store: Store
    outcome: CaptureOutcome
    words: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SwapTables:
    """What a swap says: see the functions of :mod:`probe.mechanism.swap.paths` and of ``listener`` beside it.

    ``control`` and ``left_out`` need the store of the generated answers and are empty without it. ``elsewhere`` counts
    masked reads that were left out because their letter was found at another token.
    """

    effects: pd.DataFrame
    verdicts: pd.DataFrame
    identifiability: pd.DataFrame
    listener: pd.DataFrame
    parroting: pd.DataFrame
    left_out: pd.DataFrame = field(default_factory=pd.DataFrame)
    control: pd.DataFrame = field(default_factory=pd.DataFrame)
    elsewhere: int = 0

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by the names of their files."""
        return {f"swap_{name}": table for name, table in vars(self).items() if isinstance(table, pd.DataFrame)}


def capture_swap(
    study: Study,
    request: SwapRequest | None = None,
    *,
    store: str | Path | None = None,
    fresh: bool = False,
    policy: CapturePolicy | None = None,
) -> Swapped:
    """Read every persona's texts under the other prompts, up to their letters; a second call resumes.

    Answers that were not generated yet are captured first, into ``store`` (by default ``cache/<study name>``); the
    reads lie beside it (:data:`SUFFIX`). ``fresh`` starts the reads again and leaves the answers.

    Raises:
        ProbeError: the study, the model or a store refuses, or no answer has a letter behind a text.
        Interrupted: SIGINT or SIGTERM; what was committed stays.
    """
    from probe.stages.capture import capture
    from probe.stages.resolution import resolve
    from probe.stages.swap_texts import mask_of, persona_words, swap_study, texts_to_swap, with_base

    asked = request or SwapRequest()
    if policy is not None and policy.share:
        raise ProbeError(
            "a swap is planned from all answers, so it has one writer; fill the store of the answers first with "
            "`probe capture --writer`, then start the swap without it"
        )
    study, path = with_base(study, asked.base), store_path(study, store)
    source = open_store(capture(study, store=path, policy=policy).store, warn=False)
    tokenizer = resolve(study).tokenizer
    words = persona_words(study, asked.words) if asked.mask else ()
    mask = mask_of(tokenizer, words) if words else None
    texts = texts_to_swap(source, study, tokenizer, all_pairs=asked.all_pairs, mask=mask)
    outcome = capture(swap_study(study, texts), store=beside(path, SUFFIX), fresh=fresh, policy=policy)
    return Swapped(open_store(outcome.store, warn=False), outcome, words)


def swap_tables(
    store: Store, source: Store | None = None, *, base: str | None = None, margin: float = MARGIN
) -> SwapTables:
    """What the reads of a swap say; ``source`` is the store of the generated answers, for the control.

    Raises:
        ProbeError: the store holds no such reads, or none of the base's texts.
    """
    reads = swap_reads(store)
    base = base or str(store.study.get("base", "none"))
    return SwapTables(
        effects=path_effects(reads, base),
        verdicts=path_verdicts(reads, base, margin),
        identifiability=identifiability(reads, base),
        listener=confusion(reads, base),
        parroting=parroting(reads, base) if reads["n_masked"].any() else pd.DataFrame(),
        left_out=pd.DataFrame() if source is None else left_out(source),
        control=pd.DataFrame() if source is None else control(reads, source),
        elsewhere=int(reads.attrs["elsewhere"]),
    )


def run_swap(
    target: Study | Path,
    request: SwapRequest,
    *,
    store: str | Path | None = None,
    fresh: bool = False,
    policy: CapturePolicy | None = None,
    margin: float = MARGIN,
    out: Path | None = None,
) -> int:
    """Capture where ``target`` is a study, analyse, draw and tell; the exit status.

    A folder is a store of reads, of which the analysis alone is made.
    """
    from probe.report.drawn import save
    from probe.report.swap import swap_figures
    from probe.stages.terminal import announce_capture, announce_files, say
    from probe.stages.terminal_swap import show_swap

    status, base = 0, request.base
    if isinstance(target, Study):
        swapped = capture_swap(target, request, store=store, fresh=fresh, policy=policy)
        announce_capture(swapped.outcome)
        if swapped.words:
            say(f"masked words: {', '.join(swapped.words)}")
        name, reads, status = target.name, swapped.store, swapped.outcome.exit_status
        base = base or target.base
    else:
        name, reads = target.name.removesuffix(SUFFIX), open_store(target, warn=False)
    folder = figures_path(name, out)
    tables = swap_tables(reads, source_of(reads), base=base, margin=margin)
    show_swap(tables)
    written = save_tables(folder, tables.tables)
    for file, drawn in swap_figures(tables.effects, tables.verdicts, tables.listener).items():
        written += save(drawn, folder, file)
    announce_files(folder, written)
    return status


def source_of(store: Store) -> Store | None:
    """The store of the generated answers beside a store of their reads; None where there is none."""
    url = store.place.url
    if not url.endswith(SUFFIX):
        return None
    try:
        return open_store(url.removesuffix(SUFFIX), warn=False)
    except StoreError:
        return None


def text_swap(
    study: Study,
    *,
    base: str | None = None,
    all_pairs: bool = False,
    mask: bool = True,
    words: Collection[str] = (),
    store: str | Path | None = None,
    margin: float = MARGIN,
) -> SwapTables:
    """Where each persona acts on its stated label: the text swap of a study, captured where it is not yet.

    See :func:`capture_swap` and :func:`swap_tables`; this is both in one call.

    Raises:
        ProbeError: as these.
    """
    if isinstance(words, str):
        raise ProbeError(f"words is a list of words, found the text {words!r}; put it in brackets")
    swapped = capture_swap(study, SwapRequest(base, all_pairs, mask, tuple(words)), store=store)
    return swap_tables(swapped.store, source_of(swapped.store), base=base or study.base, margin=margin)
