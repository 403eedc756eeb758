"""The cells of the census once more, through ``probe.run``. Knows the public API; knows neither plan nor greedy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import probe
from organism_training.corpus import FORCED
from probe.organism.census import Arm, Census, Readings


@dataclass(frozen=True, eq=False)
class Probed:
    """One persona as ``probe`` reads it: its readings, P(A), P(B), P(C) after the forced beginning (given a letter),
    and the greatest difference from the census of a label's probability, in the whole vocabulary, at all three sites.

    A cell that states another label than in the census counts as a difference of 1.
    """

    readings: Readings
    forced: np.ndarray
    largest_difference: float


def study_of_the_census(model: str, census: Census, n_per_stratum: int) -> probe.Study:
    """The first cases of each stratum under every persona of the census, at its three sites."""
    return probe.Study.from_mapping(
        {
            "name": "organism-card",
            "model": {"id": model},
            "personas": [{"id": persona, "text": census.arm(persona).text} for persona in census.personas],
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "limit": 2 * n_per_stratum,
            "capture": {"layers": [0], "positions": ["prompt_end", "answer"]},
            "labels": {"sites": ["prompt_end", "forced", "answer"], "forced": FORCED},
            "generation": {"max_new_tokens": 120},
        }
    )


def probed(model: str, census: Census, n_per_stratum: int, store: Path) -> dict[str, Probed]:
    """Every persona by ``probe`` on the first cases of each stratum."""
    cells = probe.run(study_of_the_census(model, census, n_per_stratum), store=store, fresh=True).table()
    chosen = census.first(n_per_stratum)
    order = [case.id for case, kept in zip(census.cases, chosen, strict=True) if kept]
    return {
        persona: _read(cells[cells["persona"] == persona].set_index("case").loc[order], census.arm(persona), chosen)
        for persona in census.personas
    }


def _read(rows: pd.DataFrame, arm: Arm, chosen: np.ndarray) -> Probed:
    """One persona's rows, in the census's order of cases, beside its arm."""
    latent, forced, stated = (
        rows[[f"{site}logp_{letter}" for letter in "ABC"]].to_numpy(dtype=float) for site in ("", "forced_", "stated_")
    )
    label = np.array(["ABC".index(name) if isinstance(name, str) else -1 for name in rows["y_gen"]])
    read = Readings(given(latent), np.exp(latent).sum(axis=1), label, given(stated[label >= 0]))
    if (label != arm.realised.label[chosen]).any():
        return Probed(read, given(forced), 1.0)
    pairs = (
        (latent, arm.prompt_end[chosen]),
        (forced, arm.forced_of(chosen)),
        (stated[label >= 0], arm.answer[chosen[arm.realised.answered]]),
    )
    gaps = [float(np.abs(np.exp(mine) - np.exp(theirs)).max()) for mine, theirs in pairs if len(mine)]
    return Probed(read, given(forced), max(gaps))


def given(logp: np.ndarray) -> np.ndarray:
    """Probabilities of the labels, given that one of them comes."""
    weights = np.exp(logp - logp.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
