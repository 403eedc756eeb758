"""A letter vocabulary made of token ids alone: every third token holds a letter. Knows no tokenizer."""

from __future__ import annotations

from probe.prompts import LabelTokens, LetterVocabulary
from tests.tiny_models import VOCABULARY


class EveryThird(LetterVocabulary):
    """Tokens 0, 3, 6, ... hold a letter, and stand for each other's neighbours."""

    def __init__(self) -> None:
        self.letters = ("A", "B")

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(range(0, VOCABULARY, 3))

    def is_word(self, token_id: int) -> bool:
        return False

    def counterparts(self, token_id: int) -> LabelTokens:
        return LabelTokens(self.letters, ((token_id,), ((token_id + 1) % VOCABULARY, (token_id + 2) % VOCABULARY)))
