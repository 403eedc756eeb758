"""Planted shifts: cells of several personas whose residuals are known sums of case noise and directions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from probe.mechanism import Activations, in_memory

D = 64


def unit(k: int, d: int = D) -> np.ndarray:
    return np.eye(d)[k]


def cells(
    directions: Mapping[str, np.ndarray],
    rng: np.random.Generator,
    *,
    families: int = 40,
    per_family: int = 3,
    wordings: int = 1,
    noise: float = 1.0,
    shared: float = 0.0,
    described: Mapping[str, tuple[str, str]] | None = None,
) -> Activations:
    """``none`` and one persona per direction on the same cases, two layers: nothing is planted at layer 0.

    ``noise`` is that of each cell and coordinate, ``shared`` that of a persona's shift within a case family.
    ``described`` gives (role, style) of personas.
    """
    n = families * per_family
    family = np.arange(n) // per_family
    case_part = rng.normal(size=(n, D))
    rows, x = [], []
    for persona, direction in {"none": np.zeros(D), **directions}.items():
        role, style = (described or {}).get(persona, ("", ""))
        common = rng.normal(0, shared, (families, D))[family] if persona != "none" else 0.0
        for wording in range(wordings if persona != "none" else 1):
            quiet, loud = (case_part + rng.normal(0, noise, (n, D)) for _ in range(2))
            x.append(np.stack([quiet, loud + direction + common], axis=1))
            rows += [
                {"case": f"case-{i}", "family": f"family-{family[i]}", "persona": persona, "role": role}
                | {"style": style, "stratum": "odd" if family[i] % 2 else "even", "wording": wording}
                for i in range(n)
            ]
    return in_memory(pd.DataFrame(rows), np.concatenate(x), "prompt_end")
