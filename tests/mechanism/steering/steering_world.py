"""A model of one matrix whose persona is known: residuals in, label log-probabilities out. For tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from probe.mechanism.steering.comparison import Arm, Comparison
from probe.mechanism.steering.label_reads import JudgedCases, divergence


@dataclass(frozen=True, eq=False)
class World:
    """Cases with residuals ``x``; three labels and one other token read ``head`` of them; a persona adds ``persona``
    and, case by case, ``own``."""

    x: np.ndarray
    head: np.ndarray
    persona: np.ndarray
    own: np.ndarray
    family: np.ndarray
    stratum: np.ndarray
    target: np.ndarray

    @staticmethod
    def drawn(
        rng: np.random.Generator, n: int = 120, width: int = 24, *, size: float = 1.0, own: float = 0.1, per: int = 1
    ) -> World:
        """``size``: length of the shift; ``own``: of its part of each case alone; ``per`` cases a family."""
        head = rng.standard_normal((4, width)) / np.sqrt(width)
        head[3] -= 0.2
        x = 3 * rng.standard_normal((n, width))
        urgent = head[2] - head[0]
        persona = size * (urgent / np.linalg.norm(urgent) + 0.5 * rng.standard_normal(width) / np.sqrt(width))
        family = np.array([f"family {i // per}" for i in range(n)], dtype=object)
        stratum = np.array(["emergency" if i % 2 else "clinic" for i in range(n)], dtype=object)
        return World(
            x, head, persona, own * rng.standard_normal((n, width)), family, stratum, rng.integers(0, 3, size=n)
        )

    def logp(self, added: np.ndarray | float = 0.0) -> np.ndarray:
        """Label log-probabilities of the unprompted run with a vector (or one per case) added."""
        return np.asarray(log_softmax((self.x + added) @ self.head.T, axis=1)[:, :3])

    @property
    def prompted(self) -> np.ndarray:
        """What the persona's prompt adds to each case."""
        return self.persona + self.own

    def cases(self) -> JudgedCases:
        """The cases, as a comparison takes them."""
        names = np.array([f"case {i}" for i in range(len(self.x))], dtype=object)
        return JudgedCases(names, self.family, self.stratum, self.target, True, 2)

    def dose(self, added: np.ndarray) -> float:
        """Mean divergence of the run with this added from the run without."""
        return float(divergence(self.logp(added), self.logp()).mean())

    def arm(self, kind: str, name: str, added: np.ndarray | float, strength: float = np.nan, **more: bool) -> Arm:
        """An arm with this added."""
        logp = self.logp(added)
        p = np.exp(log_softmax((self.x + added) @ self.head.T, axis=1))
        entropy = -(p * np.log(p)).sum(1)
        kl = divergence(logp, self.logp())
        return Arm(
            kind, name, logp, entropy, kl, divergence(logp, self.logp(self.prompted)), strength, strength, **more
        )

    def comparison(self, arms: Sequence[Arm] = ()) -> Comparison:
        """No persona, prompted, and these arms."""
        fixed = [self.arm("none", "none", 0.0), self.arm("prompted", "prompted", self.prompted)]
        return Comparison("persona", "none", 2, "prompt_end", self.cases(), [*fixed, *arms])
