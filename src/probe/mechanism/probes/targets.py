"""What a probe may be asked to read: labels of cells, from their outcomes. Knows outcomes; knows no activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Int

from probe.behaviour import Outcomes
from probe.behaviour.risk import Cut, errors_of, high_vs_rest, need_of
from probe.values import ProbeError
from probe.values.nearest import nearest

Null: TypeAlias = Literal["within case", "between cases"]
"""Whether labels change places among the rows of a case, or whole cases change their labels."""


@dataclass(frozen=True, eq=False)
class Target:
    """The class of each cell, an index into ``classes``; -1 where it is undefined."""

    name: str
    codes: Int[np.ndarray, " row"]
    classes: tuple[str, ...]
    null: Null = "between cases"

    @property
    def columns(self) -> int:
        """One score for two classes (that of the second), else one per class against the rest."""
        return 1 if len(self.classes) == 2 else len(self.classes)

    def take(self, rows: np.ndarray) -> Target:
        """These rows only."""
        return Target(self.name, self.codes[rows], self.classes, self.null)


def persona(outcomes: Outcomes) -> Target:
    """Who is speaking. A system prompt gives it away: 1.0 is no finding."""
    classes = tuple(sorted(outcomes.personas))
    places = {name: i for i, name in enumerate(classes)}
    codes = np.array([places[name] for name in outcomes.persona.tolist()], dtype=np.int64)
    return Target("persona", codes, classes, "within case")


def reference(outcomes: Outcomes) -> Target:
    """The reference label of the case."""
    return Target("reference", outcomes.reference, outcomes.options)


def urgent(outcomes: Outcomes) -> Target:
    """Whether the reference label is the high-risk one."""
    _known(outcomes, "urgent")
    codes = np.where(outcomes.reference < 0, -1, outcomes.reference == outcomes.high)
    return Target("urgent", codes, ("rest", "high-risk"))


def latent(outcomes: Outcomes) -> Target:
    """The latent label."""
    return Target("latent", outcomes.latent, outcomes.options)


def stated(outcomes: Outcomes) -> Target:
    """The stated label."""
    return Target("stated", outcomes.stated, outcomes.options)


def disagreement(outcomes: Outcomes) -> Target:
    """Whether the stated label departs from the latent one; undefined where either is absent."""
    absent = (outcomes.stated < 0) | (outcomes.latent < 0)
    return Target("disagreement", np.where(absent, -1, outcomes.stated != outcomes.latent), ("agree", "disagree"))


def correct(outcomes: Outcomes) -> Target:
    """Whether the stated label is the reference; undefined without a stated label."""
    absent = (outcomes.stated < 0) | (outcomes.reference < 0)
    return Target("correct", np.where(absent, -1, outcomes.stated == outcomes.reference), ("wrong", "right"))


def risk_error(outcomes: Outcomes, cut: Cut = high_vs_rest) -> Target:
    """The type of the stated label's risk error: none, over-triage (type I) or under-triage (type II)."""
    _known(outcomes, "risk_error")
    if why := outcomes.lacks(need_of(cut)):
        raise ProbeError(f"the target 'risk_error' is {why}")
    errors = errors_of(outcomes, outcomes.stated, cut)
    codes = np.select([errors.over == 1, errors.under == 1], [1, 2], 0)
    absent = (outcomes.stated < 0) | (outcomes.reference < 0)
    return Target("risk_error", np.where(absent, -1, codes), ("none", "over", "under"))


TARGETS: Mapping[str, Callable[[Outcomes], Target]] = {
    "persona": persona,
    "reference": reference,
    "urgent": urgent,
    "latent": latent,
    "stated": stated,
    "disagreement": disagreement,
    "correct": correct,
    "risk_error": risk_error,
}
"""The targets by the names that the command line gives them."""


def targets_of(outcomes: Outcomes, names: Sequence[str] | None = None) -> dict[str, Target]:
    """The targets of these names; by default all that the cells have two classes of.

    Raises:
        ProbeError: a name is unknown, or a target that was asked for has fewer than two classes here.
    """
    for name in names or ():
        if name not in TARGETS:
            raise ProbeError(f"{name!r} is no target of a probe. {nearest(name, TARGETS, 'target')}")
    found = {}
    for name in names or TARGETS:
        if names is None and name in ("urgent", "risk_error") and outcomes.high is None:
            continue
        target = TARGETS[name](outcomes)
        seen = np.unique(target.codes[target.codes >= 0])
        if len(seen) >= 2:
            found[name] = target
        elif names is not None:
            only = f"only {target.classes[seen[0]]!r}" if len(seen) else "none"
            raise ProbeError(f"a probe needs two classes, and of {name!r} the {len(outcomes):,} cells have {only}")
    if not found:
        raise ProbeError(f"no target has two classes among the {len(outcomes):,} cells; there is nothing to probe for")
    return found


def _known(outcomes: Outcomes, name: str) -> None:
    if outcomes.high is None:
        raise ProbeError(f"the target {name!r} is {outcomes.lacks('high-risk option')}")
