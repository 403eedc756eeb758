"""Which tokens stand for which label letter. Knows a tokenizer; knows no logits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from probe.values import LabelError

TOKEN, CONTINUATION = "token", "continuation"
"""How a label is scored: by the one token that writes it, or by all of its tokens where it is not one."""

_SPACE_MARKS = ("", "Ġ", "▁", " ")


@dataclass(frozen=True)
class LabelTokens:
    """Token ids of each letter at one site: ``ids[k]`` are the legal single-token variants of ``letters[k]``.

    ``spelled`` is empty where every letter is one token there. Else ``spelled[k]`` are the token sequences that write
    ``letters[k]``, each to be scored as a continuation, for the letters whose ``ids[k]`` is empty.
    """

    letters: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    spelled: tuple[tuple[tuple[int, ...], ...], ...] = ()


def label_tokens(tokenizer: Any, text: str, letters: Sequence[str], *, score: str = TOKEN) -> LabelTokens:
    """The tokens that continue ``text`` with each letter, found by tokenising text and letter together.

    Two spellings are tried, the bare letter and the letter after a space (not where the text ends in one). A spelling
    counts where it is one token for every letter and leaves the text's own tokens as they are: a variant that only some
    letters have would count for those alone. ``encode("A")[0]`` would miss merges and silently read another token.

    Where no spelling is one token for every letter, ``score="continuation"`` takes the token sequences of all spellings
    that leave the text's tokens as they are.

    Raises:
        LabelError: no spelling serves, two letters share a token, or one letter's tokens begin another's.
    """
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    marks = ("",) if text[-1:] in (" ", "\t") else ("", " ")
    spelled = [_spelled(tokenizer, text, [mark + letter for letter in letters], own) for mark in marks]
    clean = [found for found in spelled if found is not None]
    single = [found for found in clean if all(len(ids) == 1 for ids in found)]
    if not single and (score == TOKEN or not clean):
        raise _unreadable(tokenizer, text, letters, own)
    variants = tuple(tuple(dict.fromkeys(each)) for each in zip(*(single or clean), strict=True))
    _refuse_overlaps(letters, variants)
    if single:
        return LabelTokens(tuple(letters), tuple(tuple(ids[0] for ids in each) for each in variants))
    one = [all(len(ids) == 1 for ids in each) for each in variants]
    return LabelTokens(
        tuple(letters),
        tuple(tuple(ids[0] for ids in each) if alone else () for each, alone in zip(variants, one, strict=True)),
        tuple(() if alone else each for each, alone in zip(variants, one, strict=True)),
    )


def _spelled(
    tokenizer: Any, text: str, surfaces: Sequence[str], own: Sequence[int]
) -> tuple[tuple[int, ...], ...] | None:
    """The tokens of each surface after ``text``; None where one of them changes the text's own tokens."""
    found = [continuation(tokenizer, text, surface, own) for surface in surfaces]
    clean = tuple(ids for ids in found if ids is not None)
    return clean if len(clean) == len(found) else None


def continuation(tokenizer: Any, text: str, surface: str, own: Sequence[int] | None = None) -> tuple[int, ...] | None:
    """The tokens that ``surface`` adds after ``text``; None where it changes the text's own tokens, or adds none.

    ``own`` are those of the text, where the caller has them.
    """
    before = tokenizer(text, add_special_tokens=False)["input_ids"] if own is None else list(own)
    whole = tokenizer(text + surface, add_special_tokens=False)["input_ids"]
    return (tuple(whole[len(before) :]) or None) if whole[: len(before)] == before else None


def _unreadable(tokenizer: Any, text: str, letters: Sequence[str], own: Sequence[int]) -> LabelError:
    """Why no spelling of the letters serves, by the first bare letter that does not."""
    for letter in letters:
        ids = continuation(tokenizer, text, letter, own)
        if ids is None:
            return LabelError(
                f"label {letter!r} changes the last tokens of the text before it ({text[-12:]!r}), so no token "
                "stands for it there; let that text end without a space"
            )
        if len(ids) > 1:
            return LabelError(
                f"label {letter!r} is not one token after this prompt: this tokenizer makes "
                f"{tokenizer.convert_ids_to_tokens(list(ids))} of it; a label needs exactly one token "
                "(choose other task.letters, or set labels.score: continuation)"
            )
    raise AssertionError("every bare letter is one token, which serves")


def _refuse_overlaps(letters: Sequence[str], variants: Sequence[tuple[tuple[int, ...], ...]]) -> None:
    """Refuse labels whose probabilities could not be added up: one's tokens are, or begin, another's."""
    for i, j in permutations(range(len(letters)), 2):
        shared = next((a for a in variants[i] for b in variants[j] if b[: len(a)] == a), None)
        if shared is not None:
            first, second = (letters[k] for k in sorted((i, j)))
            told = f"share token {shared[0]}" if len(shared) == 1 else f"share the tokens {list(shared)}"
            raise LabelError(f"labels {first!r} and {second!r} {told} after this prompt; choose other task.letters")


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

    @property
    def counterpart_ids(self) -> tuple[int, ...]:
        """Every token id with which some letter is read at the ``answer`` site."""
        found = (self.counterparts(token_id).ids for token_id in self._found)
        return tuple(sorted({token for ids in found for each in ids for token in each}))

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
