"""The command ``probe parse``: answers in the terminal, with what was read in them. Knows no rule of the parser."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.panel import Panel
from rich.text import Text

from probe.prompts import Parsed, parse_answer
from probe.prompts.reasoning import answer_start
from probe.stages.parsing import BUILTIN, Answer, answers, own_parser, parser_of
from probe.stages.targets import open_target
from probe.stages.terminal import console, say
from probe.values import ParserSettings, ProbeError
from probe.values.cells import STATUSES
from probe.values.nearest import nearest
from probe.values.visible import visible

MARKS = "»", "«"
"""Around what was read, so that a file or a terminal without colours shows it too."""


def show_answers(
    target: Path,
    *,
    store: str | Path | None = None,
    persona: str | None = None,
    case: str | None = None,
    status: str | None = None,
    limit: int = 10,
    parser: str | None = None,
) -> None:
    """Print answers of a store with the place that was read, its rule, and where the capture read something else.

    They are read with the settings of the store's study, or with those of ``parser``.

    Raises:
        ProbeError: a name or status that is not known, or a target that is no store.
    """
    if status is not None and status not in STATUSES:
        raise ProbeError(f"the status {status!r} is not known. {nearest(status, STATUSES, 'status')}")
    _, opened = open_target(target, store=store)
    settings = own_parser(opened) if parser is None else parser_of(parser)
    view = opened.select(persona=persona, case=case)
    found = [answer for answer in answers(opened, settings, view) if status in (None, answer.parsed.status)]
    for answer in found[:limit]:
        where = [answer.persona, answer.case, *([answer.condition] if answer.condition != "system" else [])]
        _show(answer.text, answer.parsed, settings, title=" / ".join(where), said=_said(answer))
    of = f" with status {status}" if status else ""
    more = "; --limit N for more" if len(found) > limit else ""
    say(f"{min(limit, len(found)):,} of {len(found):,} answers{of} shown{more}")


def show_text(
    target: Path | None, *, letters: Sequence[str], texts: Sequence[str] = (), parser: str | None = None
) -> None:
    """Print one answer from a plain text file, or from standard input, with what is read in it.

    Raises:
        ProbeError: there is no such file, or it is not UTF-8 text.
    """
    settings = parser_of(parser or BUILTIN)
    try:
        text = sys.stdin.read() if target is None else target.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ProbeError(
            f"there is no file or store {target}; give a store, a study, a text file, or - for input"
        ) from None
    except (UnicodeDecodeError, OSError) as error:
        raise ProbeError(f"{target or 'standard input'} cannot be read as UTF-8 text: {error}") from error
    parsed = parse_answer(text, letters, texts=texts, settings=settings)
    _show(text, parsed, settings, title=str(target or "standard input"), said=_status(parsed, parsed.letter))


def _said(answer: Answer) -> str:
    said = _status(answer.parsed, answer.label)
    if answer.same:
        return said
    was = answer.recorded["label"] or answer.recorded["status"]
    return f"{said}; the capture read {was}"


def _status(parsed: Parsed, label: str | None) -> str:
    letter = "" if parsed.letter is None or parsed.in_words else f", letter {parsed.letter}"
    stated = "" if label is None else f": {label}{letter}"
    return f"{parsed.status}{stated}" + (f" (rule: {parsed.rule})" if parsed.rule else "")


def _show(text: str, parsed: Parsed, settings: ParserSettings, *, title: str, said: str) -> None:
    start, end = parsed.span or (len(text), len(text))
    begins = answer_start(text, settings.reasoning)
    reasoned = min(start, len(text) if begins is None else begins)
    body = Text()
    body.append(visible(text[:reasoned]), style="dim")
    body.append(visible(text[reasoned:start]))
    if parsed.span:
        body.append(f"{MARKS[0]}{visible(text[start:end])}{MARKS[1]}", style="bold reverse")
    body.append(visible(text[end:]))
    console().print(Panel(body, title=Text(visible(title)), subtitle=Text(visible(said)), title_align="left"))
