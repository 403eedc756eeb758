"""What reads a target without any activation: plain features of cells, and random ones. Knows tables; fits nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float

from probe.behaviour import Outcomes


def plain_features(table: pd.DataFrame, outcomes: Outcomes) -> Mapping[str, Float[np.ndarray, "row feature"]]:
    """Features of each cell by the name of the baseline; what a table lacks is left out.

    ``margin``: latent log-probability of the best label less the second (nats). ``outputs``: all label log-ratios
    against the last label at the end of the prompt, their squares and products, log label mass and entropy (what the
    logits say already). ``length``: prompt tokens. ``persona``: who is speaking. ``all plain``: all of them together.
    Where a value is missing, the feature is nil and a further one says so.
    """
    found: dict[str, np.ndarray] = {}
    logp = outcomes.latent_logp
    if not np.isnan(logp).all():
        ordered = np.sort(logp, axis=1)
        found["margin"] = ordered[:, -1:] - ordered[:, -2:-1]
        found["outputs"] = _outputs(outcomes)
    if "n_prompt" in table and table["n_prompt"].nunique() > 1:
        found["length"] = table[["n_prompt"]].to_numpy(dtype=np.float64)
    if len(outcomes.personas) > 1:
        found["persona"] = (outcomes.persona[:, None] == np.array(outcomes.personas, dtype=object)).astype(np.float64)
    filled = {name: _filled(x) for name, x in found.items()}
    if len(filled) > 1:
        filled["all plain"] = np.concatenate([x for name, x in filled.items() if name != "margin"], axis=1)
    return filled


def random_features(case: np.ndarray, width: int, rng: np.random.Generator) -> Float[np.ndarray, "row feature"]:
    """Gaussian features that know nothing but which rows are of one case: half their variance is the case's own.

    A split that cut through cases would read any label of the case from them; a sound one reads nothing.
    """
    names, member = np.unique(case.astype(str), return_inverse=True)
    own = rng.normal(size=(len(names), width))[member]
    return np.asarray((own + rng.normal(size=(len(case), width))) / np.sqrt(2))


def _outputs(outcomes: Outcomes) -> Float[np.ndarray, "row feature"]:
    ratios = outcomes.latent_logp[:, :-1] - outcomes.latent_logp[:, -1:]
    k = ratios.shape[1]
    products = [ratios[:, i] * ratios[:, j] for i in range(k) for j in range(i, k)]
    positive = np.where(outcomes.mass > 0, outcomes.mass, np.nan)
    further = [x for x in (np.log(positive), outcomes.entropy) if not np.isnan(x).all()]
    return np.column_stack([ratios, *products, *further])


def _filled(x: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, "row feature"]:
    missing = ~np.isfinite(x)
    told = missing[:, missing.any(0)].astype(np.float64)
    return np.concatenate([np.where(missing, 0.0, x), told], axis=1)
