"""What each intervention of a store is, in words and numbers. Reads plans; imports no torch."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import pandas as pd

from probe.report.numbers import plural
from probe.store import Store

_LISTED = 12
_STRENGTHS = ("strength", "to", "at_most", "at_least")


def arms_table(store: Store) -> pd.DataFrame:
    """One line per intervention of the latest plan, empty without any.

    ``operators`` are in the words of the study, ``layers`` and ``positions`` those of its edits; ``strength`` is in
    ``unit`` and ``norm``, the largest of its added vectors, in units of the stream (of the residual's norm where
    ``unit`` is ``residual``). ``cases_fitted_on``: cases of this study in the families that its directions were fitted
    on.
    """
    return pd.DataFrame([_line(told) for told in store.plan.interventions])


def arms_told(store: Store) -> Iterator[str]:
    """A sentence for each intervention, and one for those beyond the first dozen."""
    told = arms_table(store).to_dict("records")
    for row in told[:_LISTED]:
        strength = "" if pd.isna(row["strength"]) else f", strength {row['strength']:g} in units of the {row['unit']}"
        norm = "" if pd.isna(row["norm"]) else f" (norm {row['norm']:.4g})"
        whose = f" under {row['personas']}" if row["personas"] else ""
        yield (
            f"{row['intervention']}{whose}: {row['operators']}{_to(row)} at {row['positions']}, layer {row['layers']}"
            f"{strength}{norm}"
        )
    if len(told) > _LISTED:
        yield f"... and {plural(len(told) - _LISTED, 'other intervention')}; arms.csv has all of them"


def _line(told: Mapping[str, Any]) -> dict[str, Any]:
    edits, about = told["edits"], told.get("about") or {}
    norms = [edit["norm"] for edit in edits if "norm" in edit]
    return {
        "intervention": told["name"],
        "personas": ", ".join(told["personas"] or ()),
        # An ablation to the base's value, and a swap, are carried out as `set`: told is what was asked for.
        "operators": next((key for key in ("ablate", "swap") if key in about), _listed(edits, "operator")),
        "streams": _listed(edits, "stream"),
        "layers": _listed(edits, "layer"),
        "positions": _listed(edits, "position"),
        "strength": next((about[key] for key in _STRENGTHS if key in about), None),
        "unit": about.get("unit", ""),
        "norm": max(norms, default=None),
        "directions": ", ".join(map(str, about.get("directions", ()))),
        "donor": about.get("donor", ""),
        "gated": any("gate_above" in edit for edit in edits),
        "cases_fitted_on": told.get("cases_fitted_on", 0),
        "sha256": told["sha256"],
    }


def _to(row: Mapping[Hashable, Any]) -> str:
    """To whose value something is set."""
    if row["operators"] == "swap":
        return f" to {row['donor']}'s value"
    if row["operators"] == "ablate":
        return f" to {row['donor']}'s value" if row["donor"] else " to 0"
    return f" from {row['donor']}" if row["operators"] == "patch" and row["donor"] else ""


def _listed(edits: list[Mapping[str, Any]], name: str) -> str:
    return ", ".join(dict.fromkeys(str(edit[name]) for edit in edits))
