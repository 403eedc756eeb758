"""When does the label change? Agreement of the stated label with what each answer site prefers. Knows outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int

from probe.behaviour import scores
from probe.behaviour.columns import numbers_of
from probe.behaviour.intervals import NOTHING, mean, proportion
from probe.behaviour.outcomes import Outcomes, argmax, read_outcomes
from probe.values import ALL

COLUMNS = (
    *("site", "persona", "stratum", "value", "low", "high", "n", "strict", "strict_low", "strict_high", "n_strict"),
    *("label_mass", "note"),
)


def consistency_by_site(table: pd.DataFrame, *, options: Sequence[str] | None = None) -> pd.DataFrame:
    """Agreement of the stated label with the most probable label at every answer site that the table has.

    Sites: ``prompt_end``, then the further ones in column order, ``answer`` last. ``value`` is over parsed answers
    that have the site, ``strict`` counts an unparsed answer as a mismatch; both with Wilson intervals. ``label_mass``
    is the mean full-vocabulary probability on all labels there, where the table has it.
    """
    outcomes = read_outcomes(table, options=options)
    rows = []
    for site, labels, mass in _sites(table, outcomes):
        for persona in outcomes.personas:
            for stratum in outcomes.strata:
                inside = outcomes.persona == persona
                inside &= np.full(len(outcomes), True) if stratum == ALL else outcomes.stratum == stratum
                row = _row(outcomes.take(inside), labels[inside], mass[inside])
                rows.append({"site": site, "persona": persona, "stratum": stratum, **row})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _sites(table: pd.DataFrame, outcomes: Outcomes) -> Iterator[tuple[str, Int[np.ndarray, " row"], np.ndarray]]:
    """Name, most probable label and label mass of every site that has either label."""
    if "y_latent" in outcomes.told:
        yield "prompt_end", outcomes.latent, outcomes.mass
    for k, site in enumerate(outcomes.sites):
        yield site, argmax(outcomes.site_logp[:, k]), _mass(table, f"{site}_label_mass")
    if "stated_logp_<label>" in outcomes.told:
        yield "answer", argmax(outcomes.stated_logp), _mass(table, "stated_label_mass")


def _mass(table: pd.DataFrame, name: str) -> np.ndarray:
    return numbers_of(table, [name])[:, 0] if name in table else np.full(len(table), np.nan)


def _row(arm: Outcomes, labels: Int[np.ndarray, " row"], mass: np.ndarray) -> dict[str, object]:
    parsed, has_site = arm.stated >= 0, labels >= 0
    known = ~np.isnan(scores.parsed(arm))
    agrees = (parsed & (arm.stated == labels)).astype(float)
    plain = proportion(np.where(parsed & has_site, agrees, np.nan), arm.case)
    strict = proportion(np.where(known & (has_site | ~parsed), agrees, np.nan), arm.case)
    row: dict[str, object] = {"value": plain.value, "low": plain.low, "high": plain.high, "n": plain.n}
    row |= {"strict": strict.value, "strict_low": strict.low, "strict_high": strict.high, "n_strict": strict.n}
    return row | {"label_mass": mean(mass, arm.case).value, "note": NOTHING if plain.value is None else ""}
