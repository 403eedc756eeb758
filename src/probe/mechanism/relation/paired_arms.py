"""A persona's cells beside the base's, and what an outcome is under either read. Knows outcomes; knows no verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from probe.behaviour import CONTROLS, Outcomes, pair_keys
from probe.behaviour.columns import numbers_of
from probe.behaviour.outcomes import Need
from probe.behaviour.pairing import SHARED
from probe.mechanism.splits import families_of
from probe.values import ALL, ProbeError
from probe.values.nearest import nearest

READS = ("distribution", "label")
"""What is compared: the distribution over the labels at each site, or the one most probable (stated) label."""


@dataclass(frozen=True)
class Outcome:
    """A number made of a distribution over the labels, or of one label; it lies between 0 and ``top``."""

    name: str
    need: Need
    top: Callable[[Outcomes], float]
    of: Callable[[Outcomes, Float[np.ndarray, "row label"]], Float[np.ndarray, " row"]]

    def latent(self, outcomes: Outcomes, read: str) -> Float[np.ndarray, " row"]:
        """The outcome of the latent label (its distribution) in every cell, NaN where there is none."""
        return self.of(outcomes, _probabilities(outcomes.latent_logp, outcomes.latent, read))

    def stated(self, outcomes: Outcomes, read: str) -> Float[np.ndarray, " row"]:
        """The outcome of the stated label (its distribution) in every cell, NaN where none was stated."""
        return self.of(outcomes, _probabilities(outcomes.stated_logp, outcomes.stated, read))


def _probabilities(logp: np.ndarray, label: np.ndarray, read: str) -> Float[np.ndarray, "row label"]:
    if read == "distribution":
        return np.asarray(np.exp(logp))
    certain = np.eye(logp.shape[1])[np.maximum(label, 0)]
    return np.where((label >= 0)[:, None], certain, np.nan)


OUTCOMES: Mapping[str, Outcome] = {
    outcome.name: outcome
    for outcome in (
        Outcome(
            "expected_urgency",
            "rank of the options",
            lambda outcomes: len(outcomes.options) - 1.0,
            lambda _, p: p @ np.arange(p.shape[1]),
        ),
        Outcome("probability_high", "high-risk option", lambda _: 1.0, lambda outcomes, p: p[:, outcomes.high or 0]),
        Outcome(
            "accuracy",
            "nothing",
            lambda _: 1.0,
            lambda outcomes, p: np.take_along_axis(p, outcomes.reference[:, None], axis=1)[:, 0],
        ),
    )
}
"""Expected urgency P(B) + 2 P(C) (of one label: its rank), probability of the high-risk option, and accuracy."""


@dataclass(frozen=True, eq=False)
class PairedArms:
    """Rows of a persona and of its base that share a case and every part of the condition that both arms have.

    ``ours`` and ``theirs`` are row numbers of the table, ``key`` and ``their_key`` say which belong together. ``case``
    numbers the case of each of our rows; ``family`` and ``stratum`` have one entry per case.
    """

    ours: Int[np.ndarray, " ours"]
    key: Int[np.ndarray, " ours"]
    theirs: Int[np.ndarray, " theirs"]
    their_key: Int[np.ndarray, " theirs"]
    case: Int[np.ndarray, " ours"]
    family: np.ndarray
    stratum: np.ndarray

    def base_mean(self, value: Float[np.ndarray, " row"]) -> Float[np.ndarray, " ours"]:
        """Mean of a value over the base rows of each of our rows' keys that have one; NaN where none has."""
        size = int(max(self.key.max(initial=-1), self.their_key.max(initial=-1))) + 1
        return np.asarray(mean_by(self.their_key, value[self.theirs], size)[self.key])

    def per_case(self, value: Float[np.ndarray, " row"]) -> Float[np.ndarray, " case"]:
        """Persona minus base, averaged over the rows of each case; NaN where no row of a case has both."""
        return mean_by(self.case, value[self.ours] - self.base_mean(value), len(self.family))

    def levels(self, value: Float[np.ndarray, " row"]) -> tuple[float, float]:
        """Mean of a value under the persona and under the base, over the rows that have it; NaN where none has."""
        own, other = (each[~np.isnan(each)] for each in (value[self.ours], self.base_mean(value)))
        return (float(own.mean()) if len(own) else np.nan, float(other.mean()) if len(other) else np.nan)


