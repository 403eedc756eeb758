"""A text that a model is made to answer with, as a value. Knows cases and texts; knows no tokenizer and no store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GivenText:
    """An answer to one case that is fed under every persona's prompt, token by token, in place of a generated one.

    ``source`` names where it comes from: a persona, an annotator, another model. ``instruction`` and ``rotation`` say
    under which of them it was written, None for all. ``token_ids`` are its tokens where they are known, for a text may
    be written in other tokens than a tokenizer makes of it. ``cut``: it ends before its author had come to an end.
    ``personas`` are those under whose prompts it is fed, None for all.
    """

    case: str
    source: str
    text: str
    instruction: int | None = None
    rotation: int | None = None
    token_ids: tuple[int, ...] | None = None
    cut: bool = False
    personas: tuple[str, ...] | None = None

    def is_for(self, persona: str) -> bool:
        """Whether it is fed under the prompts of this persona."""
        return self.personas is None or persona in self.personas

    def fits(self, instruction: int, rotation: int) -> bool:
        """Whether it answers a prompt with this instruction wording and rotation of the letters."""
        return self.instruction in (None, instruction) and self.rotation in (None, rotation)
