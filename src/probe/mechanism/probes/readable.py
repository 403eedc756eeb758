"""Where latent label, stated label and disagreement can be read, persona by persona. Knows sites; knows no store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from probe.behaviour import Outcomes
from probe.mechanism.activations import Activations
from probe.mechanism.linear.readouts import one_hot
from probe.mechanism.linear.ridge import nested
from probe.mechanism.linear.scores import auroc_estimate
from probe.mechanism.probes.targets import targets_of
from probe.mechanism.splits import families_of, fold_of

FOLDS = 5
TARGETS = ("latent", "stated", "disagreement")


def readable_table(
    acts: Activations, outcomes: Outcomes, positions: Sequence[str], *, seed: int = 0, folds: int = FOLDS
) -> pd.DataFrame:
    """AUROC of linear probes of three targets on each persona's cells, at every captured layer of these positions.

    The targets: ``latent`` label, ``stated`` label, and their ``disagreement``. Each probe is fitted on the other case
    families of *all other personas* and judged on this one's cells. Columns: persona, target, position, layer, value
    (of three labels the mean over labels, each against the rest; per fold, then averaged), low, high, n (families),
    rows, base_rate (share of the commonest class), method, note. Undefined, with a note, where the persona shows one
    class only; without a row where none of its cells has the position or the target. Empty with one persona or with
    fewer than three families: nothing could be held out.
    """
    persona, family = outcomes.persona, families_of(acts.table)
    fewer = min(folds, len(set(family)))
    if fewer < 3 or len(outcomes.personas) < 2:
        return pd.DataFrame()
    fold = fold_of(family, fewer, seed, outcomes.stratum)
    # Where answers state no label, say, there is nothing to read of it: no row, as for any target of one class.
    targets = [target for name, target in targets_of(outcomes).items() if name in TARGETS]
    rows = []
    for position in positions:
        for site in acts.sites(position):
            for target in targets:
                there = target.codes[site.places] >= 0
                places = site.places[there]
                codes, own = target.codes[places], persona[places]
                if len(np.unique(codes)) < 2:
                    continue
                y = one_hot(codes, len(target.classes))
                sets = np.zeros(y.shape[1], dtype=np.int64)  # the classes share one strength
                for name in outcomes.personas:
                    here = own == name
                    if not here.any():  # ``persona_end`` without a persona, say
                        continue
                    score = nested(site.x[there], y, fold[places], sets=sets, fit=~here).score[here]
                    found = auroc_estimate(score, y[here] > 0, fold[places][here], family[places][here])
                    counts = np.bincount(codes[here], minlength=2)
                    value = {"value": found.value, "low": found.low, "high": found.high}
                    key = {"persona": name, "target": target.name, "position": position, "layer": site.layer}
                    told = {"n": found.n, "rows": int(here.sum()), "method": found.method, "note": found.note}
                    share = counts.max() / max(counts.sum(), 1)
                    rows.append(
                        key | {k: np.nan if v is None else v for k, v in value.items()} | told | {"base_rate": share}
                    )
    return pd.DataFrame(rows)
