"""A case: what is to be decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ALL = "all"
"""The stratum that holds every case: the pool of all strata. No case may name it as its own."""


@dataclass(frozen=True)
class Case:
    """One input with its reference label.

    ``target`` is an option id of the task (a semantic option, never a letter). ``stratum`` is what every table is
    split by (emergency, primary care, ...). Cases of one ``family`` (template, twin) are never split between fitting
    and judging. ``choices`` overrides the option texts of the task for this case.
    """

    id: str
    input: str
    target: str
    stratum: str = ""
    family: str = ""
    choices: tuple[str, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)


_SAYS_NOTHING = frozenset({"n/a", "na", "[mask]", "...", "…", "-", "none"})
"""Inputs without content, after Zhao et al. 2021 (arXiv 2102.09690)."""


def is_content_free(text: str) -> bool:
    """Whether a case's input says nothing: ``N/A``, ``[MASK]``, ``...``."""
    return text.strip().casefold() in _SAYS_NOTHING
