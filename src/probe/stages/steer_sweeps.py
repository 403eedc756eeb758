"""Label reads of many edits of the same prompts, as arrays. Knows rows and arms; knows no direction and no dose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from probe.capture import PassInput, sweep
from probe.capture.sweep_items import Operator
from probe.mechanism.steering.comparison import Arm
from probe.models.points import HookPoint
from probe.models.protocol import Backend

Edits = tuple[Operator, ...]
"""The operators of one arm on one row; none at all is the row as it is."""


@dataclass(frozen=True, eq=False)
class Reads:
    """What a sweep read, arm by arm and case by case; arm 0 are the rows as they are.

    ``kl`` is KL(arm || row as it is) over the whole vocabulary and ``dose`` the same over labels and other; ``kl_to``
    those over the vocabulary to the rows that each was compared with. ``resid`` [arm layer case width] are residuals
    at the read place.
    """

    logp: Float[np.ndarray, "arm case label"]
    entropy: Float[np.ndarray, "arm case"]
    kl: Float[np.ndarray, "arm case"]
    dose: Float[np.ndarray, "arm case"]
    kl_to: Float[np.ndarray, "arm case other"]
    resid: Float[np.ndarray, "arm layer case width"] | None = None

    def arm(self, number: int, kind: str, name: str, **told: float | bool | str | np.ndarray) -> Arm:
        """One arm as the estimators take it; ``kl`` and ``to_prompted`` are the sweep's own unless told."""
        nothing = np.full(self.kl.shape[1], np.nan)
        to = self.kl_to[number, :, 0] if self.kl_to.shape[2] else nothing
        fields = {"kl": self.kl[number], "to_prompted": to} | told
        return Arm(kind, name, self.logp[number], self.entropy[number], **fields)


def read_sweep(
    backend: Backend,
    rows: Sequence[PassInput],
    arms: Sequence[Sequence[Edits]],
    *,
    against: Sequence[Sequence[PassInput]] = (),
    points: tuple[HookPoint, ...] = (),
    batch_size: int = 64,
    what: str = "",
) -> Reads:
    """Every row under each of its arms. ``arms[r]`` are as many for each row; ``against[k]`` are rows, one for each, to
    whose own distributions the divergences ``kl_to`` are."""
    n, n_arms = len(rows), len(arms[0]) + 1
    together = [*rows, *(row for others in against for row in others)]
    others = [[n * (k + 1) + r for k in range(len(against))] for r in range(n)] + [[] for _ in range(n * len(against))]
    every = [*arms, *([] for _ in range(n * len(against)))]
    logp = np.full((n_arms, n, len(rows[0].labels.ids)), np.nan)
    entropy, kl, dose = (np.full((n_arms, n), np.nan) for _ in range(3))
    kl_to = np.full((n_arms, n, len(against)), np.nan)
    resid: list[list[list[np.ndarray]]] = [[[] for _ in points] for _ in range(n_arms)]
    reads = sweep(backend, together, every, points=points, against=others, batch_size=batch_size)
    for read in tqdm(reads, total=n * n_arms + n * len(against), desc=what, unit="read", leave=False, delay=1):
        if read.row >= n:
            continue
        at = 0 if read.arm is None else read.arm + 1
        logp[at, read.row], entropy[at, read.row] = read.labels.logp, read.labels.entropy
        kl[at, read.row], dose[at, read.row] = read.kl, read.kl_labels
        kl_to[at, read.row] = read.kl_to
        for k, point in enumerate(points):
            resid[at][k].append(read.values[point.stream, point.layer])
    stacked = np.array(resid, dtype=np.float32) if points else None
    return Reads(logp, entropy, kl, dose, kl_to, stacked)


def same_for_all(rows: Sequence[PassInput], arms: Sequence[Edits]) -> list[list[Edits]]:
    """Arms that do not depend on the row."""
    return [list(arms) for _ in rows]
