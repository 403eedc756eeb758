"""How answers were read, by any grouping of the cells. Knows statuses; knows no label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from probe.behaviour import scores
from probe.behaviour.columns import text_of
from probe.behaviour.intervals import proportion
from probe.behaviour.outcomes import read_outcomes
from probe.values import ALL, ProbeError
from probe.values.cells import STATUSES
from probe.values.nearest import nearest

COLUMNS = ("group", "stratum", "status", "value", "low", "high", "n", "k")


def answer_rates(table: pd.DataFrame, by: str = "persona", *, options: Sequence[str] | None = None) -> pd.DataFrame:
    """Share of parsed, refused, unparsable, truncated and conflicting answers in each group and stratum (Wilson).

    ``by`` is a column of the table: persona, role, category, ...; a cell without a value there is in no group.

    Raises:
        ProbeError: the table has no such column, or no ``y_gen``.
    """
    if by not in table:
        raise ProbeError(f"the table has no column {by!r}. {nearest(by, tuple(map(str, table.columns)), 'column')}")
    outcomes = read_outcomes(table, options=options)
    if "y_gen" not in outcomes.told:
        raise ProbeError("rates of answers need the column y_gen, which the table does not have")
    group, rows = text_of(table, by), []
    for name in dict.fromkeys(group[group != ""].tolist()):
        for stratum in outcomes.strata:
            inside = group == name
            inside &= np.full(len(outcomes), True) if stratum == ALL else outcomes.stratum == stratum
            arm = outcomes.take(inside)
            for status in STATUSES:
                share = proportion(scores.has_status(status)(arm), arm.case)
                row = {"group": name, "stratum": stratum, "status": status, "value": share.value, "low": share.low}
                rows.append(row | {"high": share.high, "n": share.n, "k": share.counts.get("k", 0.0)})
    return pd.DataFrame(rows, columns=list(COLUMNS))
