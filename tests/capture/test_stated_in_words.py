"""An answer that states an option in its own words wrote no letter, and has no answer site."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from probe.capture.raw_rows import LetterStep, RawRow
from probe.capture.shards import _answer_step
from probe.prompts import LabelTokens, parse_answer
from probe.values import LabelRead

LETTERS, TEXTS = ("A", "B", "C"), ("home", "clinic", "emergency")
LABELS = LabelTokens(LETTERS, ((1,), (2,), (3,)))


class Pieces:
    """A tokenizer whose tokens are the words of one text."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(self.pieces[token] for token in tokens)


def step_of(pieces: list[str], at: int) -> LetterStep | None:
    read = LabelRead(np.log(np.array([0.1, 0.8, 0.1], np.float32)), 1.0, 0.5)
    steps = [LetterStep(at, {"resid": torch.ones(2, 4)}, read)]
    raw = RawRow(
        read, {("resid", "prompt_end"): torch.zeros(2, 4)}, (99, "length"), list(range(len(pieces))), "end", steps, 1
    )
    parsed = parse_answer("".join(pieces), LETTERS, texts=TEXTS)
    assert parsed.letter == "C"
    return _answer_step(Pieces(pieces), LABELS, raw, parsed)


def test_a_letter_has_its_step_and_an_options_words_have_none_even_as_the_first_token() -> None:
    written = step_of(["Final", " answer:", " C"], 2)
    assert written is not None
    assert written.index == 2
    assert step_of(["Final", " answer:", " emergency"], 2) is None
    assert step_of(["emergency"], 0) is None
