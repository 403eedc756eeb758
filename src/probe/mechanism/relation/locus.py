"""Where a persona's effect is visible: in the latent label, or only in the stated one. Knows tables of cells; knows no
activation.

For an outcome f (expected urgency unless another is asked for), paired by case:

    T = E[f_stated(persona) - f_stated(base)]    L = E[f_latent(persona) - f_latent(base)]    D = T - L

Source: ESTIMATORS, "Where does a persona act?". L and D say where an effect is visible, not where it is caused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from probe.behaviour import Outcomes, control_personas, read_outcomes
from probe.mechanism.relation.paired_arms import (
    OUTCOMES,
    READS,
    Outcome,
    PairedArms,
    bases_of,
    cells_of,
    inside,
    mean_by,
    paired_arms,
    stated_mass,
)
from probe.mechanism.relation.verdicts import (
    LEAST_MASS,
    MARGIN,
    Change,
    Status,
    Verdict,
    change,
    fieller,
    joint_status,
    verdict,
)
from probe.values import Estimate, ProbeError
from probe.values.nearest import nearest

MASS_DIFFERENCE = 0.05
"""Where the mass on anything but a label differs by more between two arms, the worst case is told."""

QUANTITIES = ("T", "L", "D")


@dataclass(frozen=True, eq=False)
class Locus:
    """One outcome of one persona against one base in one stratum: what moved, by how much, and the verdict.

    ``seen`` holds T and D over the cases that were answered under both arms, L over all; ``lowest`` and ``highest`` the
    same where every answer without a label is given the label that makes T (and D) smallest, or largest; ``worst`` the
    ends if all probability outside the labels could fall on any label, None where its share hardly differs. ``mass``
    and ``unstated`` (share of cells without a stated label) are those of the persona and of the base.
    """

    persona: str
    base: str
    stratum: str
    outcome: str
    read: str
    seen: dict[str, Change]
    lowest: dict[str, Change]
    highest: dict[str, Change]
    worst: dict[str, tuple[float, float]]
    ratio: Estimate
    mass: tuple[float, float]
    unstated: tuple[float, float]
    delta: float

    def status(self, quantity: str) -> Status:
        """*moved* or *still* where that holds whatever the unanswered cells would have said."""
        ends = {
            "L": [self.seen["L"]],
            **{q: [self.seen[q], self.lowest[q], self.highest[q]] for q in ("T", "D")},
        }
        return joint_status(ends[quantity], self.delta)

    @property
    def verdict(self) -> Verdict:
        """The verdict over L and D; none where the labels have next to no probability at the latent site."""
        if min((mass for mass in self.mass if not np.isnan(mass)), default=1.0) < LEAST_MASS:
            return "no latent label at this site"
        same = self.seen["L"].value * self.seen["D"].value > 0
        return verdict(self.status("L"), self.status("D"), same_sign=same)

    @property
    def rows(self) -> list[dict[str, object]]:
        """One tidy row per quantity."""
        named = {name: getattr(self, name) for name in ("persona", "base", "stratum", "outcome", "read")}
        rows = []
        for quantity in QUANTITIES:
            row: dict[str, object] = {**named, "quantity": quantity, **vars(self.seen[quantity])}
            row["status"] = self.status(quantity)
            if any(self.unstated) and quantity != "L":
                row |= {"bound_low": self.lowest[quantity].value, "bound_high": self.highest[quantity].value}
            if quantity in self.worst:
                row["worst_low"], row["worst_high"] = self.worst[quantity]
            rows.append(row)
        return rows


LOCUS_COLUMNS = (
    *("persona", "base", "stratum", "outcome", "read", "quantity", "value", "low", "high", "low_90", "high_90"),
    *("status", "bound_low", "bound_high", "worst_low", "worst_high", "n", "families", "method", "note"),
)


def loci(
    table: pd.DataFrame,
    *,
    base: str | Sequence[str] | None = None,
    outcomes: Sequence[str] = tuple(OUTCOMES),
    delta: float = MARGIN,
    controls: Sequence[str] | None = None,
    options: Sequence[str] | None = None,
    high_risk: str | None = None,
) -> list[Locus]:
    """T, L and D of every persona against every base, pooled and per stratum, for every outcome and both reads.

    The base is by default the mean of the control wordings and, beside it, no persona. The first read is the
    distribution over the labels at the end of the prompt (latent) and before the stated letter (stated); the second
    the latent and the stated label themselves, where expected urgency is the rank of the label. A read that the table
    does not have, and an outcome whose options are not known, is left out. Every case is the mean of its pairs.

    Raises:
        ProbeError: the table lacks a latent or a stated label, a base or an outcome is unknown, or delta is not
            positive.
    """
    if not delta > 0:
        raise ProbeError(f"a margin of equivalence is positive, found delta={delta}")
    for name in outcomes:
        if name not in OUTCOMES:
            raise ProbeError(f"{name!r} is no outcome of the relation. {nearest(name, tuple(OUTCOMES), 'outcome')}")
    read = read_outcomes(table, options=options, high_risk=high_risk)
    bases = bases_of(read, control_personas(table, controls), base)
    reads = reads_of(read)
    wanted = [OUTCOMES[name] for name in outcomes if not read.lacks(OUTCOMES[name].need)]
    if not wanted:
        raise ProbeError(f"no outcome can be computed; expected urgency is {read.lacks('rank of the options')}")
    cells, masses = cells_of(table, read), (read.mass, stated_mass(table))
    found = []
    for name, members in bases.items():
        for persona in read.personas:
            if persona in members:
                continue
            arms = paired_arms(cells, persona, members)
            for outcome in wanted:
                for way in reads:
                    scene = _Scene(read, arms, outcome, way, masses, delta)
                    found += list(_of_strata(scene, persona, name))
    return found


def reads_of(outcomes: Outcomes) -> tuple[str, ...]:
    """The reads that a table allows, the distribution first.

    Raises:
        ProbeError: it has no latent, or no stated label.
    """
    if "y_latent" not in outcomes.told or not {"y_gen", "stated_logp_<label>"} & outcomes.told:
        raise ProbeError(
            "where a persona acts takes both labels: logp_<label> or y_latent, and y_gen (or stated_logp_<label>); "
            f"the table tells {', '.join(sorted(outcomes.told)) or 'neither'}"
        )
    allowed = {
        "distribution": {"logp_<label>", "stated_logp_<label>"} <= outcomes.told,
        "label": "y_gen" in outcomes.told,
    }
    found = tuple(read for read in READS if allowed[read])
    if not found:
        raise ProbeError(
            "latent and stated label must be told in the same way: y_latent (or logp_<label>) with y_gen, or "
            "logp_<label> with stated_logp_<label>"
        )
    return found


def locus_table(found: Sequence[Locus]) -> pd.DataFrame:
    """Tidy rows of :func:`loci`: one per persona, base, stratum, outcome, read and quantity (T, L, D).

    ``value`` with ``low``, ``high`` (95 %) and ``low_90``, ``high_90``; ``status``; ``bound_*``: the ends if answers
    without a label could be anything; ``worst_*``: the ends if probability outside the labels could fall on any of
    them, told where its share differs by more than .05; ``n`` cases in ``families``.
    """
    return pd.DataFrame([row for one in found for row in one.rows], columns=list(LOCUS_COLUMNS))


@dataclass(frozen=True, eq=False)
class _Scene:
    """One persona and base, one outcome and read, before it is split by stratum."""

    outcomes: Outcomes
    arms: PairedArms
    outcome: Outcome
    read: str
    masses: tuple[np.ndarray, np.ndarray]
    delta: float

    def differences(self) -> dict[str, dict[str, Float[np.ndarray, " case"]]]:
        """Per-case T, L and D as seen, and with unstated answers at the ends of what they could be."""
        latent, stated = (read(self.outcomes, self.read) for read in (self.outcome.latent, self.outcome.stated))
        both = ~np.isnan(latent) & ~np.isnan(stated)
        of_latent, answered = (self.arms.per_case(latent), np.where(both, stated, np.nan))
        total = self.arms.per_case(answered)
        seen = {"T": total, "L": of_latent, "D": total - self.arms.per_case(np.where(both, latent, np.nan))}
        top = self.outcome.top(self.outcomes)
        low, high = (np.where(np.isnan(stated), end, stated) for end in (0.0, top))
        found = {"seen": seen}
        for name, ours, theirs in (("lowest", low, high), ("highest", high, low)):
            end = self._crossed(np.where(np.isnan(latent), np.nan, ours), np.where(np.isnan(latent), np.nan, theirs))
            found[name] = {"T": end, "D": end - of_latent}
        return found

    def worst(self, part: np.ndarray) -> dict[str, tuple[float, float]]:
        """Ends of T, L and D if what is not on a label could fall on any, where its share differs between the arms."""
        top, found = self.outcome.top(self.outcomes), {}
        kept = np.isin(self.arms.case, np.flatnonzero(part))
        sides = zip(("L", "T"), (self.outcome.latent, self.outcome.stated), self.masses, strict=True)
        for quantity, value_of, mass in sides if self.read == "distribution" else ():
            ours, theirs = mass[self.arms.ours][kept], self.arms.base_mean(mass)[kept]
            if not _known(ours, theirs) or abs(np.nanmean(ours) - np.nanmean(theirs)) <= MASS_DIFFERENCE:
                continue
            least = value_of(self.outcomes, self.read) * mass
            most = least + top * (1 - mass)
            ends = (self._crossed(least, most)[part], self._crossed(most, least)[part])
            found[quantity] = (float(np.nanmean(ends[0])), float(np.nanmean(ends[1])))
        return found

    def _crossed(self, ours: np.ndarray, theirs: np.ndarray) -> Float[np.ndarray, " case"]:
        """Per case, ours under the persona minus theirs under the base."""
        arms = self.arms
        return mean_by(arms.case, ours[arms.ours] - arms.base_mean(theirs), len(arms.family))


def _known(*values: np.ndarray) -> bool:
    return all(bool((~np.isnan(one)).any()) for one in values)


def _of_strata(scene: _Scene, persona: str, base: str) -> Iterator[Locus]:
    arms, outcomes = scene.arms, scene.outcomes
    top, different = scene.outcome.top(outcomes), scene.differences()
    unstated = np.isnan(scene.outcome.stated(outcomes, scene.read)).astype(float)
    for stratum in outcomes.strata:
        part = inside(arms, stratum)
        if not part.any():
            continue
        rows = np.isin(arms.case, np.flatnonzero(part))
        # Two shares differ in T and L; D is a difference of such differences.
        ways = {
            name: {
                q: change(d[part], arms.family[part], (2 if q == "D" else 1) * top, binary=_binary(scene, q))
                for q, d in quantities.items()
            }
            for name, quantities in different.items()
        }
        yield Locus(
            *(persona, base, stratum, scene.outcome.name, scene.read),
            *(ways["seen"], ways["lowest"], ways["highest"]),
            worst=scene.worst(part),
            ratio=_ratio(different["seen"], arms.family, part, ways["seen"]["T"]),
            mass=_levels(arms, scene.masses[0], rows),
            unstated=_levels(arms, unstated, rows),
            delta=scene.delta,
        )


def _binary(scene: _Scene, quantity: str) -> bool:
    return scene.read == "label" and scene.outcome.name != "expected_urgency" and quantity != "D"


def _levels(arms: PairedArms, value: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    own, other = value[arms.ours][rows], arms.base_mean(value)[rows]
    found = [float(np.nanmean(one)) if _known(one) else np.nan for one in (own, other)]
    return found[0], found[1]


def _ratio(
    seen: dict[str, Float[np.ndarray, " case"]], family: np.ndarray, part: np.ndarray, total: Change
) -> Estimate:
    """L / T over the cases that were answered, only where T's own interval excludes 0."""
    if not (total.low > 0 or total.high < 0):
        return Estimate(None, n=total.n, note="undefined: T's interval holds 0")
    numerator = (seen["T"] - seen["D"])[part]
    return fieller(numerator, seen["T"][part], family[part])
