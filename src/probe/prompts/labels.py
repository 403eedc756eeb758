"""Which tokens stand for which label letter. Knows a tokenizer; knows no logits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from probe.values import LabelError

_SPACE_MARKS = ("", "Ġ", "▁", " ")


@dataclass(frozen=True)
class LabelTokens:
    """Token ids of each letter at one site: ``ids[k]`` are the legal single-token variants of ``letters[k]``."""

    letters: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]


def label_tokens(tokenizer: Any, text: str, letters: Sequence[str]) -> LabelTokens:
    """The single tokens that continue ``text`` with each letter, found by tokenising text and letter together.

    A variant (``A``, ``" A"``) is legal where the text's own tokens stay as they are and exactly one is added.
    ``encode("A")[0]`` alone would miss merges and silently read another token.

    Raises:
        LabelError: a letter is not one token here, or two letters share a token.
    """
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    found: list[tuple[int, ...]] = []
    for letter in letters:
        variants = []
        pieces: list[str] = []
        for surface in (letter, f" {letter}"):
            whole = tokenizer(text + surface, add_special_tokens=False)["input_ids"]
            if whole[: len(own)] == own and len(whole) == len(own) + 1:
                variants.append(whole[-1])
            elif surface == letter:
                pieces = tokenizer.convert_ids_to_tokens(whole[len(own) :] or whole[-2:])
        if not variants:
            raise LabelError(
                f"label {letter!r} is not one token after this prompt: this tokenizer makes {pieces} of it; "
                "a label needs exactly one token (choose other task.letters)"
            )
        found.append(tuple(dict.fromkeys(variants)))
    for i, ids in enumerate(found):
        for j in range(i):
            if set(ids) & set(found[j]):
                raise LabelError(
                    f"labels {letters[j]!r} and {letters[i]!r} share token {sorted(set(ids) & set(found[j]))[0]} "
                    "after this prompt; choose other task.letters"
                )
    return LabelTokens(tuple(letters), tuple(found))


class LetterVocabulary:
    """All tokens of a vocabulary in which a label letter stands alone, and their counterparts for other letters.

    While an answer is generated, only steps whose token holds such a letter can become the ``answer`` site.
    """

    def __init__(self, tokenizer: Any, letters: Sequence[str]) -> None:
        self.letters = tuple(letters)
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        pattern = re.compile("|".join(re.escape(letter) for letter in letters), re.IGNORECASE)
        self._found: dict[int, tuple[str, int, int]] = {}
        for piece, token_id in self._vocabulary.items():
            match = pattern.search(piece)
            if match and _stands_alone(piece, *match.span()):
                self._found[token_id] = (piece, *match.span())

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every token id that holds a label letter standing alone."""
        return tuple(sorted(self._found))

    def counterparts(self, token_id: int) -> LabelTokens:
        """The tokens that say each letter where ``token_id`` was said: the same token with the letter exchanged, and
        the bare letter with and without a leading space."""
        piece, start, end = self._found[token_id]
        lower = piece[start:end].islower()
        ids = []
        for letter in self.letters:
            shown = letter.lower() if lower else letter
            surfaces = [piece[:start] + shown + piece[end:], *(mark + shown for mark in _SPACE_MARKS)]
            known = [self._vocabulary[surface] for surface in surfaces if surface in self._vocabulary]
            ids.append(tuple(dict.fromkeys(known)))
        return LabelTokens(self.letters, tuple(ids))


def _stands_alone(piece: str, start: int, end: int) -> bool:
    before, after = piece[:start], piece[end:]
    touches_before = bool(before) and before[-1].isalnum() and before[-1] not in "Ġ▁Ċ"
    touches_after = bool(after) and after[0].isalnum() and after[0] not in "Ġ▁Ċ"
    return not (touches_before or touches_after)
