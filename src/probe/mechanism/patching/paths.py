"""By which tokens a persona's effect comes to the token that is read. Knows reads of composed runs; knows no model.

The last token sees the persona's own tokens, the case, and what stands beside it. Each of these roles can be as in the
base run or as in the persona's, at every layer, whatever the others are: a game whose players are the roles and whose
worth is the label distribution. The mean over all orders in which they are changed is what a role contributes (Shapley
1953, Contributions to the Theory of Games II); the contributions sum to the total.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import factorial

import numpy as np
import pandas as pd
from jaxtyping import Float

from probe.mechanism.patching.groups import CASE, GENERATED, INSTRUCTION, PROMPT_END, TEMPLATE
from probe.mechanism.patching.many import by_case
from probe.mechanism.patching.reads import LATENT, SAME, PatchReads
from probe.mechanism.relation.verdicts import change, fieller

DIRECT, THROUGH_CASE, THROUGH_REST, THROUGH_TEXT = "direct", "case", "rest of the prompt", "text"

PLAYERS: Mapping[str, tuple[str, ...]] = {
    THROUGH_CASE: (CASE,),
    THROUGH_REST: (INSTRUCTION, TEMPLATE),
    THROUGH_TEXT: (PROMPT_END, GENERATED),
}
"""The groups of tokens behind each role beside ``direct``, the persona's own tokens as the last token sees them."""


def players(read: str) -> tuple[str, ...]:
    """The roles of a game: where the label is read at the prompt's end, no text stands before it."""
    return (DIRECT, THROUGH_CASE, THROUGH_REST, *(() if read == LATENT else (THROUGH_TEXT,)))


def coalitions(names: Sequence[str]) -> tuple[frozenset[str], ...]:
    """Every set of roles that may be as in the persona's run, the empty and the whole one too."""
    return tuple(frozenset(chosen) for size in range(len(names) + 1) for chosen in combinations(names, size))


def coalition_name(chosen: frozenset[str], names: Sequence[str]) -> str:
    """How a table names a set of roles."""
    return " + ".join(name for name in names if name in chosen)


def shapley_weights(player: str, names: Sequence[str]) -> dict[frozenset[str], float]:
    """The weight of each coalition's worth in a role's Shapley value: |S|! (n - |S| - 1)! / n!, negative without."""
    n = len(names)
    weights = {}
    for chosen in coalitions(names):
        size = len(chosen - {player})
        share = factorial(size) * factorial(n - size - 1) / factorial(n)
        weights[chosen] = share if player in chosen else -share
    return weights


def quantities(player: str, names: Sequence[str]) -> dict[str, dict[frozenset[str], float]]:
    """What is told of a role, as weights over coalitions.

    ``shapley``: the mean over all orders. ``first``: changed alone, from the base run. ``last``: changed when all
    others are. ``interaction``: last - first, what it does only together with others.
    """
    everyone, nobody = frozenset(names), frozenset[str]()
    first = {frozenset({player}): 1.0, nobody: -1.0}
    last = {everyone: 1.0, everyone - {player}: -1.0}
    joint = {chosen: last.get(chosen, 0.0) - first.get(chosen, 0.0) for chosen in {**first, **last}}
    return {"shapley": shapley_weights(player, names), "first": first, "last": last, "interaction": joint}


def path_shares(reads: Sequence[PatchReads], base: str) -> pd.DataFrame:
    """What each role contributes to a persona's effect on the label, in both orders, with the interaction.

    Tidy: persona, base, stratum, read, outcome, role (of :func:`players`, or ``total``), quantity
    (:func:`quantities`), value, low, high (95 %, clustered by case family), share = value / total with share_low and
    share_high (ratio of means, Fieller set; undefined where the total's interval holds 0), n, families, note.
    """
    rows: list[dict[str, object]] = []
    for own in reads:
        names = players(own.read)
        worth = _worth(own, names)
        if worth is None:
            continue
        for stratum in own.strata:
            for outcome in own.outcomes:
                rows += _shares(own, worth, names, stratum, outcome, base)
    columns = ["persona", "base", "stratum", "read", "outcome", "role", "quantity", "value", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "share", "share_low", "share_high", "n", "families", "note"])


def _worth(own: PatchReads, names: Sequence[str]) -> dict[frozenset[str], Float[np.ndarray, "unit label"]] | None:
    """The reads of every coalition; None where paths were not run."""
    worth = {}
    for chosen in coalitions(names):
        known = {0: own.base, len(names): own.donor}
        found = known.get(len(chosen), own.coalitions.get(coalition_name(chosen, names)))
        if found is None:
            return None
        worth[chosen] = found
    return worth


def _shares(
    own: PatchReads,
    worth: Mapping[frozenset[str], Float[np.ndarray, "unit label"]],
    names: Sequence[str],
    stratum: str,
    outcome: str,
    base: str,
) -> list[dict[str, object]]:
    kept = own.within(stratum)
    case = np.unique(own.case[kept], return_inverse=True)[1]
    family = by_case(own.family[kept].astype(float), case).astype(int)
    values = {chosen: own.outcome(outcome, logp)[kept] for chosen, logp in worth.items()}
    everyone, nobody = frozenset(names), frozenset[str]()
    told = {("total", "shapley"): {everyone: 1.0, nobody: -1.0}}
    told |= {(name, kind): weights for name in names for kind, weights in quantities(name, names).items()}
    total = by_case(values[everyone] - values[nobody], case)
    rows = []
    for (role, quantity), weights in told.items():
        summed = np.sum([weight * values[chosen] for chosen, weight in weights.items() if weight], axis=0)
        per_case = by_case(np.where(np.abs(summed) < SAME, 0.0, summed), case)
        top = own.top(outcome) * sum(weight for weight in weights.values() if weight > 0)
        found, share = change(per_case, family, top), fieller(per_case, total, family)
        none = share.value is None
        rows.append(
            {"persona": own.persona, "base": base, "stratum": stratum, "read": own.read, "outcome": outcome}
            | {"role": role, "quantity": quantity, "value": found.value, "low": found.low, "high": found.high}
            | {"share": np.nan if none else share.value, "share_low": np.nan if none else share.low}
            | {"share_high": np.nan if none else share.high, "n": found.n, "families": found.families}
            | {"note": "; ".join(filter(None, (found.note, share.note)))}
        )
    return rows