def mean_by(group: Int[np.ndarray, " row"], value: Float[np.ndarray, " row"], size: int) -> np.ndarray:
    """Mean of the values of each group that are not NaN; NaN where a group has none."""
    known = ~np.isnan(value)
    total = np.bincount(group[known], weights=value[known], minlength=size)
    count = np.bincount(group[known], minlength=size)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def cells_of(table: pd.DataFrame, outcomes: Outcomes) -> pd.DataFrame:
    """What pairing reads of a table: persona and stratum as checked, cases, families and parts of the condition as
    numbers that are equal where they are."""
    named = {"case": outcomes.case, "family_of_case": families_of(table)}
    named |= {part: table[part].to_numpy() for part in (*SHARED, "wording") if part in table}
    named |= {"condition": outcomes.condition} if "condition" in table else {}
    coded = {name: pd.factorize(values)[0] for name, values in named.items()}  # missing is -1, and equal to missing
    return pd.DataFrame({"persona": outcomes.persona, "stratum": outcomes.stratum, **coded})


def paired_arms(cells: pd.DataFrame, persona: str, base: Sequence[str]) -> PairedArms:
    """The rows of a persona and of the personas behind a base that belong together; none of the others."""
    return paired_rows(
        cells, np.flatnonzero(cells["persona"] == persona), np.flatnonzero(cells["persona"].isin(list(base)))
    )


def paired_rows(cells: pd.DataFrame, ours: np.ndarray, theirs: np.ndarray) -> PairedArms:
    """:func:`paired_arms` of any two sets of rows."""
    key, their_key = pair_keys(cells.iloc[ours], cells.iloc[theirs])
    ours, key = ours[key >= 0], key[key >= 0]
    theirs, their_key = theirs[their_key >= 0], their_key[their_key >= 0]
    case, _ = pd.factorize(cells["case"].to_numpy()[ours])
    _, first = np.unique(case, return_index=True)
    first_rows = ours[first]
    family, stratum = (cells[name].to_numpy()[first_rows] for name in ("family_of_case", "stratum"))
    return PairedArms(ours, key, theirs, their_key, case, family, stratum)


def inside(arms: PairedArms, stratum: str) -> np.ndarray:
    """Which cases belong to a stratum, or to all of them."""
    return np.full(len(arms.stratum), True) if stratum == ALL else arms.stratum == stratum


def bases_of(
    outcomes: Outcomes, neutral: tuple[str, ...], base: str | Sequence[str] | None
) -> dict[str, tuple[str, ...]]:
    """The personas behind each base, by its name: by default the mean of the control wordings, then no persona.

    Raises:
        ProbeError: a base that was asked for is not in the table, or there is none at all.
    """
    known = (*outcomes.personas, *([CONTROLS] if neutral else []))
    if base is None:
        asked = [name for name in (CONTROLS, "none") if name in known]
        if not asked:
            raise ProbeError(
                "a persona acts against a base, and the table has neither control wordings nor the persona none; name "
                "one with --base"
            )
    else:
        asked = [base] if isinstance(base, str) else list(base)
    for name in asked:
        if name not in known:
            raise ProbeError(f"the base persona {name!r} is not in the table. {nearest(name, known, 'persona')}")
    return {name: neutral if name == CONTROLS else (name,) for name in dict.fromkeys(asked)}


def stated_mass(table: pd.DataFrame) -> Float[np.ndarray, " row"]:
    """Full-vocabulary probability of all labels at the answer site, NaN where it is not told."""
    name = "stated_label_mass"
    return numbers_of(table, [name])[:, 0] if name in table else np.full(len(table), np.nan)
