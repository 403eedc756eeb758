"""Where the two labels part: with which of them a residual sides, site by site. Knows cells and residuals; knows no
cause.

A stated label that is "readable at layer l" over all cells is mostly the latent label, for they agree in most; here a
readout of the stated label is judged on the cells where they do not. Source: ESTIMATORS, "Sides-with curve".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from probe.behaviour import read_outcomes
from probe.behaviour.intervals import proportion
from probe.mechanism.activations import Activations
from probe.mechanism.linear.readouts import out_of_fold
from probe.mechanism.relation.saturated import saturated_outputs
from probe.mechanism.splits import families_of, fold_of
from probe.values import ALL

SIDES = ("stated", "latent", "third")

COLUMNS = (
    *("persona", "position", "layer", "side", "value", "low", "high", "chance", "baseline", "n", "families", "note"),
)


def sides_with(
    acts: Activations,
    *,
    positions: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
    step: Callable[[Iterator[int]], Iterator[int]] = iter,
) -> pd.DataFrame:
    """With which label the residual sides in the cells where stated and latent label differ, by persona and site.

    A linear readout of the stated label is fitted on all cells of other case families and judged on these. ``value``
    is the share of them it gives the stated label (``side``), the latent one, or a third; Wilson intervals at the
    effective n, clustered by family. ``chance``: the same share if the readout's labels were dealt out among a
    persona's cells at random; ``baseline``: the share of the same readout of the saturated outputs (at ``answer`` and
    ``response_mean`` with those of the answer site). ``persona`` is ``all`` for all of them together.
    """
    outcomes = read_outcomes(acts.table)
    usable = (outcomes.stated >= 0) & (outcomes.latent >= 0) & ~np.isnan(outcomes.latent_logp).any(1)
    parted = usable & (outcomes.stated != outcomes.latent)
    family = families_of(acts.table)
    fold = fold_of(family, folds, seed, outcomes.stratum)
    stated = np.where(usable, outcomes.stated, -1)
    baselines: dict[bool, Int[np.ndarray, " row"]] = {}
    rows: list[dict[str, object]] = []
    for position in acts.positions if positions is None else positions:
        late = position in ("answer", "response_mean")
        if late not in baselines:
            design = saturated_outputs(outcomes, acts.table, answer=late)
            there = usable & ~np.isnan(design).any(1)
            baselines[late] = _labels(design[there], stated, fold, np.flatnonzero(there))
        for layer in step(iter(acts.layers)):
            site = acts.at(layer, position)
            kept = usable[site.places]
            said = _labels(np.asarray(site.x)[kept], stated, fold, site.places[kept])
            for persona in (ALL, *outcomes.personas):
                cells = parted & (said >= 0)
                cells &= (outcomes.persona == persona) if persona != ALL else True
                named = {"persona": persona, "position": position, "layer": layer}
                found = _shares(said, baselines[late], outcomes.stated, outcomes.latent, cells, family)
                rows += [named | row for row in found]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _labels(x: np.ndarray, stated: np.ndarray, fold: np.ndarray, rows: np.ndarray) -> Int[np.ndarray, " row"]:
    """The readout's label for the rows of ``x``, in their places of the table; -1 elsewhere."""
    labels = np.full(len(stated), -1)
    if len(rows):
        read = out_of_fold(x, stated[rows], fold[rows])
        labels[rows] = [-1 if one is None else int(one) for one in read.label]
    return labels


def _shares(
    said: np.ndarray,
    baseline: np.ndarray,
    stated: np.ndarray,
    latent: np.ndarray,
    cells: Bool[np.ndarray, " row"],
    family: np.ndarray,
) -> list[dict[str, object]]:
    n = int(cells.sum())
    rows: list[dict[str, object]] = []
    for side in SIDES:
        row: dict[str, object] = {"side": side, "n": n, "families": len(np.unique(family[cells])), "note": ""}
        if n == 0:
            rows.append(row | {"note": "undefined: the labels differ in no cell that has this site"})
            continue
        found = proportion(_on_side(side, said[cells], stated[cells], latent[cells]), family[cells])
        row |= {"value": found.value, "low": found.low, "high": found.high}
        told, share = np.unique(said[cells], return_counts=True)
        dealt = [_on_side(side, np.full(n, label), stated[cells], latent[cells]).mean() for label in told]
        row["chance"] = float(np.dot(share / n, dealt))
        known = cells & (baseline >= 0)
        if known.any():
            row["baseline"] = float(_on_side(side, baseline[known], stated[known], latent[known]).mean())
        rows.append(row)
    return rows


def _on_side(side: str, said: np.ndarray, stated: np.ndarray, latent: np.ndarray) -> np.ndarray:
    sided = {"stated": said == stated, "latent": said == latent}
    sided["third"] = ~sided["stated"] & ~sided["latent"]
    return np.asarray(sided[side], dtype=float)
