"""Label reads of many edits of the same prompts: what is asked, and what was read, as arrays. Runs no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from probe.capture import PassInput
from probe.mechanism.steering.comparison import Arm
from probe.models.points import HookPoint
from probe.values import Intervention

Edits = tuple[Intervention, ...]
"""The operators of one arm on one row; none at all is the row as it is."""

PART_ROWS = 16
"""So many rows, under all of their arms, are read and kept together."""

_CASE_AXIS = {"logp": 1, "entropy": 1, "kl": 1, "dose": 1, "kl_to": 1, "resid": 2}


@dataclass(frozen=True, eq=False)
class Reads:
    """What a sweep read, arm by arm and case by case; arm 0 are the rows as they are.

    ``kl`` is KL(arm || row as it is) over the whole vocabulary and ``dose`` the same over labels and other; ``kl_to``
    those over the vocabulary to the rows that each was compared with. ``resid`` [arm layer case width] are residuals
    at the read place, of no layer where none was asked for.
    """

    logp: Float[np.ndarray, "arm case label"]
    entropy: Float[np.ndarray, "arm case"]
    kl: Float[np.ndarray, "arm case"]
    dose: Float[np.ndarray, "arm case"]
    kl_to: Float[np.ndarray, "arm case other"]
    resid: Float[np.ndarray, "arm layer case width"]

    def arm(self, number: int, kind: str, name: str, **told: float | bool | str | np.ndarray) -> Arm:
        """One arm as the estimators take it; ``kl`` and ``to_prompted`` are the sweep's own unless told."""
        nothing = np.full(self.kl.shape[1], np.nan)
        to = self.kl_to[number, :, 0] if self.kl_to.shape[2] else nothing
        known = {"kl": self.kl[number], "to_prompted": to} | told
        return Arm(kind, name, self.logp[number], self.entropy[number], **known)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by their names."""
        return {name: getattr(self, name) for name in _CASE_AXIS}


@dataclass(frozen=True, eq=False)
class SweepOrder:
    """What is read: every row under each of its arms, as many for each row.

    ``against[k]`` are rows, one for each, to whose own distributions the divergences ``kl_to`` are; ``points`` are the
    residual points that are read.
    """

    rows: Sequence[PassInput]
    arms: Sequence[Sequence[Edits]]
    against: Sequence[Sequence[PassInput]] = ()
    points: tuple[HookPoint, ...] = ()

    @property
    def n_reads(self) -> int:
        """Rows under their arms, as they are, and those to which they are compared."""
        return len(self.rows) * (len(self.arms[0]) + 1 + len(self.against))

    def parts(self) -> list[SweepOrder]:
        """The same in parts of a few rows."""
        spans = [slice(start, start + PART_ROWS) for start in range(0, len(self.rows), PART_ROWS)]
        return [
            SweepOrder(self.rows[own], self.arms[own], [rows[own] for rows in self.against], self.points)
            for own in spans
        ]


def joined(parts: Sequence[Reads]) -> Reads:
    """The reads of some parts, in their order."""
    axes = _CASE_AXIS.items()
    return Reads(**{name: np.concatenate([getattr(part, name) for part in parts], axis) for name, axis in axes})
