"""Words for answer sites and causes of disagreement. Knows their names; knows no table."""

from __future__ import annotations

from probe.report.style import shown

LOW_MASS = 0.5
"""Below this probability on all labels together a latent label means little."""

CAUSES = {
    "unparsed": "no parsed answer",
    "near_tie": "near tie",
    "token_variant": "token variant",
    "draw": "drawn against the odds",
    "late_letter": "letter after preamble or reasoning",
    "none": "none of these",
}
"""Causes of disagreement in their order of precedence, as readers see them."""

_SITES = {
    "prompt_end": "at the end of the prompt",
    "forced": "after the forced text",
    "answer": "where the letter was written",
    "after_reasoning": "after its reasoning",
}


def site_name(site: str) -> str:
    """An answer site in words."""
    return _SITES.get(site, f"after {shown(site.removeprefix('prefix:'))}")


def cause_name(cause: str) -> str:
    """A cause of disagreement in words."""
    return CAUSES.get(cause, shown(cause))
