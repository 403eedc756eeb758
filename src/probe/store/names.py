"""Names that a store does not know. Knows how to suggest the nearest ones."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from probe.values import StoreError


class UnknownName(StoreError, KeyError):
    """A persona, case, layer or position that the store does not hold; the message names the nearest ones."""

    def __str__(self) -> str:
        return str(self.args[0])


def require_known(kind: str, name: str | int, known: Collection[str | int]) -> None:
    """Refuse a name that is not among ``known``.

    Raises:
        UnknownName: names the nearest known ones, or the first few.
    """
    if name in known:
        return
    near = difflib.get_close_matches(str(name), map(str, known), n=3, cutoff=0.5) if isinstance(name, str) else []
    if near:
        hint = f"nearest: {', '.join(map(repr, near))}"
    elif known:
        hint = f"known: {', '.join(map(repr, list(known)[:6]))}{', ...' if len(known) > 6 else ''}"
    else:
        hint = "it holds none"
    raise UnknownName(f"the store has no {kind} {name!r}; {hint}")
