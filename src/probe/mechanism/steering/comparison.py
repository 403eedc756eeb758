"""One persona prompted against steered, with controls: tidy rows of what each arm recovers. Knows label reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float

from probe.mechanism.relation.verdicts import MARGIN, change
from probe.mechanism.steering.breakage import Health, Limits, broken, mean_health
from probe.mechanism.steering.controls import CONTROLS, RANDOM
from probe.mechanism.steering.label_reads import (
    MOVED_OTHER,
    JudgedCases,
    divergence,
    log_ratios,
    outcomes,
    with_other,
    worst_case,
)
from probe.mechanism.steering.recovery import Pattern, pattern, rank_p, recovered_fraction, verdict
from probe.values import ALL, Estimate, ProbeError


@dataclass(frozen=True, eq=False)
class Arm:
    """One run of all judged cases: its label reads, and what was done to get them.

    ``logp`` [case label] and ``entropy`` [case] are of the whole next-token distribution (nats); ``kl`` [case] is
    KL(arm || no persona) over the whole vocabulary and ``to_prompted`` KL(arm || prompted), NaN where not measured.
    ``strength`` is in units of the mean residual norm at the site, ``own_strength`` in those of the direction's own
    norm; NaN for prompts. ``settled_dose`` is what it has on the cases that settled the strength, and ``wanted`` what
    the prompt has there (mean divergence, nats); NaN where none was settled. ``reached`` is false where no strength has
    the dose, and ``dose_note`` says why: such an arm is told, and not ranked.
    """

    kind: str
    name: str
    logp: Float[np.ndarray, "case label"]
    entropy: Float[np.ndarray, " case"]
    kl: Float[np.ndarray, " case"]
    to_prompted: Float[np.ndarray, " case"]
    strength: float = np.nan
    own_strength: float = np.nan
    reached: bool = True
    known_health: Health | None = None
    settled_dose: float = np.nan
    wanted: float = np.nan
    dose_note: str = ""

    @property
    def health(self) -> Health:
        """Whether the model still answers, by what its labels show unless more is known."""
        if self.known_health is not None:
            return self.known_health
        return mean_health(with_other(self.logp)[:, :-1].sum(1), self.entropy)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Every arm of one persona at one site, over the same cases in the same order: exactly one arm each of the kinds
    ``none`` and ``prompted`` among them.

    Raises:
        ProbeError: one of these two is lacking or stands twice, or an arm has other cases.
    """

    persona: str
    base: str
    layer: int
    position: str
    cases: JudgedCases
    arms: Sequence[Arm]
    margin: float = MARGIN
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for kind in ("none", "prompted"):
            if (n := sum(arm.kind == kind for arm in self.arms)) != 1:
                raise ProbeError(f"a comparison has one arm of kind {kind!r}, found {n}; give just that one")
        for arm in self.arms:
            if len(arm.logp) != len(self.cases):
                raise ProbeError(
                    f"every arm of a comparison has its {len(self.cases)} cases, and {arm.name!r} has {len(arm.logp)}"
                )

    def the(self, kind: str) -> Arm:
        """The first arm of a kind."""
        return next(arm for arm in self.arms if arm.kind == kind)

    def strata(self) -> Iterator[tuple[str, np.ndarray]]:
        """All cases, and where there are several strata each of them, as places."""
        yield ALL, np.arange(len(self.cases))
        names = tuple(dict.fromkeys(str(name) for name in self.cases.stratum))
        for name in names if len(names) > 1 else ():
            yield name, np.flatnonzero(self.cases.stratum == name)

    def reasons(self, arm: Arm) -> tuple[str, ...]:
        """Why an arm counts as broken, by what its labels show; empty where it does not."""
        return broken(arm.health, [self.the("none").health, self.the("prompted").health], self.limits)

    def where(self) -> dict[str, object]:
        """What every row of every table of this comparison says of its place."""
        return {"persona": self.persona, "base": self.base, "layer": self.layer, "position": self.position}


