"""What a verdict means, in a sentence. Knows rows of the relation's table; computes nothing.

A verdict says where an effect is *visible*, never what caused it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from probe.report.numbers import decimal, interval, p_value, plural, signed
from probe.report.style import metric_name, shown

WORDS = {
    "latent": "visible in the latent label already; writing the answer adds less than the margin",
    "decoding": "visible in the stated label only; the latent label stays within the margin",
    "both": "visible in the latent label, and writing the answer adds to it in the same direction",
    "opposed": "visible in the latent label, and writing the answer goes the other way",
    "neither": "smaller than the margin in the latent label and in what writing adds",
    "cannot tell": "this study cannot tell where",
    "no latent label at this site": "the labels have next to no probability where the latent label is read",
}
"""Where the effect of a persona is visible, by verdict."""


def relation_sentence(row: pd.Series) -> str:
    """One row of the relation (:mod:`probe.mechanism.relation`) as a sentence, with what a reader must beware of."""
    where = f"{shown(row['persona'])} against {_base(row['base'])}, {shown(row['stratum'])}"
    told = f"{where}: {row['verdict']} ({WORDS[row['verdict']]}"
    if row["verdict"] == "opposed" and row["T_status"] == "still":
        told += ", back to where the base is"
    told += f"): L {_with_interval(row, 'L')}, D {_with_interval(row, 'D')}, T {_with_interval(row, 'T')}"
    told += f"; {plural(row['n'], 'case')}, margin {decimal(row['delta'])}"
    beware = [_unsure(row), _unstated(row), _worst(row), _labels(row)]
    return "; ".join([told, *filter(None, beware)])


def _base(name: str) -> str:
    return "the mean of the control wordings" if name == "controls" else shown(name)


def _with_interval(row: pd.Series, quantity: str) -> str:
    return f"{signed(row[quantity], 2)} {interval(row[f'{quantity}_low'], row[f'{quantity}_high'])}".strip()


def _unsure(row: pd.Series) -> str:
    if row["verdict"] != "cannot tell":
        return ""
    names = [quantity for quantity in ("L", "D") if row[f"{quantity}_status"] == "cannot tell"]
    return f"{' and '.join(names)} can be called neither moved nor still"


def _unstated(row: pd.Series) -> str:
    shares = (row["unstated"], row["base_unstated"])
    if not any(share > 0 for share in shares):
        return ""
    told = f"no stated label in {decimal(shares[0])} of its cells and {decimal(shares[1])} of the base's"
    return f"{told}, D between {signed(row['D_bound_low'], 2)} and {signed(row['D_bound_high'], 2)} whatever they said"


def _worst(row: pd.Series) -> str:
    if pd.isna(row["L_worst_low"]):
        return ""
    return (
        f"label mass {decimal(row['label_mass'])} against {decimal(row['base_label_mass'])}: L between "
        f"{signed(row['L_worst_low'], 2)} and {signed(row['L_worst_high'], 2)} if the rest could be any label"
    )


def _labels(row: pd.Series) -> str:
    if row["read"] == "label" or row["verdict_label"] in ("", row["verdict"]):
        return ""
    return f"of the labels themselves: {row['verdict_label']}"


def prediction_sentence(table: pd.DataFrame) -> str:
    """What the residual says of the disagreement beyond the outputs, of its best site, in a sentence."""
    losses = table.set_index("features")["loss"].dropna()
    told = ", ".join(f"{name} {decimal(loss, 3)}" for name, loss in losses.items())
    tested = table[table["p_adjusted"].notna()]
    if tested.empty:
        return f"log loss of the disagreement (nats per cell): {told}; no residual was judged"
    best = tested.sort_values("value").iloc[-1]
    found = bool(best["p_adjusted"] < 0.05 and best["value"] > 0)
    beyond = "saves" if found else "saves no more than the same features of other cases:"
    return (
        f"log loss of the disagreement (nats per cell): {told}; beyond the saturated outputs the residual "
        f"({best['features']}, {best['position']}, point {best['layer']:.0f}) {beyond} {signed(best['value'], 3)} "
        f"{interval(best['low'], best['high'], 3)}, p {p_value(best['p_adjusted'])} over all {len(tested)} sites and "
        "features; prediction, no mediation"
    )


def sides_sentence(table: pd.DataFrame, persona: str = "all") -> str:
    """With which label the last residual point at the end of the prompt sides where the two part, in a sentence."""
    rows = table[(table["persona"] == persona) & (table["side"] == "stated") & table["value"].notna()]
    at = "prompt_end" if (rows["position"] == "prompt_end").any() else ""
    rows = rows[rows["position"] == at] if at else rows
    if rows.empty:
        return "stated and latent label differ in no cell, so there is no side to take"
    best, last = (rows.sort_values(name).iloc[-1] for name in ("value", "layer"))
    beside = [f"chance {decimal(last['chance'])}"]
    if not np.isnan(last["baseline"]):
        beside.append(f"saturated outputs {decimal(last['baseline'])}")
    return (
        f"in the {plural(last['n'], 'cell')} where the labels part, a readout of {last['position']} sides with the "
        f"stated label in {decimal(last['value'])} {interval(last['low'], last['high'])} at point {last['layer']:.0f} "
        f"({', '.join(beside)}); most at point {best['layer']:.0f}: {decimal(best['value'])}"
    )


def outcome_words(outcome: str, read: str) -> str:
    """An outcome under a read, as a reader sees it."""
    if outcome == "expected_urgency":
        return "expected urgency" if read == "distribution" else "rank of the label"
    if outcome == "probability_high":
        return "probability of the high-risk option" if read == "distribution" else "share of the high-risk label"
    return metric_name(outcome).lower()
