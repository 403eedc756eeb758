"""Reads of patched runs whose truth is known: each cell brings a planted share of each case's own effect."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from probe.mechanism.patching.grid import DENOISING, NOISING, OTHER_CASE, OTHER_CASE_BASE, Place
from probe.mechanism.patching.paths import coalition_name, coalitions, players
from probe.mechanism.patching.reads import BASE_RUN, DONOR_RUN, LATENT, PATCHED, PATH, STUDY_BASE

OPTIONS = ("home", "clinic", "emergency")
NOWHERE = {"direction": "", "control": "", "stream": "", "layer": -1, "head": -1, "group": ""}


def with_urgency(urgency: np.ndarray) -> np.ndarray:
    """Log-probabilities of three labels whose expected rank (0 to 2) is this."""
    share = np.clip(urgency, 0.01, 1.99) / 2
    return np.log(np.stack([(1 - share) ** 2, 2 * share * (1 - share), share**2], axis=1))


def of(name: str, place: Place, direction: str = DENOISING, control: str = "") -> dict[str, object]:
    told = {"stream": place.stream, "layer": place.layer, "group": place.group, "head": place.head}
    return {"kind": name, "direction": direction, "control": control, **told}


def world(
    rng: np.random.Generator,
    cells: Mapping[Place, float],
    *,
    n: int = 120,
    per_family: int = 1,
    effect: float = 0.4,
    noise: float = 0.02,
    other_case: float | None = None,
    persona: str = "p",
) -> pd.DataFrame:
    """Base and donor runs of n cases, ``effect`` apart on average, and cells that bring (or take) a share of it.

    ``other_case``: the same cells patched from another case bring its base state, and this share of the mean effect.
    """
    family = np.arange(n) // per_family
    base = 0.8 + rng.normal(0, 0.15, family.max() + 1)[family] + rng.normal(0, 0.05, n)
    own = effect * rng.uniform(0.5, 1.5, n)
    parts: list[tuple[dict[str, object], np.ndarray]] = [
        (NOWHERE | {"kind": BASE_RUN}, base),
        (NOWHERE | {"kind": DONOR_RUN}, base + own),
        (NOWHERE | {"kind": STUDY_BASE}, base - 0.01),
    ]
    for place, share in cells.items():
        for direction, start, sign in ((DENOISING, base, 1), (NOISING, base + own, -1)):
            parts.append((of(PATCHED, place, direction), start + sign * share * own + rng.normal(0, noise, n)))
        if other_case is not None:
            moved = base + 0.3 * rng.normal(0, 0.15, n)
            parts.append((of(PATCHED, place, control=OTHER_CASE), moved + other_case * effect))
            parts.append((of(PATCHED, place, control=OTHER_CASE_BASE), moved))
    return _table(parts, family, persona)


def game(
    rng: np.random.Generator, alone: Mapping[str, float], together: float = 0.0, n: int = 80, read: str = LATENT
) -> pd.DataFrame:
    """Runs in which each role adds what it adds ``alone``, and all of them at once ``together`` more."""
    names = players(read)
    base = 0.8 + rng.normal(0, 0.1, n)
    parts = []
    for chosen in coalitions(names):
        worth = base + sum(alone.get(name, 0.0) for name in chosen) + together * (len(chosen) == len(names))
        kind = {0: BASE_RUN, len(names): DONOR_RUN}.get(len(chosen), PATH)
        told = NOWHERE | {"kind": kind, "group": coalition_name(chosen, names) if kind == PATH else ""}
        parts.append((told, worth))
    return _table(parts, np.arange(n), "p", read)


def _table(
    parts: list[tuple[dict[str, object], np.ndarray]], family: np.ndarray, persona: str, read: str = LATENT
) -> pd.DataFrame:
    n = len(family)
    about = pd.DataFrame({"case": np.arange(n).astype(str), "family": family.astype(str)}).assign(
        stratum=np.where(np.arange(n) % 2, "odd", "even"), target="clinic", persona=persona, read=read, mass=0.9
    )
    tables = []
    for told, urgency in parts:
        logp = with_urgency(urgency)
        labels = {f"logp_{option}": logp[:, k] for k, option in enumerate(OPTIONS)}
        tables.append(about.assign(**told, **labels))
    whole = pd.concat(tables, ignore_index=True)
    whole.attrs = {"options": list(OPTIONS), "high_risk": "emergency"}
    return whole