def recovery(found: Comparison) -> pd.DataFrame:
    """How far each arm moves the means of the labels, and how much of what the prompt moves that is.

    Tidy, a row per arm, stratum and outcome: persona, base, layer, position, kind, arm, stratum, outcome,
    difference, low, high (against no persona), prompted (the prompt's own difference), recovered, recovered_low,
    recovered_high (ratio of means with its Fieller set; empty where the prompt's interval holds 0), apart, apart_low,
    apart_high (against the prompted run), verdict (of the first outcome, at the margin), strength, own_strength,
    dose (mean KL from no persona over labels and other, on these cases, nats), settled_dose, wanted (the same on the
    cases that settled the strength, and the prompt's there), kl (over the whole vocabulary), to_prompted, reached,
    broken, worst_low, worst_high (where the mass outside the labels moved by more than .05), n, note.
    """
    rows = []
    none, prompted = found.the("none"), found.the("prompted")
    scored = {id(arm): outcomes(arm.logp, found.cases) for arm in found.arms}
    top = {name: found.arms[0].logp.shape[1] - 1.0 if name == "expected_urgency" else 1.0 for name in scored[id(none)]}
    judged = next(iter(top))
    fell = {id(arm): found.reasons(arm) for arm in found.arms}
    for stratum, at in found.strata():
        family = found.cases.family[at]
        for arm in found.arms:
            reasons = fell[id(arm)]
            shared = {**found.where(), "kind": arm.kind, "arm": arm.name, "stratum": stratum}
            told = _of_arm(arm, none, at) | {"broken": "; ".join(reasons)}
            for name, most in top.items():
                y, y0, y1 = (scored[id(one)][name][at] for one in (arm, none, prompted))
                d, whole, apart = (
                    change(one, family, most, binary=name == "accuracy") for one in (y - y0, y1 - y0, y - y1)
                )
                share = (
                    recovered_fraction(y, y0, y1, family) if arm.kind not in ("none", "prompted") else Estimate(None)
                )
                said = ""
                if name == judged and arm.kind not in ("none", "prompted"):
                    said = verdict(whole, d, apart, found.margin, broken=bool(reasons))
                rows.append(
                    {**shared, "outcome": name, "difference": d.value, "low": d.low, "high": d.high}
                    | {"prompted": whole.value, **_ends("recovered", share)}
                    | {"apart": apart.value, "apart_low": apart.low, "apart_high": apart.high, "verdict": said}
                    | told
                    | {"n": d.n, "families": d.families}
                    | {"note": "; ".join(filter(None, (arm.dose_note, share.note or d.note)))}
                )
    return pd.DataFrame(rows)


def patterns(found: Comparison) -> pd.DataFrame:
    """Slope and fit of every arm's label log-ratio shifts on the prompt's, before and after removing the means.

    Tidy: persona, base, layer, position, kind, arm, stratum, quantity (``slope``, ``fit``, ``slope_centred``,
    ``fit_centred``), value, low, high, reached, broken, n, note. The reworded prompt's is the ceiling: what another
    wording of the same persona reaches.
    """
    rows = []
    fell = {id(arm): "; ".join(found.reasons(arm)) for arm in found.arms}
    for stratum, at in found.strata():
        for arm in found.arms:
            if arm.kind in ("none", "prompted"):
                continue
            shape = pattern_at(found, arm, at)
            for name, one in vars(shape).items():
                rows.append(
                    {**found.where(), "kind": arm.kind, "arm": arm.name, "stratum": stratum, "quantity": name}
                    | {"value": one.value, "low": one.low, "high": one.high, "reached": arm.reached}
                    | {"broken": fell[id(arm)], "n": one.n, "note": one.note}
                )
    return pd.DataFrame(rows).astype({"value": float, "low": float, "high": float})


