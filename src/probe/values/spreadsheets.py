"""Text that a spreadsheet must not run. Knows one cell of a CSV file; knows no table."""

from __future__ import annotations

from typing import Any

_RETURN = "\N{SYMBOL FOR CARRIAGE RETURN}"


def inert(value: Any) -> Any:
    """A cell or a name as it may stand in a CSV file: text that a spreadsheet would run begins with an apostrophe.

    A carriage return would end the line for many readers, whatever the quotes; its symbol stands for it.
    """
    if not isinstance(value, str):
        return value
    value = value.replace("\r", _RETURN)
    return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", _RETURN) else value
