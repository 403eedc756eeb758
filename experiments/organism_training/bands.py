"""How far checkpoints of other seeds lie apart: bands for every figure, and how each met its gates. Runs no model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from organism_training.readings import figures
from probe.organism import STRATA
from probe.organism.census import FORCED_PER_STRATUM, Census, read_census

BUILT_IN = FORCED_PER_STRATUM
FLOOR = 0.01


def built_in_figures(found: Census, persona: str, stratum: str) -> dict[str, float | None]:
    """Realised figures on the built-in cases of one stratum."""
    rows = found.first(BUILT_IN) & (found.strata == stratum)
    return figures(found.arm(persona).realised.of(rows), found.target[rows])


def bands_of(folders: Sequence[Path]) -> dict[str, Any]:
    """The bands of the checkpoints in some folders, each with its census, and for each what its gates say at worst."""
    bands = _bands([read_census(folder / "census.npz") for folder in folders])
    seeds = []
    for folder in folders:
        training, gates = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("training", "gates"))
        about = {"seed": training["recipe"]["seed"], "CPU s": training["cpu_seconds"]}
        seeds.append(about | worst_of(gates))
    return bands | {"seeds": seeds}


def worst_of(gates: Mapping[str, Any]) -> dict[str, Any]:
    """The worst row of each gate: accuracy of the swaps on changed cells less that of the unpatched model, shares of
    the EU shift, error of a dose."""
    swaps, doses = gates["interchange"], gates["dose"]
    return {
        "lowest agreement": min(row["agreement"] for row in swaps),
        "Q swap - ceiling": min(row["Q swap"] - row["unpatched"] for row in swaps),
        "Q of another case - ceiling": min(row["Q from another case"] - row["unpatched"] for row in swaps),
        "complement - ceiling": min(row["complement swap"] - row["unpatched base"] for row in swaps),
        "lowest EU share of Q": min(row["EU share of Q"] for row in swaps),
        "EU share of complement": max((row["EU share of complement"] for row in swaps), key=abs),
        "worst dose": max((row["worst"] for row in doses), key=abs),
        "rows met": f"{sum(row['met'] == 'yes' for row in (*swaps, *doses))} of {len(swaps) + len(doses)}",
    }


def _bands(seeds: Sequence[Census]) -> dict[str, Any]:
    """For every persona, stratum and figure, where another seed should come to lie: the range of these seeds, made
    wider on each side by that range or by ``FLOOR``, whichever is more. A figure undefined in one of them has none."""
    bands: dict[str, Any] = {"weights": [seed.weights for seed in seeds], "cases_per_stratum": BUILT_IN}
    for persona in seeds[0].personas:
        bands[persona] = {}
        for stratum in STRATA:
            told = [built_in_figures(seed, persona, stratum) for seed in seeds]
            bands[persona][stratum] = {name: _band([one[name] for one in told]) for name in told[0]}
    return bands


def _band(values: Sequence[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    low, high = min(known), max(known)
    beyond = max(high - low, FLOOR)
    return [round(low - beyond, 4), round(high + beyond, 4)]
