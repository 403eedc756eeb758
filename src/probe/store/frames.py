"""What every selection of one store shares. Knows the names that rows are selected by; knows no row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from probe.store.manifests import Layout
from probe.store.plans import Plan
from probe.store.sites import Sites
from probe.values import Cell

Attribute = Callable[[Cell, Mapping[str, Any], Mapping[str, Any]], str | int]

ATTRIBUTES: Mapping[str, Attribute] = {
    "persona": lambda cell, persona, case: cell.persona,
    "case": lambda cell, persona, case: cell.case,
    "stratum": lambda cell, persona, case: str(case.get("stratum", "")),
    "family": lambda cell, persona, case: str(case.get("family", "")),
    "role": lambda cell, persona, case: str(persona.get("role", "")),
    "style": lambda cell, persona, case: str(persona.get("style", "")),
    "condition": lambda cell, persona, case: cell.condition.name,
    "placement": lambda cell, persona, case: cell.condition.placement,
    "wording": lambda cell, persona, case: cell.condition.wording,
    "instruction": lambda cell, persona, case: cell.condition.instruction,
    "rotation": lambda cell, persona, case: cell.condition.rotation,
    "seed": lambda cell, persona, case: cell.condition.seed,
    "given": lambda cell, persona, case: cell.condition.given,
}
"""What rows are selected by, from a cell and its persona and case as the plan lists them; ``intervention``, by the name
that the plan gives it, is known to :class:`Frame`."""


@dataclass(frozen=True, eq=False)
class Frame:
    """What every selection of one store shares: layout, plan, captured sites, and the attributes of its table."""

    layout: Layout
    plan: Plan
    sites: Sites
    attrs: Mapping[str, Any]

    def attribute(self, key: str) -> Attribute:
        """The function that gives an attribute of a row."""
        if key != "intervention":
            return ATTRIBUTES[key]
        names = self.plan.intervention_names
        return lambda cell, persona, case: names[cell.condition.intervention]

    def known(self, key: str) -> list[str | int]:
        """Every value of an attribute in the plan, in its order."""
        if key not in self._known:
            self._known[key] = self._values(key)
        return self._known[key]

    @cached_property
    def _known(self) -> dict[str, list[str | int]]:
        return {}

    def _values(self, key: str) -> list[str | int]:
        personas = {persona["id"]: persona for persona in self.plan.personas}
        cases = {case["id"]: case for case in self.plan.cases}
        cells = (row.cell for row in self.plan.rows)
        attribute = self.attribute(key)
        found = (attribute(cell, personas[cell.persona], cases[cell.case]) for cell in cells)
        return list(dict.fromkeys(found))
