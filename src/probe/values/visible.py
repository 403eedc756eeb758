"""Text as it can be seen. Knows characters; knows no terminal, page or font."""

from __future__ import annotations

import unicodedata

_HIDDEN = ("Cc", "Cf", "Co", "Cs")


def visible(text: str) -> str:
    """Control characters and characters that reorder text are shown by their code, so that no name can hide."""
    for character in sorted(c for c in set(text) if unicodedata.category(c) in _HIDDEN and c not in "\n\t"):
        text = text.replace(character, f"⟨U+{ord(character):04X}⟩")
    return text
