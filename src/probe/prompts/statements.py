"""Places in an answer where a label is stated, and how strongly. Knows letters, option texts and sentences; decides
nothing between two statements."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from probe.prompts.cues import CLOSE, EDGE, OPEN, Cues
from probe.prompts.languages import words_of

RULES = (
    *("your statement", "final answer", "answer", "boxed", "chosen", "opening letter", "letter line", "option text"),
    *("parentheses", "bold", "option"),
)
"""Strongest first. All but the last three are explicit; those only set a letter apart, or name it."""

EXPLICIT = RULES[:8]
SET_APART = RULES[8:]

_WORDS = frozenset({"A", "I"})
_WINDOW = 120
_SENTENCE = 300
"""Characters of its sentence that are looked at on either side of a label."""
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_AFTER = rf"(?![{EDGE}\u0300-\u036f]|['’][A-Za-z]|\s?&|[.,]\d|\.[.a-z]|\+|:[/\\])"
_STOPS = rf".,;:!?)\]}}/–—→，。；：！）】{_CJK}"
_JOINED = r"(?:or|and|because|since|as|due|given|if)\b"
_LINE_END = r"[ \t]*\n(?:[ \t]*\n|(?!\s*[a-z]))"
_ENDS = rf"(?:{CLOSE}(?:\Z|[{_STOPS}(]|</|-\s|{_JOINED})|[ \t\"'”’*_)\]]*+{_LINE_END})"
_ENDS_AT_ONCE = rf"[\"'”’*_)\]}}$`]*(?:\s*\Z|[{_STOPS}]|</|\s[-–—]\s|\s+{_JOINED}|{_LINE_END})"
"""What may follow a label that could be a word: the end of its clause, or of a line that the next one does not go on.
A lower-case letter must end it at once: "a (mild) fever"."""

_FUNCTION_WORDS = (
    r"unless|when|here|in|for|with|over|rather|instead|not|so|but|then|though|although|based|at|is|was|would|should"
    r"|oder|und|weil|da|denn|nicht|ou|et|car|puisque|porque|ya|perché|want|omdat|или|так|потому"
)
_STOP = re.compile(r"[.!?;\n。！？；]")
_TOUCHED = re.compile(rf"[{EDGE}\u0300-\u036f]\Z|\d[.,]\Z")
_NO_LABEL = re.compile(r"\.?\s?(?:diff|fib)\b|\.?\s?diff", re.IGNORECASE)
"""C. diff(icile) and A. fib(rillation)."""


_LINE_BEFORE = re.compile(r"(?:[ \t\r|]|[->#•][ \t]|[^\w\s!-~])*[\"'*_(\[]*")
_LINE_AFTER = re.compile(r"[\"'*_)\].:!]*(?:[ \t\r|]|[^\w\s!-~])*")
"""What may stand on a line beside its only letter: marks of emphasis, lists and quotes, and pictographs; no code."""


@dataclass(frozen=True)
class _Listed:
    """Whether a letter ``begins`` a list of letters, is a ``member`` of one, and whether all letters follow in it."""

    begins: bool
    member: bool
    whole: bool


@dataclass(frozen=True)
class Statement:
    """One letter stated at ``span`` by ``rule``; ``in_words`` where the option's text stands for its letter.

    ``rivals`` are other letters that the same statement names. ``declared``: the label stands after a colon, in a field
    or under a heading.
    """

    rule: str
    letter: str
    span: tuple[int, int]
    rivals: frozenset[str] = frozenset()
    in_words: bool = False
    declared: bool = False

    @property
    def name(self) -> str:
        """The rule as it is reported."""
        return f"{self.rule} in words" if self.in_words and self.rule != "option text" else self.rule


class StatementFinder:
    """Finds the statements of one task's letters; ``texts`` maps an option's words, in lower case, to its letter."""

    def __init__(
        self, letters: Sequence[str], texts: Mapping[str, str], languages: Sequence[str], own: Sequence[str]
    ) -> None:
        self.letters = tuple(letters)
        self._by_word = {text.casefold(): letter for text, letter in texts.items()}
        self._by_word |= {letter.casefold(): letter for letter in letters}
        self._first_words = {text.split()[0] for text in texts}
        words = words_of(languages)
        forms = {form for letter in letters for form in (letter, letter.upper(), letter.lower())}
        one = "|".join(re.escape(form) for form in sorted(forms, key=lambda form: (-len(form), form)))
        longest = sorted(texts, key=lambda text: (-len(text), text))
        phrases = "|".join(r"\s+".join(map(re.escape, text.split())) for text in longest) or "(?!)"
        # Runs of blanks and marks are possessive: shared between neighbours, a thousand spaces take seconds.
        named = rf"(?:(?:the\s+|la\s+)?(?:{words.option})\s*+)?"
        joiner = rf"(?:{words.joiner})(?![{EDGE}])"
        whole = rf"(?<![{EDGE}-])(?P<text>{phrases})(?![{EDGE}-])"
        hyphen = rf"(?!-(?!(?:{one})(?![{EDGE}-]))[{EDGE}])"
        self._letter = re.compile(rf"(?:{one}){_AFTER}{hyphen}")
        self._text = re.compile(whole, re.I)
        self._text_after = re.compile(rf"{CLOSE}+[.:–—(,-]*\s*+[*_\"(]*{whole}", re.I)
        self._letter_after = re.compile(rf"[\s*_\"']*[(\[]\s*(?i:{named})(?P<letter>{one})\s*[)\]]")
        self._second = re.compile(
            rf"{CLOSE}+(?:(?P<list>[,，、])|[/–&-]|(?i:{joiner}))\s*+(?:(?i:{joiner}))?[\s(]*+(?i:{named}){OPEN}"
            rf"(?P<second>{one}){_AFTER}{hyphen}"
        )
        self._runs_on = re.compile(rf"\s+(?!{joiner})[a-z]")
        self._second_text = re.compile(rf"{CLOSE}+(?:[/,]|{joiner})\s*{whole}", re.I)
        stated = rf"(?P<letter>(?<![{EDGE}])(?:{one}|{phrases})(?![{EDGE}]))"
        self._own = [re.compile(pattern.replace("{letter}", stated), re.I | re.M) for pattern in own]
        self._ends = re.compile(_ENDS)
        self._ends_at_once = re.compile(_ENDS_AT_ONCE)
        self._ends_clause = re.compile(rf"{_ENDS}|{CLOSE}(?:{_FUNCTION_WORDS})(?![{EDGE}])")
        self._cues = Cues(languages, phrases)

    def find(self, text: str, start: int) -> list[Statement]:
        """Every statement from ``start`` on, in the order of the text."""
        found = list(self._own_statements(text, start))
        places = [match.span() for match in self._letter.finditer(text, start) if self._is_label(text, *match.span())]
        follows = [self._is_listed(text, *pair) for pair in itertools.pairwise(places)]
        runs = [0]  # how many letters follow each one in its list, from the last letter back
        for follow in reversed(follows):
            runs.append(runs[-1] + 1 if follow else 0)
        for at, (place, run) in enumerate(zip(places, reversed(runs), strict=False)):
            member = run > 0 or (at > 0 and follows[at - 1])
            listed = _Listed(run > 0, member, run >= len(self.letters) - 1)
            found += self._letter_statement(text, start, place, listed)
        lowered = text.lower()
        if any(word in lowered for word in self._first_words):
            for match in self._text.finditer(text, start):
                found += self._text_statement(text, start, match.span())
        return sorted(found, key=lambda statement: statement.span)

    def _label(self, found: str) -> str:
        """The letter that a piece of text writes, or that an option's words stand for."""
        words = " ".join(found.casefold().split())
        if words in self._by_word:
            return self._by_word[words]
        # A pattern that ignores case lets more through than case folding does: the long s, the dotted capital I.
        return next(letter for word, letter in self._by_word.items() if re.fullmatch(re.escape(word), found, re.I))

    def _own_statements(self, text: str, start: int) -> Iterator[Statement]:
        for pattern in self._own:
            for match in pattern.finditer(text, start):
                letter, span = self._label(match["letter"]), match.span("letter")
                in_words = match["letter"].casefold() != letter.casefold()
                rivals = frozenset() if in_words else self._rivals(text, span[1], letter)
                yield Statement("your statement", letter, span, rivals, in_words, declared=True)

    def _is_label(self, text: str, at: int, end: int) -> bool:
        """Whether a letter may be a label here: a whole word; and a lower-case letter, an article, a number or a word
        must end its clause, or stand before an option's own words."""
        if at and _TOUCHED.search(text[max(0, at - 2) : at]):
            return False
        letter = text[at:end]
        if len(letter) == 1 and letter.isupper() and letter not in _WORDS:
            return not _NO_LABEL.match(text, end)
        if letter == "A" and _NO_LABEL.match(text, end):
            return False
        lower = len(letter) == 1 and letter.islower()
        ends = self._ends_clause if letter == "A" else self._ends_at_once if lower else self._ends
        return bool(ends.match(text, end) or self._text_after.match(text, end))

    def _letter_statement(self, text: str, start: int, span: tuple[int, int], listed: _Listed) -> Iterator[Statement]:
        at, end = span
        letter = self._label(text[at:end])
        before, after = text[max(start, at - _WINDOW) : at].lower(), text[end : end + _WINDOW].lower()
        cue, declared = self._cues.announced(before), False
        if listed.whole:
            return
        if cue is not None and not (cue.on_next_line and listed.begins):
            rule, declared = cue.rule, cue.declared
        elif self._is_chosen(text, start, span, before, ends=bool(self._ends_clause.match(text, end))):
            rule = "chosen"
        else:
            rule = "" if listed.member else self._set_apart(text, start, span)
        if not rule or self._is_unsaid(text, start, span, rule):
            return
        rivals = self._rivals(text, end, letter)
        if not rivals and self._cues.condition.match(after.lstrip(" ,")):
            rivals = self._letters_in(text, end, _sentence_end(text, end)) - {letter}
            if not rivals and rule != "final answer":
                return
        yield Statement(rule, letter, span, rivals, declared=declared)

    def _text_statement(self, text: str, start: int, span: tuple[int, int]) -> Iterator[Statement]:
        at, end = span
        written, other = self._letter_after.match(text, end), self._second_text.match(text, end)
        if not (written or other or self._ends.match(text, end)):
            return
        letter, before = self._label(text[at:end]), text[max(start, at - _WINDOW) : at].lower()
        cue, declared = self._cues.announced(before), False
        if cue is not None:
            rule, declared = cue.rule, cue.declared
        elif self._is_chosen(text, start, span, before, ends=True):
            rule = "chosen"
        elif not re.search(r"[^\W_]", text[start:at] + text[end:]):
            rule = "option text"
        else:
            return
        if self._is_unsaid(text, start, span, rule):
            return
        rivals = frozenset() if other is None else frozenset({self._label(other["text"])})
        if written:  # "emergency care (C)": the letter states it; one of another option is its rival
            rivals, letter, span = rivals | {letter}, self._label(written["letter"]), written.span("letter")
        yield Statement(rule, letter, span, rivals - {letter}, not written, declared)

    def _is_chosen(self, text: str, start: int, span: tuple[int, int], before: str, *, ends: bool) -> bool:
        """Whether words choose the label, or a correction or a hedge leaves it as all that its clause says."""
        at, end = span
        if self._cues.is_chosen(before, text[end : end + _WINDOW].lower(), ends=ends):
            return True
        if not self._ends.match(text, end):
            return False
        return self._cues.is_left(before, lambda: self._sentence(text, start, at))

    def _set_apart(self, text: str, start: int, span: tuple[int, int]) -> str:
        """The rule of a letter that no words announce, empty where it is only a letter in a text."""
        at, end = span
        if not text[start:at].strip(" \t\r\n\"'“”*_([") and self._opens(text, span):
            return "opening letter"
        line, after = max(text.rfind("\n", 0, at) + 1, start), text.find("\n", end)
        if _LINE_BEFORE.fullmatch(text, line, at) and _LINE_AFTER.fullmatch(
            text, end, after if after >= 0 else len(text)
        ):
            return "letter line"
        before = text[max(start, at - 40) : at].lower()
        as_given = text[at:end] in self.letters  # (c) is a mark of other things too
        if (
            as_given
            and ("(" in before or "（" in before)
            and self._cues.opened.search(before)
            and re.match(r"[.:]?[)）][\"'*_]*(?:\Z|\s*\n|[.,;!?。，])", text[end : end + 9])
        ):
            return "parentheses"
        if before.removesuffix("(").endswith(("**", "__")) and re.match(
            r"[).:]?(?=[^*_\n]{0,80}(?:\*\*|__))", text[end : end + 90]
        ):
            return "bold"
        return "option" if self._cues.named.search(before) else ""

    def _opens(self, text: str, span: tuple[int, int]) -> bool:
        """Whether a letter at the very beginning is set off from what follows, as in ``B) ...`` or ``B. The ...``; or
        whether another one is offered with it."""
        if self._second.match(text, span[1]):
            return True
        end, after = span[1], text[span[1] : span[1] + 40]
        if re.match(r"[\"'”*_]*(?:[)\]]|[:;,](?:\s|\Z)|\s*[-–—]\s|\s*\Z|\s*\n)|[\"'”*_]+\s", after):
            if text[slice(*span)] not in self.letters and after.lstrip("\"'”*_)].:\r\n"):
                return bool(
                    self._text_after.match(text, end)
                )  # "a) ..." is a point of a list, unless the option follows
            return after[:1] != "," or text[slice(*span)] not in _WORDS
        stop = re.match(r"\.[\"'”*_]*(?:\s+(?P<next>\S)|\s*\Z)", after)
        return bool(stop and (not (stop["next"] or "").islower() or self._text_after.match(text, end)))

    def _is_listed(self, text: str, span: tuple[int, int], following: tuple[int, int]) -> bool:
        """Whether another letter follows as the next item of a list: then the options are only listed."""
        first, second = (self.letters.index(self._label(text[slice(*place)])) for place in (span, following))
        between = text[span[1] : following[0]]
        if first != second and "\n" in between and not re.search(r"[^\W_]", between):
            return True
        marks = {text[place[1] : place[1] + 4].lstrip("*_")[:1] for place in (span, following)}
        if marks == {")"} and text[span[0] - 1 : span[0]] == "(" and "\n" not in between:
            return False  # letters in brackets within one text name options; they need not be a list
        return second == (first + 1) % len(self.letters) and marks in ({"."}, {":"}, {")"})

    def _is_unsaid(self, text: str, start: int, span: tuple[int, int], rule: str) -> bool:
        """Whether the sentence makes the label depend on something, or denies a letter that it only names."""
        said = self._sentence(text, start, span[0])
        if self._cues.condition.search(said):
            return True
        rest = text[span[0] : _sentence_end(text, span[1])].lower()
        return rule in SET_APART and bool(self._cues.denial.search(said + rest))

    def _sentence(self, text: str, start: int, at: int) -> str:
        """What stands before a place in its sentence, in lower case."""
        first = max(start, at - _SENTENCE)
        stops = [match.end() for match in _STOP.finditer(text, first, at)]
        return text[stops[-1] if stops else first : at].lower()

    def _rivals(self, text: str, end: int, letter: str) -> frozenset[str]:
        """Other letters that stand beside this one (``A or B``), or whose option's words follow under it."""
        found, at = set(), end
        for _ in range(2 * len(self.letters)):  # a longer row of letters names no other one
            second = self._second.match(text, at)
            if second is None:
                break
            at = second.end("second")
            other = second["second"]
            plain = len(other) == 1 and other.isupper() and other not in _WORDS
            if not (plain or self._ends.match(text, at)) or (second["list"] and self._runs_on.match(text, at)):
                break
            found.add(self._label(other))
        said = self._text_after.match(text, end)
        if said:
            found.add(self._label(said["text"]))
        return frozenset(found) - {letter}

    def _letters_in(self, text: str, start: int, end: int) -> frozenset[str]:
        places = [match.span() for match in self._letter.finditer(text, start, end)]
        return frozenset(self._label(text[slice(*place)]) for place in places if self._is_label(text, *place))


def _sentence_end(text: str, at: int) -> int:
    last = min(len(text), at + _SENTENCE)
    stop = _STOP.search(text, at, last)
    return stop.start() if stop else last
