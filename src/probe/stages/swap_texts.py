"""The answers of a store as texts to be swapped, up to their letters. Knows stores, studies and tokens; no model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from probe.stages.activations import without_content
from probe.store import Store, View
from probe.study import CaptureSpec, GivenSpec, LabelSpec, Study
from probe.values import GivenText, ProbeError, is_cut
from probe.values.nearest import nearest

SWAPPED = "swapped"
"""What becomes of an answer whose letter stands behind a text; every other reason says why it is left out."""

_SOURCE = re.compile(r"(?P<persona>.*?)(?:, seed (?P<seed>[0-9]+))?(?P<masked> \[masked\])?", re.DOTALL)

_PLACEHOLDERS = ("_", "-", ".", ",")

# Function words of English and what system sentences are made of: no persona is told by them.
_FUNCTION_WORDS = """
a about above after again all also always am an and any answer are as at be because been being below between both
but by can could did do does doing done down each few for from further had has have having he her here hers him his
how i if in into is it its just like may me might more most must my never no nor not now of off on once only or
other our out over own please play role same shall she should so some such take task than that the their them then
there these they this those through to too under until up upon us very was we were what when where which while who
whom whose why will with without would you your yours acting act asked imagine following one
"""

_COMMON = frozenset(_FUNCTION_WORDS.split())


@dataclass(frozen=True)
class Author:
    """Who wrote a text, by which seed, and whether persona words are masked in it."""

    persona: str
    seed: int = 0
    masked: bool = False

    @property
    def source(self) -> str:
        """The name that the conditions of a store give to the text."""
        seed = f", seed {self.seed}" if self.seed else ""
        return f"{self.persona}{seed}{' [masked]' if self.masked else ''}"

    @staticmethod
    def of(source: str) -> Author:
        """The author that a source names."""
        found = _SOURCE.fullmatch(source)
        assert found is not None
        return Author(found["persona"], int(found["seed"] or 0), bool(found["masked"]))


@dataclass(frozen=True)
class Mask:
    """Words that are masked in a text: each token that touches one is replaced by ``token``, one for one.

    ``words`` are matched whole, in any case, with a plural or possessive s; words in capitals (ED, GP) as they are.
    """

    token: int
    words: tuple[str, ...]

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where the words stand, in characters."""
        for pattern in self._patterns:
            yield from (match.span() for match in pattern.finditer(text))

    @property
    def _patterns(self) -> list[re.Pattern[str]]:
        kinds = (
            ([word for word in self.words if word.isupper()], re.NOFLAG),
            ([word for word in self.words if not word.isupper()], re.IGNORECASE),
        )
        return [
            re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?:['’]?s)?(?!\w)", flag)
            for words, flag in kinds
            if words
        ]


def persona_words(study: Study, more: Collection[str] = ()) -> tuple[str, ...]:
    """The content words of the personas' wordings, in the order of their first use, and ``more``.

    Left out are function words of English, and words that the task's own texts use (its instructions and options): any
    answer to the task must use those. Words of two letters count only in capitals.
    """
    options = [f"{option.id} {option.text}" for option in study.task.options]
    used = {word.lower() for text in (*study.task.instructions, *options) for word in _words(text)}
    found = [word for persona in study.personas for wording in persona.wordings for word in _words(wording or "")]
    kept = [
        word if word.isupper() else word.lower() for word in found if len(word) > 2 or (word.isupper() and word[1:])
    ]
    told = [word for word in kept if word.lower() not in used | _COMMON]
    return tuple(dict.fromkeys([*told, *more]))


def mask_of(tokenizer: Any, words: Collection[str]) -> Mask:
    """The words with the token that stands in their place: an underscore, or the first of - . , that is one token.

    Raises:
        ProbeError: none of them is one token.
    """
    for mark in _PLACEHOLDERS:
        ids = tokenizer.encode(mark, add_special_tokens=False)
        if len(ids) == 1:
            return Mask(int(ids[0]), tuple(words))
    raise ProbeError(
        f"none of {' '.join(_PLACEHOLDERS)} is one token of this tokenizer, so no word can be masked; swap the texts "
        "without masks: --no-mask"
    )


def answers_by_reason(store: Store) -> pd.DataFrame:
    """The generated answers of each persona's first wording, with what becomes of them in a swap, in plan order.

    Columns: those of the table, ``span`` (of the letter, in characters) and ``reason``: ``swapped``, or why not.
    """
    view = _generated(store)
    table = view.table()
    stated = [f"stated_logp_{option}" for option in store.manifest["labels"]["options"]]
    entries = [row.located.entry for row in view.rows]
    table["span"] = pd.Series([entry.get("span") for entry in entries], dtype=object)
    table["cut"] = [is_cut(str((entry.get("extra") or {}).get("stop", "end"))) for entry in entries]
    table["reason"] = SWAPPED
    table.loc[table[stated].isna().any(axis=1), "reason"] = "no read at the letter"
    table.loc[table["letter"].isna(), "reason"] = "label in words"
    table.loc[table["letter_first"].astype(bool), "reason"] = "letter first"
    table.loc[table["status"] != "parsed", "reason"] = table["status"]
    return table


def texts_to_swap(
    store: Store, study: Study, tokenizer: Any, *, all_pairs: bool, mask: Mask | None
) -> tuple[GivenText, ...]:
    """The answers that have a letter behind a text, in their own tokens, each for the personas that are to read it.

    A persona's answer is read by itself and the base, or by all; the base's by all. With a mask each text in which a
    word is masked comes again; where there is none, the masked text is the plain one.

    Raises:
        ProbeError: no answer has a letter behind a text, or a persona's id is read as another's with a seed.
    """
    for persona_id in (persona.id for persona in study.personas):
        if Author.of(persona_id) != Author(persona_id):
            raise ProbeError(f"the id {persona_id!r} is how a text of {Author.of(persona_id)} is called; rename it")
    table, view = answers_by_reason(store), _generated(store)
    tokens, texts = view.gen_tokens(), view.texts()["gen_text"]
    found: list[GivenText] = []
    for place, row in enumerate(table.to_dict("records")):
        if row["reason"] != SWAPPED:
            continue
        persona, own = str(row["persona"]), tuple(tokens[place].tolist())
        everyone = all_pairs or persona == study.base
        text = GivenText(
            str(row["case"]),
            Author(persona, int(row["seed"])).source,
            str(texts.iloc[place]),
            int(row["instruction"]),
            int(row["rotation"]),
            own,
            bool(row["cut"]),
            None if everyone else (study.base, persona),
        )
        found.append(text)
        hidden = own if mask is None else masked_tokens(tokenizer, own, text.text[: row["span"][0]], mask)
        if hidden != own:
            words = str(tokenizer.decode(hidden, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            source = Author(persona, int(row["seed"]), masked=True).source
            found.append(replace(text, source=source, token_ids=hidden, text=words))
    if not found:
        counts = ", ".join(f"{n:,} {reason}" for reason, n in table["reason"].value_counts().items())
        raise ProbeError(
            f"a swap needs answers with a letter behind a text, and {store.place.url} has none ({counts}); ask for "
            "reasons before the letter (task.instruction), or see `probe parse`"
        )
    return tuple(found)


def masked_tokens(tokenizer: Any, tokens: Sequence[int], text: str, mask: Mask) -> tuple[int, ...]:
    """The tokens with those replaced that touch a masked word of ``text``, the beginning of what they decode to."""
    hidden = list(tokens)
    for start, stop in mask.spans(text):
        first = _token_at(tokenizer, tokens, start)
        last = _token_at(tokenizer, tokens, stop - 1)
        hidden[first : last + 1] = [mask.token] * (last + 1 - first)
    return tuple(hidden)


def swap_study(study: Study, texts: Sequence[GivenText]) -> Study:
    """The study that reads these texts at their letters, under the first wording of each persona, and nothing else.

    Of the residual stream only what a store cannot be without is kept: the embedding at the letter.
    """
    return replace(
        study,
        name=f"{study.name}-swap",
        given=GivenSpec(tuple(texts), only=True),
        conditions=replace(study.conditions, wordings="first"),
        capture=replace(CaptureSpec(layers=(0,), positions=("answer",), keep_text=False), **_kept(study.capture)),
        labels=LabelSpec(score=study.labels.score),
        confirm=(),
        interventions=(),
    )


def with_base(study: Study, base: str | None) -> Study:
    """The study with this base persona.

    Raises:
        ProbeError: it is not among the personas.
    """
    known = [persona.id for persona in study.personas]
    if base is not None and base not in known:
        raise ProbeError(f"the study has no persona {base!r} to be the base. {nearest(base, known, 'persona')}")
    return study if base is None else replace(study, base=base)


def _kept(capture: CaptureSpec) -> dict[str, Any]:
    names = ("batch_size", "dtype", "special_tokens")
    return {name: getattr(capture, name) for name in names}


def _generated(store: Store) -> View:
    """The answers that were generated under the first wording of each persona."""
    if not any(row.cell.condition.given == "" for row in store.plan.rows):
        raise ProbeError(
            f"{store.place.url} holds reads of given texts alone; a swap needs answers that were generated"
        )
    view, free = store.select(given="", intervention="", wording=0), without_content(store)
    if not free:
        return view
    return view.select(case=[str(case["id"]) for case in store.plan.cases if str(case["id"]) not in free])


def _token_at(tokenizer: Any, tokens: Sequence[int], character: int) -> int:
    """The token that writes a character of the decoded text: the first after which the text is longer than that."""
    low, high = 0, len(tokens) - 1
    while low < high:
        middle = (low + high) // 2
        upto = tokenizer.decode(
            list(tokens[: middle + 1]), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        low, high = (low, middle) if len(upto) > character else (middle + 1, high)
    return low


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", text)
