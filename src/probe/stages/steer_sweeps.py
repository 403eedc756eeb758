"""The sweeps of a comparison, part by part; parts that are kept are not read again. Knows rows and arms."""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm import tqdm

from probe.capture import sweep
from probe.models.protocol import Backend
from probe.stages.steer_kept import KeptReads
from probe.stages.steer_reads import Reads, SweepOrder, joined


def read_sweep(
    backend: Backend, order: SweepOrder, *, kept: KeptReads | None = None, batch_size: int = 64, what: str = ""
) -> Reads:
    """Every row of an order under each of its arms; a part is kept as soon as it is read."""
    done = []
    with tqdm(total=order.n_reads, desc=what, unit="read", leave=False, delay=1) as bar:
        for part in order.parts():
            reads = None if kept is None else kept.load(part)
            if reads is None:
                reads = _read(backend, part, batch_size, bar)
                if kept is not None:
                    kept.save(part, reads)
            else:
                bar.update(part.n_reads)
            done.append(reads)
    return joined(done)


def _read(backend: Backend, order: SweepOrder, batch_size: int, bar: tqdm[Any]) -> Reads:
    rows, points, n_others = order.rows, order.points, len(order.against)
    n, n_arms = len(rows), len(order.arms[0]) + 1
    together = [*rows, *(row for others in order.against for row in others)]
    others = [[n * (k + 1) + r for k in range(n_others)] for r in range(n)] + [[] for _ in range(n * n_others)]
    every = [*order.arms, *([] for _ in range(n * n_others))]
    logp = np.full((n_arms, n, len(rows[0].labels.ids)), np.nan)
    entropy, kl, dose = (np.full((n_arms, n), np.nan) for _ in range(3))
    kl_to = np.full((n_arms, n, n_others), np.nan)
    resid = np.full((n_arms, len(points), n, backend.facts.shape.d_model if points else 0), np.nan, np.float32)
    for read in sweep(backend, together, every, points=points, against=others, batch_size=batch_size):
        bar.update()
        if read.row >= n:
            continue
        at = 0 if read.arm is None else read.arm + 1
        logp[at, read.row], entropy[at, read.row] = read.labels.logp, read.labels.entropy
        kl[at, read.row], dose[at, read.row] = read.kl, read.kl_labels
        kl_to[at, read.row] = read.kl_to
        for k, point in enumerate(points):
            resid[at, k, read.row] = read.values[point.stream, point.layer]
    return Reads(logp, entropy, kl, dose, kl_to, resid)
