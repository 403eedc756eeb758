"""What an edit does at every strength and every layer: dose-response, choice of the layer, distances. Knows arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from probe.mechanism.relation.verdicts import change
from probe.mechanism.steering.breakage import collapse_point
from probe.mechanism.steering.comparison import Arm, Comparison, pattern_at
from probe.mechanism.steering.label_reads import divergence, outcomes, with_other
from probe.values import ProbeError


def dose_response(found: Comparison, ladder: Sequence[Arm]) -> pd.DataFrame:
    """Arms of rising strength, each kind a curve of its own; where it breaks the model, and from which strength on.

    Columns: persona, base, layer, position, kind, arm, strength, own_strength, difference, low, high (of the first
    outcome, against no persona), dose (mean KL over labels and other, nats), label_mass, entropy, broken (why),
    collapse (the smallest strength above 0 from which on every tried one is broken; empty where none is), n.
    Strengths below 0 push away from the persona: they have rows, and no part in the collapse.
    """
    none = found.the("none")
    before = outcomes(none.logp, found.cases)
    judged = next(iter(before))
    top = none.logp.shape[1] - 1.0 if judged == "expected_urgency" else 1.0
    rows = []
    for arm in ladder:
        moved = change(outcomes(arm.logp, found.cases)[judged] - before[judged], found.cases.family, top)
        rows.append(
            {**found.where(), "kind": arm.kind, "arm": arm.name, "strength": arm.strength}
            | {"own_strength": arm.own_strength, "outcome": judged, "difference": moved.value, "low": moved.low}
            | {"high": moved.high, "dose": float(divergence(arm.logp, none.logp).mean())}
            | {"label_mass": float(with_other(arm.logp)[:, :-1].sum(1).mean())}
            | {"entropy": float(arm.entropy.mean()), "broken": "; ".join(found.reasons(arm)), "n": moved.n}
        )
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    collapse = {
        key: collapse_point(part["strength"].tolist(), (part["broken"] != "").tolist())
        for key, part in table[table["strength"] > 0].groupby(["kind", "arm"], sort=False)
    }
    ends = [collapse.get(key) for key in zip(table["kind"], table["arm"], strict=True)]
    return table.assign(collapse=np.array([np.nan if end is None else end for end in ends]))


def layer_row(found: Comparison, arm: Arm) -> dict[str, object]:
    """One candidate layer on the validation cases: what its direction does there at equal dose."""
    shape = pattern_at(found, arm, np.arange(len(found.cases)))
    value = np.nan if shape.fit.value is None else shape.fit.value
    slope = np.nan if shape.slope.value is None else shape.slope.value
    return {
        **found.where(),
        "strength": arm.strength,
        "own_strength": arm.own_strength,
        "dose": float(divergence(arm.logp, found.the("none").logp).mean()),
        "wanted": float(divergence(found.the("prompted").logp, found.the("none").logp).mean()),
        "fit": value,
        "slope": slope,
        "to_prompted": float(arm.to_prompted.mean()),
        "reached": arm.reached,
        "broken": "; ".join(found.reasons(arm)),
        "n": len(found.cases),
    }


def chosen_layer(rows: Sequence[Mapping[str, object]]) -> int:
    """The layer whose direction, at equal dose, fits the prompt's shifts best on the validation cases.

    Only layers at which the dose is reached without breaking the model; the lowest of equals.

    Raises:
        ProbeError: there is none.
    """
    usable = [row for row in rows if row["reached"] and not row["broken"] and not np.isnan(float(str(row["fit"])))]
    if not usable:
        raise ProbeError(
            "a layer is chosen among those at which the persona's direction reaches the prompt's dose without breaking "
            f"the model, and of {len(rows)} layers there is none; look at steer_layers.csv, or offer other layers"
        )
    return int(str(max(usable, key=lambda row: float(str(row["fit"])))["layer"]))


def distances(
    found: Comparison, resid: Mapping[str, Float[np.ndarray, "layer case width"]], layers: Sequence[int]
) -> pd.DataFrame:
    """How far each arm's residuals lie from the prompted run's at the read place, layer by layer.

    ``resid`` by the arms' names; those of the kinds ``none`` and ``prompted`` under these words. Columns: persona,
    base, layer, position, kind, arm, at (residual point), distance (mean |h - h_prompted| over cases), share (of the
    unsteered run's distance; empty where that is 0: nothing has been written there yet), n.
    """
    kinds = {arm.name: arm.kind for arm in found.arms}
    prompted = resid["prompted"]
    apart = {name: np.linalg.norm(values - prompted, axis=-1).mean(-1) for name, values in resid.items()}
    rows = []
    for name, own in apart.items():
        if name == "prompted":
            continue
        for k, at in enumerate(layers):
            whole = float(apart["none"][k])
            rows.append(
                {**found.where(), "kind": kinds.get(name, name), "arm": name, "at": at, "distance": float(own[k])}
                | {"share": float(own[k]) / whole if whole > 0 else np.nan, "n": prompted.shape[1]}
            )
    return pd.DataFrame(rows)
