"""One row and one verdict per persona: where its effect is visible. Knows loci; computes no estimate of its own."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from probe.mechanism.relation.locus import QUANTITIES, Locus

MAIN_OUTCOME = "expected_urgency"

RELATION_COLUMNS = (
    *("persona", "base", "stratum", "outcome", "read", "verdict", "verdict_label"),
    *(f"{quantity}{end}" for quantity in QUANTITIES for end in ("", "_low", "_high", "_status")),
    *("D_bound_low", "D_bound_high", "T_bound_low", "T_bound_high", "L_worst_low", "L_worst_high"),
    *("share", "share_low", "share_high", "delta", "label_mass", "base_label_mass", "unstated", "base_unstated"),
    *("n", "n_answered", "families", "note"),
)


def relation(found: Sequence[Locus], outcome: str = MAIN_OUTCOME) -> pd.DataFrame:
    """One row per persona, base and stratum: T, L and D of one outcome with 95 % intervals, and the verdict.

    ``read`` is the distribution over the labels where the table has it, else the label; ``verdict_label`` is that of
    the labels themselves, blank where the table has none. ``share`` is L / T with its Fieller set, given only where
    T's interval excludes 0. L is over all ``n`` cases, T and D over the ``n_answered`` that were answered under both
    arms: T = L + D holds exactly where all were. ``*_bound_*``: the ends if the others had said anything; a verdict
    holds at both ends too. ``L_worst_*``: the ends if probability outside the labels could fall on any of them, told
    where its share differs by more than .05 between the arms. ``unstated`` is the share of cells without a label.
    """
    own = [one for one in found if one.outcome == outcome]
    labels = {(one.persona, one.base, one.stratum): one.verdict for one in own if one.read == "label"}
    first = own[0].read if own else ""
    rows = [_row(one, labels.get((one.persona, one.base, one.stratum), "")) for one in own if one.read == first]
    return pd.DataFrame(rows, columns=list(RELATION_COLUMNS))


def _row(one: Locus, verdict_label: str) -> dict[str, object]:
    row: dict[str, object] = {name: getattr(one, name) for name in ("persona", "base", "stratum", "outcome", "read")}
    row |= {"verdict": one.verdict, "verdict_label": verdict_label, "delta": one.delta}
    for quantity in QUANTITIES:
        seen = one.seen[quantity]
        row |= {quantity: seen.value, f"{quantity}_low": seen.low, f"{quantity}_high": seen.high}
        row[f"{quantity}_status"] = one.status(quantity)
    if any(one.unstated):
        for quantity in ("T", "D"):
            row[f"{quantity}_bound_low"] = one.lowest[quantity].value
            row[f"{quantity}_bound_high"] = one.highest[quantity].value
    if "L" in one.worst:
        row["L_worst_low"], row["L_worst_high"] = one.worst["L"]
    row |= {"share": one.ratio.value, "share_low": one.ratio.low, "share_high": one.ratio.high}
    row |= dict(zip(("label_mass", "base_label_mass"), one.mass, strict=True))
    row |= dict(zip(("unstated", "base_unstated"), one.unstated, strict=True))
    row |= {"n": one.seen["L"].n, "n_answered": one.seen["D"].n, "families": one.seen["L"].families}
    return row | {"note": one.seen["D"].note}
