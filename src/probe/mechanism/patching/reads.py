"""Reads of patched runs as arrays, and the outcomes of a label distribution. Knows label reads; knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.special import log_softmax

from probe.behaviour.columns import labels_of, text_of
from probe.behaviour.outcomes import options_of
from probe.behaviour.pairing import SHARED
from probe.mechanism.patching.grid import Place
from probe.mechanism.splits import families_of
from probe.values import ALL, ProbeError

LATENT, STATED = "latent", "stated"
"""Where the label is read: at ``prompt_end``, or at the letter after a forced text."""

BASE_RUN, DONOR_RUN, STUDY_BASE, PATCHED, PATH = "base", "donor", "study base", "patched", "path"
"""Kinds of a read: the base run and the persona's, the study's own base under the same forced text, a patched run, and
a run whose last token sees the base's tokens of some roles and the persona's of others (``group``: which)."""

COLUMNS = ("persona", "read", "kind", "direction", "control", "stream", "layer", "head", "group")
"""Of every read, beside the case, its condition and ``logp_<label>``; empty, or -1, where a kind has none."""

SAME = 1e-5
"""A difference in one case that is smaller is none: two reads in different batches differ in low bits."""


@dataclass(frozen=True, eq=False)
class Arm:
    """One way of patching: in which direction, with which control (empty: none), where."""

    direction: str
    control: str
    place: Place


@dataclass(frozen=True, eq=False)
class PatchReads:
    """The reads of one persona at one label site, over the units (case x condition) that both runs have.

    ``base``, ``donor`` and ``patched[arm]`` are log-probabilities over the labels alone (they sum to one),
    ``mass[arm]`` is the probability on all labels together; a unit in which an arm was absent is NaN. ``target`` is the
    option of the reference.
    """

    persona: str
    read: str
    options: tuple[str, ...]
    high: int | None
    case: Int[np.ndarray, " unit"]
    family: Int[np.ndarray, " unit"]
    stratum: np.ndarray
    target: Int[np.ndarray, " unit"]
    base: Float[np.ndarray, "unit label"]
    donor: Float[np.ndarray, "unit label"]
    arms: tuple[Arm, ...]
    patched: Float[np.ndarray, "arm unit label"]
    mass: Float[np.ndarray, "arm unit"]
    study_base: Float[np.ndarray, "unit label"] | None
    coalitions: dict[str, Float[np.ndarray, "unit label"]]

    @property
    def strata(self) -> tuple[str, ...]:
        """The pool, and each stratum where there are several."""
        found = tuple(dict.fromkeys(str(name) for name in self.stratum))
        return (ALL, *found) if len(found) > 1 else (ALL,)

    def within(self, stratum: str) -> np.ndarray:
        """Whether a unit belongs to a stratum."""
        return np.full(len(self.stratum), True) if stratum == ALL else self.stratum == stratum

    @property
    def matched(self) -> bool:
        """Whether the base run has a neutral sentence in the persona's place; else it is the study's base itself."""
        return self.study_base is not None

    @property
    def outcomes(self) -> tuple[str, ...]:
        """The names of the outcomes, the first one first: what is drawn and told unless another is asked for."""
        pairs = zip(self.options[1:], self.options, strict=False)
        risk = () if self.high is None else ("p_high_risk",)
        return ("expected_urgency", *(f"log_odds {upper}:{lower}" for upper, lower in pairs), *risk, "p_target")

    def outcome(self, name: str, logp: Float[np.ndarray, "*arms unit label"]) -> Float[np.ndarray, "*arms unit"]:
        """One outcome of label distributions. ``expected_urgency``: the rank of the option, 0 to K-1, expected.
        ``log_odds b:a``: log P(b)/P(a) in nats, the label contrast. ``p_...``: a probability."""
        if name == "expected_urgency":
            return np.asarray(np.exp(logp) @ np.arange(len(self.options)))
        if name == "p_high_risk":
            assert self.high is not None
            return np.asarray(np.exp(logp[..., self.high]))
        if name == "p_target":
            return np.asarray(np.exp(logp[..., np.arange(len(self.target)), self.target]))
        k = self.outcomes.index(name)
        return np.asarray(logp[..., k] - logp[..., k - 1])

    def top(self, name: str) -> float:
        """How far two values of an outcome can lie apart; of log-odds, as far as any two runs here do."""
        if name == "expected_urgency":
            return len(self.options) - 1.0
        if name.startswith("p_"):
            return 1.0
        return float(np.ptp(self.outcome(name, np.stack([self.base, self.donor]))))


def patch_reads(reads: pd.DataFrame) -> tuple[PatchReads, ...]:
    """The reads of each persona and label site.

    ``reads`` has :data:`COLUMNS`, case, target, logp_<label>, mass; family, stratum and parts of a condition where
    there are some. Its attributes name the ``options`` in rising urgency and the option ``high_risk``.

    Raises:
        ProbeError: a persona's donor or base run is missing throughout.
    """
    options, _ = options_of(reads, None)
    risky = reads.attrs.get("high_risk")
    high = None if risky is None else options.index(str(risky))
    keys = ["case", *(name for name in SHARED if name in reads and name not in ("given", "intervention"))]
    plain = reads.copy(deep=False)
    plain.attrs = {}
    plain["family"], plain["stratum"] = families_of(reads), text_of(reads, "stratum")
    parts = plain.groupby(["persona", "read"], sort=False)
    return tuple(_gathered(own.reset_index(drop=True), keys, options, high) for _, own in parts)


def _gathered(own: pd.DataFrame, keys: Sequence[str], options: tuple[str, ...], high: int | None) -> PatchReads:
    persona, read = str(own["persona"].iloc[0]), str(own["read"].iloc[0])
    kinds = {kind: np.flatnonzero(own["kind"] == kind) for kind in (BASE_RUN, DONOR_RUN, STUDY_BASE, PATCHED, PATH)}
    key = own.groupby(list(keys), sort=False, dropna=False).ngroup().to_numpy()
    units, first = np.unique(key[kinds[BASE_RUN]], return_index=True)
    both = np.isin(units, key[kinds[DONOR_RUN]])
    units, first = units[both], kinds[BASE_RUN][first[both]]
    if not len(units):
        raise ProbeError(f"no case of {persona!r} ({read}) has both the persona's run and its base's; patch it anew")
    place = np.full(int(key.max()) + 1, -1)
    place[units] = np.arange(len(units))
    unit = place[key]
    logp = log_softmax(own[[f"logp_{option}" for option in options]].to_numpy(float), axis=1)

    def filled(rows: np.ndarray, code: np.ndarray, n: int, values: np.ndarray = logp) -> np.ndarray:
        found = np.full((n, len(units), *values.shape[1:]), np.nan)
        kept = unit[rows] >= 0
        found[code[kept], unit[rows][kept]] = values[rows][kept]
        return found

    def run(kind: str) -> np.ndarray:
        return np.asarray(filled(kinds[kind], np.zeros(len(kinds[kind]), dtype=int), 1)[0])

    patched = own.iloc[kinds[PATCHED]].groupby(list(_ARM), sort=False, dropna=False)
    code, arms = patched.ngroup().to_numpy(), [_arm(at) for at, _ in patched]
    paths = own.iloc[kinds[PATH]].groupby("group", sort=False)
    worth = filled(kinds[PATH], paths.ngroup().to_numpy(), len(paths))
    about = own.iloc[first]
    return PatchReads(
        persona=persona,
        read=read,
        options=options,
        high=high,
        case=np.unique(about["case"].astype(str), return_inverse=True)[1],
        family=np.unique(about["family"].astype(str), return_inverse=True)[1],
        stratum=about["stratum"].to_numpy(object),
        target=labels_of(about, "target", options),
        base=run(BASE_RUN),
        donor=run(DONOR_RUN),
        arms=tuple(arms),
        patched=filled(kinds[PATCHED], code, len(arms)),
        mass=filled(kinds[PATCHED], code, len(arms), own["mass"].to_numpy(float)),
        study_base=run(STUDY_BASE) if len(kinds[STUDY_BASE]) else None,
        coalitions={str(name): logp for (name, _), logp in zip(paths, worth, strict=True)},
    )


_ARM = ("direction", "control", "stream", "layer", "group", "head")


def _arm(at: Any) -> Arm:
    direction, control, stream, layer, group, head = at
    return Arm(str(direction), str(control), Place(str(stream), int(layer), str(group), int(head)))
