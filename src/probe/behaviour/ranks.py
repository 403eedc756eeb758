"""Judges' rankings of personas. Knows ranks per case; knows no judge and no answer."""

from __future__ import annotations

import numpy as np
import pandas as pd

from probe.behaviour.intervals import mean
from probe.behaviour.significance import paired_t
from probe.values import ProbeError


def mean_reciprocal_rank(rankings: pd.DataFrame, base: str | None = None) -> pd.DataFrame:
    """MRR of each persona, mean over cases of 1 / rank, and its paired difference from ``base``.

    ``rankings`` has one row per case, persona and (where there are several) judge, with ``rank`` from 1 (best).
    Reciprocal ranks are averaged over judges within a case first: the unit is the case. Columns: persona, value, low,
    high, n, difference, difference_low, difference_high, p (paired t over cases), test.

    Raises:
        ProbeError: a column is missing, a rank is below 1, or nobody ranked ``base``.
    """
    missing = [name for name in ("case", "persona", "rank") if name not in rankings]
    if missing:
        raise ProbeError(f"rankings need the columns case, persona and rank; missing: {', '.join(missing)}")
    if not (rankings["rank"] >= 1).all():
        raise ProbeError(f"ranks count from 1, found {rankings['rank'].min()}; the best answer has rank 1")
    reciprocal = (1 / rankings["rank"]).groupby([rankings["case"], rankings["persona"]], sort=False).mean().unstack()
    if base is not None and base not in reciprocal:
        raise ProbeError(f"the base persona must be ranked, found no {base!r} among {list(reciprocal)}")
    rows = []
    for persona in rankings["persona"].drop_duplicates():
        own = mean(reciprocal[persona].to_numpy(), reciprocal.index.to_numpy())
        row = {"persona": persona, "value": own.value, "low": own.low, "high": own.high, "n": own.n}
        if base is not None and persona != base:
            shift = (reciprocal[persona] - reciprocal[base]).dropna()
            paired = mean(shift.to_numpy(), shift.index.to_numpy())
            p, test = paired_t(np.asarray(shift, dtype=float))
            row |= {"difference": paired.value, "difference_low": paired.low, "difference_high": paired.high}
            row |= {"p": p, "test": test}
        rows.append(row)
    names = ["persona", "value", "low", "high", "n", "difference", "difference_low", "difference_high", "p", "test"]
    return pd.DataFrame(rows, columns=names)
