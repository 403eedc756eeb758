"""The answers of one store as texts that another study gives. Knows stores and studies; loads no model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from probe.stages.donors import refuse_other_texts
from probe.store import Store, open_store
from probe.study import GivenSpec, Study
from probe.values import Condition, GivenText, ProbeError, is_cut
from probe.values.nearest import nearest


def with_given_texts(study: Study, tokenizer_sha256: str) -> Study:
    """The study with the texts of its ``given.store`` read; any other study as it is.

    Every generated answer of the named personas to a case of the study is a text (an empty one is none). Its source is
    the persona, and behind it wording and seed where they are not the first (``nurse, seed 2``); it is given under the
    instruction and rotation that it answered, to every wording of every persona. Where the store was captured with this
    very tokenizer, the answer's own tokens are given.

    Raises:
        ProbeError: there is no such store or persona, the store has another text of a case, or no answer at all.
    """
    given = study.given
    if given is None or given.store is None:
        return study
    store = open_store(given.store, warn=False)
    _refuse_unknown(store, study, given)
    same = store.manifest["model"].get("tokenizer_sha256") == tokenizer_sha256
    known = {case.id for case in study.cases}
    texts = tuple(text for text in _texts(store, given, same=same) if text.case in known)
    if not texts:
        raise ProbeError(
            f"{given.store} has no generated answer to a case of this study; run the study of that store first"
        )
    return replace(study, given=GivenSpec(texts=texts, only=given.only))


def _texts(store: Store, given: GivenSpec, *, same: bool) -> Iterator[GivenText]:
    """The generated answers of the chosen personas, in the order of the store's plan."""
    if not any(row.cell.condition.given == "" for row in store.plan.rows):
        return
    view = store.select(persona=given.personas, given="", intervention="")
    for row, text, tokens in zip(view.rows, view.texts()["gen_text"], view.gen_tokens(), strict=True):
        cell, extra = row.planned.cell, row.located.entry.get("extra") or {}
        if text.strip():
            yield GivenText(
                cell.case,
                _source(cell.persona, cell.condition),
                text,
                cell.condition.instruction,
                cell.condition.rotation,
                tuple(tokens.tolist()) if same else None,
                is_cut(str(extra.get("stop", "end"))),
            )


def _source(persona: str, condition: Condition) -> str:
    """The persona, and what else tells two answers of it to one prompt apart."""
    parts = {"wording": condition.wording, "seed": condition.seed, "prefix": condition.prefix}
    parts |= {"edition": condition.edition}
    return ", ".join([persona, *(f"{name} {value}" for name, value in parts.items() if value)])


def _refuse_unknown(store: Store, study: Study, given: GivenSpec) -> None:
    """The personas must be there, and the texts must answer these very cases."""
    personas = [str(persona["id"]) for persona in store.plan.personas]
    for persona in given.personas or ():
        if persona not in personas:
            raise ProbeError(f"{given.store} has no persona {persona!r}. {nearest(persona, personas, 'persona')}")
    refuse_other_texts(store, study)
