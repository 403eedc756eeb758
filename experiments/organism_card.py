"""Write the organism's model card: planned, realised and measured by ``probe``, side by side, and other wordings.

    python experiments/organism_census.py DIR
    python experiments/organism_card.py DIR --seeds SEED_A SEED_B

Needs the census of the checkpoint in DIR; ``--seeds`` name the folders of other seeds with their censuses (300 cases of
each stratum suffice), from which the bands are made anew. Writes ``mechanism.npz``, ``measurement.json``,
``bands.json`` and ``README.md`` in DIR. About 5 minutes of CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from organism_training.arrays import write_mechanism
from organism_training.bands import bands_of
from organism_training.card import render
from organism_training.greedy import Checkpoint
from organism_training.measure import measure
from organism_training.package import sha256_of_file, write_json
from organism_training.probed import given, probed
from organism_training.readings import agreement, divergence, figures, urgency

from probe.organism import STRATA
from probe.organism.census import Census, Readings, read_census

PROBED_PER_STRATUM = 100


def counted(found: Census) -> dict[str, Any]:
    """Planned and realised figures of every persona and stratum on all cases of the census, and how they agree."""
    out: dict[str, Any] = {}
    for persona in found.personas:
        plan, realised = found.planned(persona), found.arm(persona).realised
        status = found.arm(persona).status
        out[persona] = {
            "agreement": agreement(realised, plan),
            "kl": divergence(realised, plan),
            "status": {name: status.count(name) for name in dict.fromkeys(status)},
            "declined": declined(status, plan),
        }
        for stratum in STRATA:
            rows = found.strata == stratum
            target = found.target[rows]
            sides = [figures(side.of(rows), target) for side in (plan, realised)]
            out[persona][stratum] = {name: [side[name] for side in sides] for name in sides[0]}
    return out


def declined(status: Sequence[str], plan: Readings) -> list[float] | None:
    """Shares that were refused of the cases planned to be refused, and of the others; None where none is planned."""
    refused = np.array([one == "refused" for one in status])
    if plan.answered.all():
        return None
    return [float(refused[~plan.answered].mean()), float(refused[plan.answered].mean())]


def same_cells(folder: Path, found: Census) -> dict[str, Any]:
    """Planned, realised and probed figures on the same cells."""
    chosen = found.first(PROBED_PER_STRATUM)
    target = found.target[chosen]
    out = {}
    with tempfile.TemporaryDirectory() as scratch:
        through = probed(str(folder), found, PROBED_PER_STRATUM, Path(scratch) / "store")
    for persona, read in through.items():
        plan, arm = found.planned(persona).of(chosen), found.arm(persona)
        told = [figures(side, target) for side in (plan, arm.realised.of(chosen), read.readings)]
        forced = (plan.latent, given(arm.forced_of(chosen)), read.forced)
        out[persona] = {
            "largest_difference": read.largest_difference,
            "EU, forced": [float(urgency(p).mean()) for p in forced],
        } | {name: [side[name] for side in told] for name in told[0]}
    return out


def main(folder: Path, seeds: list[Path]) -> None:
    """Measure, and write everything that the card tells."""
    torch.set_num_threads(1)
    started = time.process_time()
    found = read_census(folder / "census.npz")
    if found.weights != sha256_of_file(folder / "model.safetensors"):
        raise SystemExit("the census is of other weights; run experiments/organism_census.py first")
    write_mechanism(folder)
    if seeds:
        write_json(folder / "bands.json", rounded(bands_of([folder, *seeds])))
    measured = {
        "census_cases": 2 * found.per_stratum,
        "census": counted(found),
        "same_cells_n": 2 * PROBED_PER_STRATUM,
        "same_cells": same_cells(folder, found),
        "arms": measure(Checkpoint.load(folder)),
    }
    write_json(folder / "measurement.json", rounded(measured))
    read = {
        name: json.loads((folder / f"{name}.json").read_text("utf-8")) if (folder / f"{name}.json").exists() else {}
        for name in ("training", "config", "measurement", "bands", "gates")
    }
    (folder / "README.md").write_text(render(read), encoding="utf-8")
    print(f"{folder / 'README.md'} written, {time.process_time() - started:.0f} s of CPU")


def rounded(value: Any) -> Any:
    """Plain values with floats to four places; what is smaller keeps two digits."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    if isinstance(value, float):
        return round(value, 4) if abs(value) >= 0.001 else float(f"{value:.2g}")
    return value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a checkpoint in Hugging Face's layout, with its census")
    parser.add_argument("--seeds", type=Path, nargs="*", default=[], help="folders of other seeds, with their censuses")
    asked = parser.parse_args()
    main(asked.folder, asked.seeds)
