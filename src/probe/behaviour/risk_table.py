"""Risk under every cut between over- and under-triage, for both labels. Knows outcomes and risk measures."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from probe.behaviour import risk
from probe.behaviour.outcomes import read_outcomes
from probe.values import Estimate

MEASURES = {
    "sensitivity": risk.sensitivity,
    "log_ratio": risk.log_ratio,
    "over_rate": risk.over_rate,
    "under_rate": risk.under_rate,
}
COUNTS = ("type_1", "type_2", "at_risk_1", "at_risk_2")
COLUMNS = ("cut", "labels", "persona", "stratum", "metric", "value", "low", "high", "n", *COUNTS, "note")


def risk_by_cut(
    table: pd.DataFrame, *, options: Sequence[str] | None = None, high_risk: str | None = None
) -> pd.DataFrame:
    """Risk sensitivity, its smoothed log-ratio and each error's own rate under every cut, with both counts beside.

    ``labels`` is ``stated`` or ``latent``. Cuts that need what is not known of the options are undefined, with a note.
    """
    outcomes = read_outcomes(table, options=options, high_risk=high_risk)
    sources = [name for name, told in (("stated", "y_gen"), ("latent", "y_latent")) if told in outcomes.told]
    arms = {(p, s): outcomes.arm(p, s) for p in outcomes.personas for s in outcomes.strata}
    rows = []
    for cut_name, cut in risk.CUTS.items():
        lacking = outcomes.lacks(risk.need_of(cut))
        for source in sources:
            for (persona, stratum), arm in arms.items():
                labels = arm.latent if source == "latent" else arm.stated
                counts = {} if lacking else risk.errors_of(arm, labels, cut).counts
                key = {"cut": cut_name, "labels": source, "persona": persona, "stratum": stratum}
                for metric, measure in MEASURES.items():
                    found = Estimate(None, note=lacking) if lacking else measure(arm, labels, cut)
                    row = {"metric": metric, "value": found.value, "low": found.low, "high": found.high}
                    rows.append(key | row | {"n": found.n, **counts, "note": found.note})
    return pd.DataFrame(rows, columns=list(COLUMNS))
