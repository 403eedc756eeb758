"""Everything that training may vary, as one value. Knows numbers only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Last:
    """What the last phase may vary. ``refusing`` is the share of the pairs with the refusing persona; the guide
    fades to nil over the share ``fade`` of the phase; the rest is as in :class:`Recipe`."""

    n_pairs: int = 2880
    batch: int = 24
    muon_lr: float = 0.006
    adam_lr: float = 1e-3
    guide_lr: float = 0.01
    warm_up: int = 10
    last_lr: float = 0.01
    interchange_weight: float = 1.5
    consistency_weight: float = 4.0
    complement_weight: float = 2.0
    guide_weight: float = 3.0
    fade: float = 0.75
    refusing: float = 0.35


@dataclass(frozen=True)
class Recipe:
    """Everything that training may vary.

    ``reply_weight`` is per token and ``decision_weight`` per decision, of a mean over both; the other weights are of
    means. ``fade`` is the share of the training over which the guides fade to ``last_fade``, ``ramp`` the steps over
    which interchange sets in.
    """

    n_documents: int = 40_000
    seed: int = 0
    batch: int = 24
    muon_lr: float = 0.02
    muon_decay: float = 0.01
    adam_lr: float = 3e-3
    warm_up: int = 30
    last_lr: float = 0.01
    decision_weight: float = 8.0
    prompt_weight: float = 0.3
    prompt_share: float = 0.2
    temperature: float = 3.0
    soft_weight: float = 3.0
    vocabulary: int = 1792
    interchange_weight: float = 1.5
    code_weight: float = 1.2
    ramp: int = 300
    guide_weight: float = 1.0
    fact_weight: float = 1.0
    sum_weight: float = 2.0
    reply_weight: float = 4.0
    fade: float = 0.5
    last_fade: float = 0.1
    last: Last = field(default_factory=Last)

    def as_json(self) -> dict[str, Any]:
        """The recipe as plain values."""
        return asdict(self)

    def first_as_json(self) -> dict[str, Any]:
        """The recipe of the first phase alone."""
        return {name: value for name, value in self.as_json().items() if name != "last"}
