"""Cells with known residuals for the label lens: a random head, labels of several tokens, and a planted persona."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from probe.mechanism import Activations, in_memory
from probe.mechanism.lens.head import LabelHead, capped, label_scores, project, token_places
from probe.mechanism.lens.reads import LabelSite

OPTIONS = ("home", "clinic", "hospital")
IDS = np.array([[[11, 40], [12, -1], [17, -1]]])
"""Token ids of three labels; the first is written by two tokens."""


def head_of(kind: str = "rms", softcap: float = 0.0, d: int = 24, seed: int = 0) -> LabelHead:
    rng = np.random.default_rng(seed)
    weight, bias = 1 + rng.normal(0, 0.3, d), rng.normal(0, 0.2, d) if kind == "layer" else np.zeros(d)
    unembed, own = rng.normal(0, 1.0, (5, d)), rng.normal(0, 0.5, 5)
    return LabelHead(kind, 1e-5, 1.3, softcap, np.array([40, 11, 12, 17, 99]), weight, bias, unembed, own)


def table_of(personas: tuple[str, ...], n_cases: int, rotations: int = 1) -> pd.DataFrame:
    rows = [
        {"case": f"case-{i}", "family": f"family-{i}", "stratum": "even" if i % 2 == 0 else "odd"}
        | {"persona": persona, "rotation": r, "condition": f"rotation={r}", "target": OPTIONS[i % 3]}
        | {"y_gen": OPTIONS[i % 3], "status": "parsed"}
        for persona in personas
        for r in range(rotations)
        for i in range(n_cases)
    ]
    table = pd.DataFrame(rows)
    table.attrs["options"] = list(OPTIONS)
    return table


def site_of(head: LabelHead, x_last: np.ndarray, ids: np.ndarray | None = None, **changes: Any) -> LabelSite:
    """What a pass would have recorded at the last point: the labels' log-probabilities over a larger vocabulary."""
    ids = np.repeat(IDS, len(x_last), axis=0) if ids is None else ids
    places = token_places(head, ids)
    scores = label_scores(capped(head, project(head, x_last).logits(head)), places)
    rest = np.random.default_rng(5).normal(3, 1, (len(x_last), 1))
    logp = scores - np.logaddexp.reduce(np.concatenate([scores, rest], axis=1), axis=1)[:, None]
    return LabelSite(position="prompt_end", places=places, logp=logp, **changes)


def planted(
    personas: tuple[str, ...], n_cases: int, arises: tuple[int, ...], *, n_layers: int = 8, d: int = 24, seed: int = 1
) -> tuple[Activations, LabelHead]:
    """Every case has its own urgency from layer 1 on; persona k shifts it by 1 SD from layer ``arises[k]`` on (0: not).

    Urgency is written along the difference of the last and the middle label's unembedding, so that the lens sees it,
    beside a constant part that keeps the norm nearly the same in all cells.
    """
    rng, head = np.random.default_rng(seed), head_of(d=d)
    axis = (head.unembed[3] - head.unembed[2]) * head.weight
    axis /= np.linalg.norm(axis)
    table = table_of(personas, n_cases)
    case = table["case"].str.removeprefix("case-").astype(int).to_numpy()
    urgency = rng.normal(0, 1, n_cases)[case]
    start = table["persona"].map(dict(zip(personas, arises, strict=True))).to_numpy()
    layer = np.arange(n_layers + 1)
    shift = 1.0 * ((layer[None] >= start[:, None]) & (start[:, None] > 0))
    level = urgency[:, None] * (layer > 0) + shift
    x = level[..., None] * axis + rng.normal(0, 0.15, (len(table), n_layers + 1, d)) + 1.5 * rng.normal(size=d)
    return in_memory(table, x, "prompt_end"), head
