"""The words around a label that make it a statement. Knows what may stand between them and a label; knows no label."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from probe.prompts.languages import words_of

EDGE = "A-Za-z0-9À-ɏͰ-ӿ"
"""Characters that a letter may not touch: those of words written with spaces."""

CLOSE = r"[\s\"'“”‘’«»」』】*_)\]}$`|]*"
"""Marks that may stand after a label, or after the word that announces it."""

OPEN = r"(?:[\s\"'“”‘’„«»「『【（*_(\[{$`<>|~#}-]|\\(?:boxed|text\w*|math\w+|bf)\s*\{|[^\w\x00-\x7f])*+"
"""Marks that may stand before a label: quotes, brackets, emphasis, LaTeX, arrows and pictographs. Possessive, because a
quote is also a mark outside ASCII: trying both readings of every one takes time that doubles with each."""

_SURE = (
    r"clearly|definitely|therefore|thus|hence|(?:most\s+)?likely|probably|still|indeed|simply|now|certainly|just|again"
)
_BETWEEN = r"either|both|(?:somewhere\s+)?(?:in\s+)?between|entre|zwischen|entweder|soit"
_SUBJECT = (
    r"(?:\w+ly\s+|still\s+|the\s+|my\s+|single\s+)*(?:correct|right|best|better|safest|preferred|appropriate|indicated|suitable"
    r"|warranted|answer|ideal|optimal|choice|only\s+(?:\w+\s+)?(?:option|choice)|most\s+(?:appropriate|suitable|fitting|reasonable|prudent|correct))\b"
)


_TURN = r"but|however|aber|mais|pero|ma|mas|maar"
_INSTEAD = r"no|yes|rather|instead|it\s+is|it['’]s|(?:make|call)\s+(?:it|that)|(?:that|it)\s+should\s+be"

_NEAR = 60
"""Characters before a label in which a verb that chooses it, and the noun between them, must stand."""


@dataclass(frozen=True)
class Cue:
    """What announces a label: the rule, whether it declares one (after a colon, in a field or heading), and whether the
    label stands on a line of its own below."""

    rule: str
    declared: bool
    on_next_line: bool


class Cues:
    """Patterns for the text just before and just after a label, in lower case; ``phrases`` are the options' texts."""

    def __init__(self, languages: Sequence[str], phrases: str) -> None:
        words = words_of(languages)
        option = rf"(?:(?:the|la|el|die)\s+)?(?:{words.option})[\s:]*"
        named = rf"(?:{option}|(?:the\s+)?(?:triage\s+)?(?:category|level|class)[\s:]*)"
        tail = rf"\s*(?:(?:{_SURE}|{_BETWEEN})\s+)*(?:the\s+|la\s+)?{OPEN}(?:{named})?{OPEN}(?:(?:{phrases}){OPEN})?\Z"
        sign = r"(?P<sign>[:：=→➡⇒|>]|-+>|(?<=\s)[-–—](?=\s))"
        of = r"(?:\s+(?:for|to|in|here|of|given|für|pour|para|per|voor|则|在)\b[^.:;\n]{0,60}?)?"
        joint = rf"{CLOSE}{of}\s*(?:{sign}|(?:would\s+\w+\s+be|{words.copula})\s*:?)"
        start = rf"(?<![{EDGE}-])"
        self._final = re.compile(rf"{start}(?:{words.final})(?:{joint})?{CLOSE}{tail}")
        self._answer = re.compile(rf"{start}(?:{words.answer}){joint}{tail}")
        self._heading = re.compile(
            rf"(?:\A|\n)[ \t]*(?:#+|\*\*|__)[ \t]*(?:(?:your|my|the)\s+)?(?:{words.answer})[ \t*_:：]*\n{tail}"
        )
        self._boxed = re.compile(r"\\f?box(?:ed)?\s*\{\s*(?:\\[a-z]+\s*\{)*[\s({]*\Z")
        self._chosen = re.compile(rf"{start}(?:{words.chosen})\s*(?:with\s+|the\s+)?{OPEN}(?P<named>{named})?{OPEN}\Z")
        self._denied = re.compile(rf"(?:{words.denial})(?:\s+\w+)?\s*\Z")
        gap = r"(?:\s*[,:;.!…–—-]+\s*+|\s++)"
        self._corrected = re.compile(rf"(?:{words.correction}){gap}(?:(?:{_INSTEAD}){gap})*{OPEN}(?:{named})?{OPEN}\Z")
        self._turned = re.compile(rf"{start}(?:{_TURN})[\s,:]+{OPEN}(?:{named})?{OPEN}\Z")
        self._hedge = re.compile(words.refusal)
        self._subject = re.compile(rf"{CLOSE}\s*(?:is|would\s+be|seems(?:\s+to\s+be)?|appears|remains)\s+{_SUBJECT}")
        self._fits = re.compile(rf"{CLOSE}\s*(?:best\s+fits|fits\s+best|is\s+it|it\s+is)\b")
        self._clause = re.compile(
            r"(?:\A|[.!?:;,\n(*]|\b(?:that|think|believe|so|therefore|then|thus|feel|but|while|whereas))[\s\"'*_(]*\Z"
        )
        self.named = re.compile(rf"{start}{option}{OPEN}\Z")
        self.opened = re.compile(rf"(?<![\d°])(?<![\d°]\s)[(（]\s*(?:{option})?{OPEN}\Z")
        self.denial = re.compile(words.denial)
        self.condition = re.compile(words.condition)

    def announced(self, before: str) -> Cue | None:
        """What announces a label at the end of ``before``; None where nothing does."""
        kinds = (("final answer", self._final), ("answer", self._answer), ("answer", self._heading))
        for rule, pattern in kinds if "\n" in before else kinds[:2]:  # a heading ends its line
            match = pattern.search(before)
            if match:
                heading = pattern is self._heading
                below = "\n" in match[0].strip("\n")
                declared = heading or below or bool(match["sign"])
                return Cue(rule, declared, below)
        return Cue("boxed", True, False) if "box" in before and self._boxed.search(before) else None

    def is_left(self, before: str, sentence: Callable[[], str]) -> bool:
        """Whether a label that ends its clause is what a correction or a hedge leaves: ``On reflection, C.``, ``I can't
        diagnose, but B.``; ``sentence`` gives what stands before the label in its sentence."""
        near = before[-_NEAR:]
        if self._turned.search(near):
            return bool(self._hedge.search(sentence()))
        return bool(self._corrected.search(near))

    def is_chosen(self, before: str, after: str, *, ends: bool) -> bool:
        """Whether the label is chosen in words: ``I would pick B``, ``B is the safest``. ``ends``: its clause does."""
        near = before[-_NEAR:]
        verb = self._chosen.search(near)
        if verb and (ends or verb["named"]):
            return not self._denied.search(near[: verb.start()])
        if not (self._subject.match(after) or self._fits.match(after)):
            return False
        return bool(self._clause.search(near) or self.named.search(near))
