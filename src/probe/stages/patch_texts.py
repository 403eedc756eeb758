"""Answers of a store as texts to be forced, up to their letters. Knows stores and tokens; knows no model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from probe.store import Store
from probe.values import CellRecord, Condition


@dataclass(frozen=True)
class StatedText:
    """The tokens of an answer before its letter, and the token that wrote the letter."""

    tokens: tuple[int, ...]
    letter: int


def stated_texts(store: Store, personas: Collection[str]) -> dict[tuple[str, str, Condition], StatedText | str]:
    """The answers that personas generated under their first wording, by (author, case, condition); or why one has no
    letter behind a text. Of several seeds each is a condition of its own."""
    found: dict[tuple[str, str, Condition], StatedText | str] = {}
    for record in store.select(persona=list(personas), given="", wording=0).records():
        condition = record.cell.condition
        if not condition.intervention:
            found[record.cell.persona, record.cell.case, replace(condition, edition="")] = _text(record)
    return found


def _text(record: CellRecord) -> StatedText | str:
    at = record.positions.get("answer", -1)
    n = at - len(record.prompt_tokens) + 1
    if record.status != "parsed":
        return record.status
    if record.letter is None:
        return "label in words"
    if at < 0 or n >= len(record.gen_tokens):
        return "no read at the letter"
    if n <= 0:
        return "letter first"
    return StatedText(record.gen_tokens[:n], record.gen_tokens[n])