def standing(recovered: pd.DataFrame, shapes: pd.DataFrame) -> pd.DataFrame:
    """Where the steered arm stands among its controls, each at its own equal dose.

    Tidy: persona, position, stratum, quantity (``recovered`` of the first outcome, ``fit``, ``fit_centred``), kind,
    steered, ceiling (reworded prompt), n (controls with the dose), n_unreached, n_broken (of the n), median, low, high
    (2.5 and 97.5 % of the controls; of one control, itself), p (rank: controls at least as large; not below
    1 / (1 + n)).
    """
    first = recovered[recovered["outcome"] == recovered["outcome"].iloc[0]].assign(quantity="recovered")
    first = first.rename(columns={"recovered": "value"})
    shaped = shapes[shapes["quantity"].isin(["fit", "fit_centred"])]
    both = pd.concat([first, shaped], ignore_index=True)
    rows = []
    keys = ["persona", "position", "stratum", "quantity"]
    for key, part in both.groupby(keys, sort=False):
        one = dict(list(part.groupby("kind", sort=False)))
        if "steered" not in one:
            continue
        steered = float(one["steered"]["value"].iloc[0])
        ceiling = float(one["reworded"]["value"].iloc[0]) if "reworded" in one else np.nan
        for kind in (name for name in CONTROLS if name in one):
            reached = one[kind][one[kind]["reached"].astype(bool)]
            values = reached["value"].to_numpy(float)
            values = values[~np.isnan(values)]
            low, middle, high = np.quantile(values, (0.025, 0.5, 0.975)) if len(values) else (np.nan,) * 3
            rows.append(
                {**dict(zip(keys, key, strict=True)), "kind": kind, "steered": steered}
                | {"ceiling": ceiling, "n": len(values), "n_unreached": len(one[kind]) - len(reached)}
                | {"n_broken": int((reached["broken"] != "").sum())}
                | {"median": middle, "low": low, "high": high}
                | {"p": rank_p(steered, values) if kind in RANDOM else np.nan}
            )
    return pd.DataFrame(rows)


def shifts(found: Comparison, kinds: Sequence[str] = ("steered", "reworded", "label_contrast")) -> pd.DataFrame:
    """Case by case, how far an arm and the prompt shift the log-ratio of the most to the least urgent label.

    Columns: persona, kind, arm, case, stratum, prompted, steered (nats, against no persona).
    """
    none, prompted = (log_ratios(found.the(kind).logp) for kind in ("none", "prompted"))
    parts = []
    for arm in found.arms:
        if arm.kind in kinds:
            own = log_ratios(arm.logp) - none
            theirs = prompted - none
            parts.append(
                pd.DataFrame(
                    {"persona": found.persona, "kind": arm.kind, "arm": arm.name, "case": found.cases.case}
                    | {"stratum": found.cases.stratum, "prompted": theirs[:, -1] - theirs[:, 0]}
                    | {"steered": own[:, -1] - own[:, 0]}
                )
            )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def pattern_at(found: Comparison, arm: Arm, at: np.ndarray) -> Pattern:
    """The pattern of one arm's shifts over the cases at these places."""
    none, prompted, own = (log_ratios(one.logp[at]) for one in (found.the("none"), found.the("prompted"), arm))
    return pattern(own - none, prompted - none, found.cases.family[at])


def _of_arm(arm: Arm, none: Arm, at: np.ndarray) -> dict[str, object]:
    """What an arm is: strength, dose, and the worst case of its urgency where the mass outside the labels moved."""
    other, before = (float(with_other(one.logp[at])[:, -1].mean()) for one in (arm, none))
    low, high = worst_case(arm.logp[at], none.logp[at]) if abs(other - before) > MOVED_OTHER else (np.nan, np.nan)
    return {
        "strength": arm.strength,
        "own_strength": arm.own_strength,
        "dose": float(divergence(arm.logp[at], none.logp[at]).mean()),
        "settled_dose": arm.settled_dose,
        "wanted": arm.wanted,
        "kl": float(arm.kl[at].mean()),
        "to_prompted": float(arm.to_prompted[at].mean()),
        "label_mass": 1 - other,
        "entropy": float(arm.entropy[at].mean()),
        "reached": arm.reached,
        "worst_low": low,
        "worst_high": high,
    }


def _ends(name: str, found: Estimate) -> dict[str, float]:
    values = {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return {key: np.nan if value is None else value for key, value in values.items()}
