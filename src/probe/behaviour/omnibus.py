"""Do the personas differ at all? One test over all of them, per metric. Knows outcomes and case means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from probe.behaviour.contrasts import CONTRASTS, FAMILY
from probe.behaviour.intervals import ROUNDING
from probe.behaviour.measures import split_by_columns
from probe.behaviour.outcomes import read_outcomes
from probe.behaviour.significance import holm
from probe.values import ALL

COLUMNS = ("metric", "stratum", "Q", "df", "p", "p_holm", "n", "personas", "test", "note")


def cochran(
    table: pd.DataFrame,
    metrics: Sequence[str] = FAMILY,
    *,
    options: Sequence[str] | None = None,
    high_risk: str | None = None,
) -> pd.DataFrame:
    """Cochran's Q (1950) over all personas, for every binary metric, on the cases that every persona has.

    Where a case has several rows of a persona (wordings, rotations), Q would take them for new cases: there the mean
    per case is tested instead, by Hotelling's T^2 on the differences from the first persona; ``Q`` is T^2 then, with an
    F reference. ``p_holm`` is over the table. Without a case on which the personas differ p is 1.
    """
    outcomes = read_outcomes(table, options=options, high_risk=high_risk)
    wanted = [contrast for contrast in CONTRASTS if contrast.binary and contrast.name in metrics]
    present, absent = split_by_columns(wanted, outcomes)
    rows = []
    for contrast in present:
        if outcomes.lacks(contrast.need):
            continue
        names = {"case": outcomes.case, "persona": outcomes.persona, "stratum": outcomes.stratum}
        frame = pd.DataFrame(names).assign(score=contrast.score(outcomes))
        for stratum in outcomes.strata:
            part = frame if stratum == ALL else frame[frame["stratum"] == stratum]
            single = not part.duplicated(["case", "persona"]).any()
            wide = part.pivot_table(index="case", columns="persona", values="score", dropna=False).dropna()
            row = omnibus(wide.to_numpy(dtype=float), binary=single)
            rows.append({"metric": contrast.name, "stratum": stratum, "personas": wide.shape[1], **row})
    result = pd.DataFrame(rows, columns=list(COLUMNS))
    tested = result["p"].notna()
    result["p_holm"] = np.nan
    result.loc[tested, "p_holm"] = holm(result.loc[tested, "p"].astype(float).tolist())
    result.attrs = {"absent": list(absent)}
    return result


def omnibus(scores: Float[np.ndarray, "case persona"], *, binary: bool) -> dict[str, object]:
    """One test that all columns have the same mean: Cochran's Q of 0 and 1, else Hotelling's T^2."""
    n, k = scores.shape
    row: dict[str, object] = {"n": n, "note": "", "test": "Cochran's Q" if binary else "Hotelling's T^2 of case means"}
    if n == 0 or k < 2:
        return row | {"note": "undefined: it needs two personas and a case that all have"}
    shifts = scores[:, 1:] - scores[:, :1]
    shifts[np.abs(shifts) <= ROUNDING * np.abs(scores).max()] = 0.0  # means over more and fewer wordings
    if not shifts.any():
        return row | {"df": k - 1, "p": 1.0, "note": "no case on which the personas differ"}
    if binary:
        from statsmodels.stats.contingency_tables import cochrans_q  # late: it is slow to import

        found = cochrans_q(scores)
        return row | {"Q": float(found.statistic), "df": int(found.df), "p": float(found.pvalue)}
    undefined = row | {"note": "undefined: too few cases, or personas that never differ from each other"}
    if n <= k - 1:
        return undefined
    spread = np.atleast_2d(np.cov(shifts, rowvar=False))
    if np.linalg.matrix_rank(spread, tol=1e-10 * float(np.abs(spread).max())) < k - 1:
        return undefined
    centre = shifts.mean(0)
    squared = float(n * centre @ np.linalg.solve(spread, centre))
    p = float(stats.f.sf(squared * (n - k + 1) / ((n - 1) * (k - 1)), k - 1, n - k + 1))
    return row | {"Q": squared, "df": k - 1, "p": p}
