"""A number that travels with its uncertainty and its counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Estimate:
    """A value with an interval, the number of cases behind it, and the counts it was made from.

    ``value`` is None where the quantity is undefined; ``note`` then says why. ``low`` and ``high`` are None where no
    interval is honest. The interval's level is 95 % unless ``method`` says otherwise. ``p`` is a two-sided raw
    p-value of the hypothesis that the value is nil, where a test was made.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    counts: Mapping[str, float] = field(default_factory=dict)
    method: str = ""
    note: str = ""
    p: float | None = None
