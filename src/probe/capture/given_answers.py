"""Given texts as the tokens of answers. Knows a tokenizer and prompts; knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from probe.prompts import Prompt, continuation
from probe.values import Cell, GivenText, RowRefused, sha256_of


@dataclass(frozen=True)
class GivenAnswer:
    """The tokens of a text that is fed as the answer; ``cut`` where the text ends before its author did."""

    token_ids: tuple[int, ...]
    cut: bool = False


class GivenTexts:
    """The texts that conditions name by their source, for the cases that they answer."""

    def __init__(self, tokenizer: Any, texts: Sequence[GivenText]) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[tuple[str, str], list[GivenText]] = {}
        for text in texts:
            self._texts.setdefault((text.case, text.source), []).append(text)

    def answer(self, prompt: Prompt, cell: Cell) -> GivenAnswer | None:
        """The tokens of the text that a cell is given, after this very prompt; None where it answers itself.

        Raises:
            RowRefused: the text would change the prompt's own tokens, or holds a special token.
        """
        condition = cell.condition
        if not condition.given:
            return None
        texts = self._texts.get((cell.case, condition.given), ())
        text = next(text for text in texts if text.fits(condition.instruction, condition.rotation))
        if text.token_ids is not None:
            return GivenAnswer(text.token_ids, text.cut)
        # A prompt that was read literally has other tokens than its text; the answer's do not depend on them.
        before, own = ("", ()) if prompt.literal else (prompt.text, prompt.token_ids)
        ids = continuation(self._tokenizer, before, text.text, own)
        if ids is None:
            raise RowRefused(
                "GivenText",
                f"the text given by {condition.given!r} begins with {text.text[:12]!r}, which changes the last tokens "
                "of the prompt; begin it with a letter, or without white space",
                prompt.prompt_sha,
            )
        special = [token for token in ids if token in self._tokenizer.all_special_ids]
        if special:
            raise RowRefused(
                "SpecialTokens",
                f"the text given by {condition.given!r} holds {self._tokenizer.decode(special[:1])!r}, which this "
                "tokenizer reads as the end or the beginning of a turn; rewrite it",
                prompt.prompt_sha,
            )
        return GivenAnswer(ids, text.cut)


def sha_of(prompt: Prompt, given: GivenAnswer | None, own: Sequence[str] = ()) -> str:
    """What notices an edited text: the hash of the prompt, of the answer that is given to it, and of edits whose values
    are the cell's ``own``."""
    more: dict[str, Any] = {"interventions": list(own)} if own else {}
    if given is not None:
        more |= {"given": list(given.token_ids), "cut": given.cut}
    return sha256_of({"prompt": prompt.prompt_sha, **more}) if more else prompt.prompt_sha
