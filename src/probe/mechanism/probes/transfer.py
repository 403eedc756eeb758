"""Does a readout hold for personas and wordings that did not fit it? Knows one site and a target; knows no null."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Int

from probe.mechanism.activations import SiteRows
from probe.mechanism.linear.readouts import one_hot
from probe.mechanism.linear.ridge import ALPHAS, nested
from probe.mechanism.linear.scores import auroc_estimate
from probe.mechanism.probes.targets import Target
from probe.mechanism.splits import families_of

PERSONA = "persona"

OTHERS = "all others"
"""Fitted on every group but the one that is judged."""


def transfer_table(
    site: SiteRows, table: pd.DataFrame, target: Target, fold: Int[np.ndarray, " row"], *, by: str = "persona"
) -> pd.DataFrame:
    """AUROC of a target fitted on one group of rows and judged on each, always on other case families.

    ``by`` is a column of ``table``: ``persona``, or ``wording`` (then a group is a persona's wording, ``nurse/1``; of
    the target ``persona`` itself that wording of every persona).
    Columns: target, layer, position, by, fitted_on, judged_on, value, low, high, n (families), method, note.
    ``fitted_on`` is a group, or "all others": whole personas (wordings) held out. The diagonal is fitted and judged on
    the same group, other families; of wordings, which are many, there is only that and "all others". Undefined where
    the target has one class in a group.
    """
    rows = site.places[target.codes[site.places] >= 0]
    x, part, ours = site.x[np.searchsorted(site.places, rows)], table.iloc[rows], target.take(rows)
    fold, family = fold[rows], families_of(table)[rows]
    group = part[by].astype(str).to_numpy(dtype=object)
    if by == "wording" and target.name != PERSONA:
        group = part["persona"].astype(str).to_numpy(dtype=object) + "/" + group
    names = list(dict.fromkeys(group.tolist()))
    y = one_hot(ours.codes, len(ours.classes))
    one_set = np.zeros(y.shape[1], dtype=np.int64)
    found = []
    for fitted_on in names:
        score = nested(x, y, fold, sets=one_set, fit=group == fitted_on, alphas=ALPHAS).score
        found += [(fitted_on, judged, score) for judged in (names if by == "persona" else [fitted_on])]
    for judged in names if len(names) > 2 or by != "persona" else ():  # of two personas the other is all others
        score = nested(x, y, fold, sets=one_set, fit=group != judged, alphas=ALPHAS).score
        found.append((OTHERS, judged, score))
    records = []
    for fitted_on, judged, score in found:
        here = group == judged
        estimate = auroc_estimate(score[here], y[here] > 0, fold[here], family[here])
        records.append(
            {
                "target": target.name,
                "layer": site.layer,
                "position": site.position,
                "by": by,
                "fitted_on": fitted_on,
                "judged_on": judged,
                "value": np.nan if estimate.value is None else estimate.value,
                "low": np.nan if estimate.low is None else estimate.low,
                "high": np.nan if estimate.high is None else estimate.high,
                "n": estimate.n,
                "method": estimate.method,
                "note": estimate.note,
            }
        )
    return pd.DataFrame(records)
