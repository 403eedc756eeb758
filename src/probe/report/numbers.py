"""How numbers are written for readers. Knows digits; knows no metric."""

from __future__ import annotations

import numpy as np

DASH = "–"

SIGNIFICANT = 0.05
"""Level of every star and of every sentence that calls an effect resolved."""


def decimal(value: float | None, digits: int = 2) -> str:
    """``.72``, ``−.05``, ``1.00``: no zero before the point; a dash where undefined."""
    if value is None or not np.isfinite(value):
        return DASH if value is None or np.isnan(value) else ("∞" if value > 0 else "−∞")
    text = f"{abs(value):.{digits}f}"
    sign = "−" if value < 0 and float(text) else ""
    return sign + (text[1:] if text.startswith("0.") else text)


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """``[.68, .76]``, empty where there is no interval."""
    if low is None or high is None or np.isnan(low) or np.isnan(high):
        return ""
    return f"[{decimal(low, digits)}, {decimal(high, digits)}]"


def points(value: float, digits: int = 1) -> str:
    """A difference of proportions in percentage points, signed: ``+19.3``."""
    return DASH if np.isnan(value) else f"{100 * value:+.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """``+.052``, ``−.052``."""
    return f"{'+' if value > 0 else ''}{decimal(value, digits)}"


def p_value(p: float) -> str:
    """``< .001``, ``.013``; a dash where no test was made."""
    if np.isnan(p):
        return DASH
    return "<\u00a0.001" if p < 0.001 else decimal(p, 3)


def plural(n: float, word: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{n:,.0f} {word}" + ("" if n == 1 else "s")


def listed(items: list[str], most: int = 8) -> str:
    """``a``, ``a and b``, ``a, b and c``; beyond ``most`` items the rest is counted."""
    if len(items) > most:
        items = [*items[: most - 1], f"{len(items) - most + 1} more"]
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))
