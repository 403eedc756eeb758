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

    The letter alone must be one token here; with a leading space it counts as well, where that is one token for every
    letter. ``encode("A")[0]`` would miss merges and silently read another token.

    Raises:
        LabelError: a letter is not one token here, or two letters share a token.
    """
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = []
    spaced = [_continuation(tokenizer, text, f" {letter}", own) for letter in letters]
    # A variant that only some letters have would count for those alone.
    with_space = all(ids is not None and len(ids) == 1 for ids in spaced)
    for letter, other in zip(letters, spaced, strict=True):
        bare = _continuation(tokenizer, text, letter, own)
        if bare is None:
            raise LabelError(
                f"label {letter!r} changes the last tokens of this prompt ({text[-12:]!r}), so no token stands for it "
                "there; let the prompt end without a space"
            )
        if len(bare) != 1:
            raise LabelError(
                f"label {letter!r} is not one token after this prompt: this tokenizer makes "
                f"{tokenizer.convert_ids_to_tokens(bare)} of it; a label needs exactly one token "
                "(choose other task.letters)"
            )
        found.append(tuple(dict.fromkeys([*bare, *((other or []) if with_space else [])])))
    for i, ids in enumerate(found):
        for j in range(i):
            if set(ids) & set(found[j]):
                raise LabelError(
                    f"labels {letters[j]!r} and {letters[i]!r} share token {sorted(set(ids) & set(found[j]))[0]} "
                    "after this prompt; choose other task.letters"
                )
    return LabelTokens(tuple(letters), tuple(found))


def _continuation(tokenizer: Any, text: str, surface: str, own: list[int]) -> list[int] | None:
    """The tokens that ``surface`` adds after ``text``, None where the text's own tokens change."""
    whole = tokenizer(text + surface, add_special_tokens=False)["input_ids"]
    return list(whole[len(own) :]) if whole[: len(own)] == own else None


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

    def is_word(self, token_id: int) -> bool:
        """Whether the token may as well be a word of the language (``a``): it is the first to give way."""
        piece, start, end = self._found[token_id]
        return piece[start:end] in ("a", "i")

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
