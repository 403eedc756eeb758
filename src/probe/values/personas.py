"""A persona: who the model is asked to be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Persona:
    """One persona and its wordings.

    A wording is the whole system text. ``None`` is *no persona*: the chat template is left untouched (and may insert
    a default text of its own). ``""`` is an *empty system message*, a different condition. ``role`` and ``style`` are
    separate factors, empty where the persona has none.
    """

    id: str
    wordings: tuple[str | None, ...]
    role: str = ""
    style: str = ""

    def text(self, wording: int = 0) -> str | None:
        """The system text of one wording, ``None`` for no persona."""
        return self.wordings[wording]
