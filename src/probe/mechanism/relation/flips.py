"""Which cases change label, and in which of the two labels. Knows labels of paired cells; knows no mean or verdict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from probe.behaviour import CONTROLS, Outcomes, control_personas, pair_rows, read_outcomes
from probe.mechanism.relation.paired_arms import bases_of, cells_of, mean_by
from probe.mechanism.relation.verdicts import change
from probe.values import ALL

FLIPS = ("carried", "divergent", "stated_only", "latent_only", "none")
"""Both labels move, to the same one; both move, to different ones; only one moves; neither does."""

UNSTATED = "unstated"
"""Share of pairs in which an arm states no label (or has no latent one): in none of the above."""

FLIP_COLUMNS = (
    *("persona", "base", "stratum", "flip", "value", "low", "high", "control", "excess", "excess_low", "excess_high"),
    *("n", "note"),
)


def flip_table(
    table: pd.DataFrame,
    *,
    base: str | Sequence[str] | None = None,
    controls: Sequence[str] | None = None,
    options: Sequence[str] | None = None,
) -> pd.DataFrame:
    """How often each label moves with the persona, per case, beside the same for the control wordings.

    ``value``: share of a case's pairs (each row of the persona with each base row of its key), averaged over cases;
    the five kinds of :data:`FLIPS` are shares of the pairs with both labels in both arms and sum to 1, ``unstated`` is
    the share of the others. ``control``: the same of the control wordings against the base, or of each control wording
    against the others where they are the base; ``excess`` = value - control over the cases that both have, t intervals
    clustered by family. Means cancel, this does not: a persona that moves as many cases up as down has L = 0 and a full
    ``carried``.

    Raises:
        ProbeError: a base is not in the table, or the table breaks a rule of ``read_outcomes``.
    """
    outcomes = read_outcomes(table, options=options)
    neutral = control_personas(table, controls)
    cells = cells_of(table, outcomes)
    arm = cells.groupby([name for name in ("persona", "wording") if name in cells]).ngroup().to_numpy()
    persona, case = cells["persona"].to_numpy(), cells["case"].to_numpy()
    cases, first = np.unique(case, return_index=True)
    family, stratum = (cells[name].to_numpy()[first] for name in ("family_of_case", "stratum"))
    rows: list[dict[str, object]] = []
    for name, members in bases_of(outcomes, neutral, base).items():
        theirs = np.flatnonzero(np.isin(persona, members))

        def shares(ours: np.ndarray, theirs: np.ndarray = theirs) -> Float[np.ndarray, "kind case"]:
            i, j = pair_rows(cells.iloc[ours], cells.iloc[theirs])
            i, j = ours[i], theirs[j]
            apart = arm[i] != arm[j]  # a control wording is no evidence against itself
            return _shares(outcomes, case, i[apart], j[apart], len(cases))

        null = shares(np.flatnonzero(np.isin(persona, neutral))) if neutral else None
        for one in outcomes.personas:
            if one in members:
                continue
            own = shares(np.flatnonzero(persona == one))
            told = "a control wording itself" if one in neutral else "" if neutral else "no control wordings"
            for where in outcomes.strata:
                part = np.full(len(cases), True) if where == ALL else stratum == where
                named = {"persona": one, "base": name, "stratum": where}
                rows += [named | row for row in _rows(own[:, part], None if told else null, part, family, told)]
    result = pd.DataFrame(rows, columns=list(FLIP_COLUMNS))
    result.attrs = {"controls": list(neutral), "null": f"control wordings against {CONTROLS} or the base"}
    return result


def flips_of(
    latent: Int[np.ndarray, " pair"],
    latent_base: Int[np.ndarray, " pair"],
    stated: Int[np.ndarray, " pair"],
    stated_base: Int[np.ndarray, " pair"],
) -> Int[np.ndarray, " pair"]:
    """The kind of each pair as a number in :data:`FLIPS`; -1 where an arm lacks a label."""
    inner, outer = latent != latent_base, stated != stated_base
    kind = np.select([inner & outer & (latent == stated), inner & outer, outer, inner], [0, 1, 2, 3], default=4)
    absent = (latent < 0) | (latent_base < 0) | (stated < 0) | (stated_base < 0)
    return np.where(absent, -1, kind)


def _shares(
    outcomes: Outcomes, case: np.ndarray, ours: np.ndarray, theirs: np.ndarray, n_cases: int
) -> Float[np.ndarray, "kind case"]:
    """Share of each kind, then of the unstated, among the pairs of each case; NaN where a case has none."""
    kind = flips_of(outcomes.latent[ours], outcomes.latent[theirs], outcomes.stated[ours], outcomes.stated[theirs])
    of_kind = [
        mean_by(case[ours], np.where(kind < 0, np.nan, (kind == k).astype(float)), n_cases) for k in range(len(FLIPS))
    ]
    return np.stack([*of_kind, mean_by(case[ours], (kind < 0).astype(float), n_cases)])


def _rows(
    own: np.ndarray, null: np.ndarray | None, part: np.ndarray, family: np.ndarray, told: str
) -> list[dict[str, object]]:
    rows = []
    for k, name in enumerate((*FLIPS, UNSTATED)):
        found = change(own[k], family[part], 1.0)
        row: dict[str, object] = {"flip": name, "value": found.value, "n": found.n, "note": found.note or told}
        row |= {"low": max(found.low, 0.0), "high": min(found.high, 1.0)}
        if null is not None:
            beyond = change(own[k] - null[k][part], family[part], 1.0)
            control = null[k][part]
            row["control"] = float(np.nanmean(control)) if (~np.isnan(control)).any() else np.nan
            row |= {"excess": beyond.value, "excess_low": beyond.low, "excess_high": beyond.high}
            if beyond.n == 0 and found.n:
                row["note"] = "no two control wordings to compare with"
        rows.append(row)
    return rows
