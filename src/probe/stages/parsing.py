"""Answers of a store read anew. Knows generated texts and parser settings; runs no model and changes no store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probe.prompts import Parsed, parse_answer, parser_name
from probe.stages.analysis import study_of
from probe.store import Store, View
from probe.study.located import in_memory
from probe.study.parser_files import load_parser, read_parser
from probe.values import DEFAULT_PARSER, ParserSettings, ProbeError, is_cut

BUILTIN = "builtin"
"""What stands for the parser without settings, where a file of settings is asked for."""


@dataclass(frozen=True, eq=False)
class Answer:
    """A stored answer as it reads now, beside what its capture made of it.

    ``labels`` maps each letter to the option that it stood for in this cell; ``recorded`` has the ``status``, ``label``
    and ``span`` of the capture.
    """

    persona: str
    case: str
    condition: str
    text: str
    parsed: Parsed
    labels: Mapping[str, str]
    recorded: Mapping[str, Any]

    @property
    def label(self) -> str | None:
        """The option that the answer states."""
        return None if self.parsed.letter is None else self.labels[self.parsed.letter]

    @property
    def same_place(self) -> bool:
        """Whether the label stands where the capture found it, or is absent from both."""
        span = self.recorded.get("span")
        return self.parsed.span == (None if span is None else tuple(span))

    @property
    def same(self) -> bool:
        """Whether status and label are those of the capture."""
        return (self.parsed.status, self.label) == (self.recorded["status"], self.recorded["label"])


@dataclass(frozen=True, eq=False)
class Reparsed:
    """A store's table with every answer read anew; ``changes`` counts rows by ``(status or label before, after)``."""

    table: pd.DataFrame
    changes: Mapping[tuple[str, str], int]

    def __str__(self) -> str:
        n = sum(self.changes.values())
        told = ", ".join(f"{was} -> {now} {count:,}" for (was, now), count in self.changes.items())
        return f"{n:,} of {len(self.table):,} answers are read differently" + (f": {told}" if told else "")


@dataclass(frozen=True, eq=False)
class RereadStore(Store):
    """A store whose ``table()`` has every answer read anew; all else, selections too, is as it was captured."""

    reparsed: Reparsed = field(kw_only=True)

    def table(self) -> pd.DataFrame:
        """As ``Store.table``, with the labels of another reading."""
        return self.reparsed.table.copy()


def reread(source: Store | pd.DataFrame, parser: str | Path) -> RereadStore:
    """An open store with every answer read anew, by the settings of a YAML file or by ``builtin``.

    Raises:
        ProbeError: the source is a table, which holds no answers, or the settings break a rule.
    """
    if not isinstance(source, Store):
        raise ProbeError("a table of predictions holds no answers to read anew; --parser needs a study or a store")
    kept = {known.name: getattr(source, known.name) for known in fields(source) if known.init}
    return RereadStore(**kept, reparsed=reparse(source, parser_of(parser)))


def parser_of(name: str | Path) -> ParserSettings:
    """The settings in a YAML file, or those of ``builtin``.

    Raises:
        StudyError: the file breaks a rule of docs/parsing.md.
    """
    return DEFAULT_PARSER if str(name) == BUILTIN else load_parser(Path(name))


def own_parser(store: Store) -> ParserSettings:
    """The settings that the study of a store has under ``task.parser``; the default without any."""
    task = study_of(store).get("task")
    written = task.get("parser") if isinstance(task, Mapping) else None
    return DEFAULT_PARSER if written is None else read_parser(in_memory(written, f"task.parser of {store.place.url}"))


def answers(store: Store, settings: ParserSettings, view: View | None = None) -> Iterator[Answer]:
    """Every answer of a store, or of a selection of it, read with these settings, in the order of its table.

    A cut answer stays ``truncated``. The texts that may stand for letters are those that the case was shown.

    Raises:
        ProbeError: the store does not say which letters its options had.
    """
    labels = store.manifest["labels"]
    options, letters = store.layout.options, tuple(labels.get("letters") or ())
    if len(letters) != len(options):
        raise ProbeError(
            f"answers are read by the letters of the options, and the manifest of {store.place.url} lists "
            f"{len(letters)} letters for {len(options)} options; its labels can be taken as they are, without --parser"
        )
    view = store.select() if view is None else view
    for row, text in zip(view.rows, view.texts()["gen_text"], strict=True):
        entry, cell = row.located.entry, row.planned.cell
        shown = tuple(letters[(i + cell.condition.rotation) % len(letters)] for i in range(len(letters)))
        extra = entry.get("extra") or {}
        stop = extra.get("stop")
        parsed = parse_answer(
            text,
            shown,
            truncated=entry["status"] == "truncated" if stop is None else is_cut(stop),
            texts=tuple(row.case.get("choices") or labels.get("texts") or ()),
            settings=settings,
            reasoning_open=bool(extra.get("reasoning_open")),
        )
        by_letter = dict(zip(shown, options, strict=True))
        yield Answer(cell.persona, cell.case, cell.condition.name, text, parsed, by_letter, entry)


def reparse(store: Store, settings: ParserSettings) -> Reparsed:
    """The table of a store with every stored answer read anew; the store stays as it is.

    ``y_gen status letter letter_first parser`` are recomputed. The captured reads of the answer site
    (``stated_logp_*``, ``stated_label_mass``) were made where the capture found the letter: they are kept where the
    letter still stands there, and absent (NaN) elsewhere. ``letter_first`` is that of the capture under the same
    condition; for another place it says that nothing but spaces stands before the letter.
    """
    table = store.table()
    read = list(answers(store, settings))
    table["y_gen"] = pd.Series([answer.label for answer in read], dtype=object)
    table["status"] = [answer.parsed.status for answer in read]
    written = [None if answer.parsed.in_words else answer.parsed.letter for answer in read]
    table["letter"] = pd.Series(written, dtype=object)
    table["letter_first"] = [_letter_first(answer) for answer in read]
    table["parser"] = parser_name(settings)
    moved = np.array([not answer.same_place for answer in read], dtype=bool)
    at_answer = [name for name in table.columns if str(name).startswith("stated_")]
    table.loc[moved, at_answer] = np.nan
    changes = Counter(
        (answer.recorded["label"] or answer.recorded["status"], answer.label or answer.parsed.status)
        for answer in read
        if not answer.same
    )
    return Reparsed(table, dict(changes.most_common()))


def _letter_first(answer: Answer) -> bool:
    if answer.same_place:
        return bool(answer.recorded["letter_first"])
    span = answer.parsed.span
    return span is not None and not answer.parsed.in_words and not answer.text[: span[0]].strip()


def mixed_parsers(table: pd.DataFrame) -> str:
    """What to say of a table whose answers were read by several parsers; empty where one read them all."""
    if "parser" not in table:
        return ""
    counts = table["parser"].value_counts()
    if len(counts) < 2:
        return ""
    told = ", ".join(f"{n:,} by {f'parser {name}' if name else 'an earlier one'}" for name, n in counts.items())
    return (
        f"the answers of this store were read by different parsers ({told}), so their labels do not compare; "
        f"`probe metrics STORE --parser {BUILTIN}`, or a file of settings, reads all of them the same way"
    )
