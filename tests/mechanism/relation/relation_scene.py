"""Cells and residuals with a planted reason for the disagreement, seen in the residual or in the outputs alone."""

from __future__ import annotations

import numpy as np
import pandas as pd

from probe.mechanism import Activations, in_memory
from probe.mechanism.relation.simulated import OPTIONS, ladder

PERSONAS = {"none": (0.0, 0.0), "nurse": (0.5, 0.4), "placebo": (0.0, 0.1)}
"""Shift of the urgency in both labels, and the share of cells whose stated label is pushed up."""


def planted(
    seed: int, n_cases: int = 300, *, hidden: float = 2.5, shown: float = 3.0, noise: float = 1.0, d: int = 12
) -> Activations:
    """Residual point 0 is noise; in point 1 the hidden push of the stated label stands along one axis, and the latent
    urgency along another.

    ``hidden``: how far the push (of some cells of each persona) raises the written urgency; ``shown``: how strongly it
    stands in the residual. The stated label is the most probable one of its distribution. Cases come in twins.
    """
    rng = np.random.default_rng(seed)
    twin = np.arange(n_cases) // 2
    urgency = rng.normal(5.0, 1.5, n_cases // 2 + 1)[twin] + rng.normal(0, 0.3, n_cases)
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
    frames, residuals = [], []
    for k, (persona, (shift, share)) in enumerate(PERSONAS.items()):
        push = (rng.random(n_cases) < share).astype(float)
        level = urgency + shift
        latent, written = ladder(level, 1.5), ladder(level + hidden * push, 1.5)
        frame = pd.DataFrame({"case": [f"c{i}" for i in range(n_cases)], "family": [f"f{t}" for t in twin]})
        frame = frame.assign(persona=persona, stratum="s", target="B", condition="x", label_mass=0.5, n_prompt=50)
        frame["y_gen"] = np.array(OPTIONS)[written.argmax(1)]
        for j, option in enumerate(OPTIONS):
            frame[f"logp_{option}"] = latent[:, j] + np.log(0.5)
            frame[f"stated_logp_{option}"] = written[:, j]
        frames.append(frame)
        x = rng.standard_normal((n_cases, 2, d)) * noise
        x[:, 1] += level[:, None] * axes[0] + shown * push[:, None] * axes[1] + k * axes[2]
        residuals.append(x)
    table = pd.concat(frames, ignore_index=True)
    table.attrs = {"options": list(OPTIONS), "high_risk": "C"}
    return in_memory(table, np.concatenate(residuals), "prompt_end")
