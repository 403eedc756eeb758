"""A remedy for an unknown name. Knows how names resemble each other; knows nothing of what they name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_PLURALS = {"analysis": "analyses", "stratum": "strata"}


def nearest(name: str, known: Iterable[str], what: str) -> str:
    """A remedy: the known name that is nearest to an unknown one, or all of them where none is near."""
    names = list(known)
    by_folded = {candidate.casefold(): candidate for candidate in reversed(names)}
    close = get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    if close:
        return f"The nearest known {what} is {by_folded[close[0]]!r}"
    shown = ", ".join(repr(candidate) for candidate in names[:12])
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"Known {_PLURALS.get(what, f'{what}s')}: {shown}{more}"
