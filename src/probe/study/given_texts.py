"""Texts that personas are made to answer with: from a file, a list, or a store's answers. Knows keys and places."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import AfterValidator

from probe.study.checked import CLOSED, Count, Flag, Id, Line, Name, Text, checked
from probe.study.json_marks import read_jsonl
from probe.study.located import Located, kind_of
from probe.study.text_files import is_there
from probe.values import Case, GivenText, Persona, sha256_of
from probe.values.nearest import nearest


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty. Write the answer that is given")
    return text


@dataclass(frozen=True)
class GivenSpec:
    """Texts that are fed as answers under every persona's prompt, beside the answers that it generates.

    ``texts`` themselves, or those that ``personas`` (None: all of them) generated for the same cases in ``store``,
    which are read when the study is prepared. ``only``: nothing is generated.
    """

    texts: tuple[GivenText, ...] = ()
    store: str | None = None
    personas: tuple[str, ...] | None = None
    only: bool = False


@dataclass(frozen=True)
class _Entry:
    __pydantic_config__ = CLOSED

    path: Line | None = None
    texts: Any = None
    store: Line | None = None
    personas: tuple[Name, ...] | None = None
    only: Flag = False


@dataclass(frozen=True)
class _Text:
    __pydantic_config__ = CLOSED

    case: Id
    source: Name
    text: Annotated[Text, AfterValidator(_not_blank)]
    instruction: Annotated[Count, Ge(0)] | None = None
    rotation: Annotated[Count, Ge(0)] | None = None
    token_ids: tuple[Annotated[Count, Ge(0)], ...] | None = None
    cut: Flag = False
    personas: tuple[Name, ...] | None = None


def read_given(source: Located, directory: Path) -> GivenSpec | None:
    """The given texts of a study: ``{path: texts.jsonl}``, ``{texts: [...]}`` or ``{store: PATH, personas: [...]}``.

    Raises:
        StudyError: a rule is broken, or two texts of one source answer the same prompt.
    """
    if source.value is None:
        return None
    entry = checked(_Entry, source)
    named = [key for key in ("path", "texts", "store") if getattr(entry, key) is not None]
    if len(named) != 1:
        raise source.refusal(
            f"`given` takes its texts from one of `path`, `texts` and `store`, found {' and '.join(named) or 'none'}. "
            "Write one of them"
        )
    if entry.personas is not None and entry.store is None:
        raise source.refusal("`personas` chooses among the answers of a `store`. Leave it out here", "personas")
    if entry.store is not None:
        return GivenSpec(store=_store(entry.store, directory), personas=entry.personas, only=entry.only)
    lines = _lines(source, directory, entry)
    found = [checked(_Text, line) for line in lines]
    texts = tuple(GivenText(**vars(text)) for text in found)
    _refuse_doubles(texts, lines)
    if not texts:
        raise source.refusal("`given` must hold at least one text. Add one", named[0])
    return GivenSpec(texts=texts, only=entry.only)


def given_entry(given: GivenSpec | None, *, texts: bool = True) -> dict[str, Any] | None:
    """The mapping that ``read_given`` reads back as the same texts; without ``texts``, their number and hash."""
    if given is None:
        return None
    if given.store is not None:
        personas = {} if given.personas is None else {"personas": list(given.personas)}
        return {"store": given.store, **personas, "only": given.only}
    entries = [_entry(text) for text in given.texts]
    return {"texts": entries if texts else {"n": len(entries), "sha256": sha256_of(entries)}, "only": given.only}


def _entry(text: GivenText) -> dict[str, Any]:
    """What differs from the defaults."""
    default = GivenText("", "", "")
    changed = {key: value for key, value in vars(text).items() if value != getattr(default, key)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in changed.items()}


def refuse_unknown_personas(given: GivenSpec | None, personas: tuple[Persona, ...], source: Located) -> None:
    """Raise where a given text is for a persona that the study does not have."""
    known = [persona.id for persona in personas]
    for text in given.texts if given else ():
        for name in text.personas or ():
            if name not in known:
                raise source.refusal(
                    f"a text of the source {text.source!r} is for the persona {name!r}, which is not among the "
                    f"personas. {nearest(name, known, 'persona')}",
                    "given",
                )


def refuse_unknown_cases(given: GivenSpec | None, cases: tuple[Case, ...], source: Located) -> None:
    """Raise where a given text answers a case that the study does not have."""
    known = {case.id for case in cases}
    for text in given.texts if given else ():
        if text.case not in known:
            raise source.refusal(
                f"a text of the source {text.source!r} answers the case {text.case!r}, which is not among the cases. "
                f"{nearest(text.case, known, 'case')}",
                "given",
            )


def _store(name: str, directory: Path) -> str:
    """A store beside the study file, else where it was written: relative to the working directory, or a URL."""
    beside = directory / name
    return str(beside) if is_there(beside.is_dir) else name


def _lines(source: Located, directory: Path, entry: _Entry) -> list[Located]:
    if entry.path is None:
        if not isinstance(entry.texts, list | tuple):
            raise source.refusal(f"`texts` must be a list, found {kind_of(entry.texts)}. Put it in brackets", "texts")
        return [source.child("texts", i) for i in range(len(entry.texts))]
    path = directory / entry.path
    if path.suffix != ".jsonl":
        raise source.refusal(f"given texts are read from .jsonl files, found {entry.path!r}", "path")
    if not is_there(path.is_file):
        raise source.refusal(f"there is no file {str(path)!r}. A path is relative to the study file", "path")
    return list(read_jsonl(path))


def _refuse_doubles(texts: tuple[GivenText, ...], lines: list[Located]) -> None:
    """Two texts of one source and case must differ in the instruction or rotation that they answer."""
    first: dict[tuple[str, str], list[tuple[GivenText, str]]] = {}
    for text, line in zip(texts, lines, strict=True):
        others = first.setdefault((text.case, text.source), [])
        for other, place in others:
            if _meet(text.instruction, other.instruction) and _meet(text.rotation, other.rotation):
                raise line.refusal(
                    f"two texts of the source {text.source!r} answer the case {text.case!r} (the first at {place}). "
                    "Give each its own source",
                    "source",
                )
        others.append((text, line.where()))


def _meet(one: int | None, other: int | None) -> bool:
    return one is None or other is None or one == other
