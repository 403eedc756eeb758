"""What patching recovers of a persona's effect: differences, fractions and flips of the label. Knows arrays of label
reads; knows no model and no file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from probe.behaviour.intervals import proportion
from probe.mechanism.patching.grid import (
    CONTROLS,
    DENOISING,
    HEAD_OUT,
    NOISING,
    OTHER_CASE,
    OTHER_CASE_BASE,
    by_construction,
)
from probe.mechanism.patching.groups import ANSWER, PROMPT_END
from probe.mechanism.patching.many import by_case, ratios_of_means
from probe.mechanism.patching.reads import SAME, STATED, Arm, PatchReads
from probe.mechanism.relation.verdicts import change
from probe.values import ALL

TOLERANCE = 1e-4
"""How far a label's log-probability may lie from what a cell must show by construction, in float32."""

PLACE = ["persona", "base", "stratum", "read", "direction", "control", "stream", "layer", "head", "group"]


def patch_effects(reads: Sequence[PatchReads], base: str, n_layers: int) -> pd.DataFrame:
    """How much of a persona's effect each cell of the grid brings into the base run, or takes out of the persona's.

    Tidy: :data:`PLACE`, outcome, total (mean of persona - base, over the same cases), shift with low and high (95 %,
    clustered by case family), fraction = shift / total with fraction_low and fraction_high (ratio of means, Fieller
    set; undefined where the total's interval holds 0), by_construction (what the cell must show; NaN where it is a
    finding), n (cases), families, note.

    ``shift`` of denoising is patched - base; of noising persona - patched, what the patch takes away; of the control
    ``other case`` it is what the persona's state on another case does beyond the base's state on that case. Single
    heads are told over all strata together.
    """
    parts = [
        _effects(own, stratum, outcome, base, n_layers)
        for own in reads
        for stratum in own.strata
        for outcome in own.outcomes
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=PLACE)


def _effects(own: PatchReads, stratum: str, outcome: str, base: str, n_layers: int) -> pd.DataFrame:
    kept = own.within(stratum)
    case = np.unique(own.case[kept], return_inverse=True)[1]
    family = by_case(own.family[kept].astype(float), case).astype(int)
    y0, yp = (own.outcome(outcome, logp)[kept] for logp in (own.base, own.donor))
    patched = own.outcome(outcome, own.patched)[:, kept]
    beside = {arm.place: y for arm, y in zip(own.arms, patched, strict=True) if arm.control == OTHER_CASE_BASE}
    arms, moved = [], []
    for arm, y in zip(own.arms, patched, strict=True):
        against = beside.get(arm.place) if arm.control == OTHER_CASE else y0
        if arm.control != OTHER_CASE_BASE and against is not None and _told(arm, stratum):
            arms.append(arm)
            moved.append(yp - y if arm.direction == NOISING else y - against)
    shift = by_case(_clean(np.array(moved).reshape(len(arms), len(y0))), case)
    found = ratios_of_means(shift, by_case(yp - y0, case), family, own.top(outcome))
    must = [_must(own, arm, n_layers) for arm in arms]
    table = pd.DataFrame([_place(own, arm, stratum, base) for arm in arms], columns=PLACE)
    return table.assign(
        outcome=outcome,
        total=found.total,
        shift=found.value,
        low=found.low,
        high=found.high,
        fraction=found.ratio,
        fraction_low=found.ratio_low,
        fraction_high=found.ratio_high,
        by_construction=np.array(must, dtype=float),
        n=found.n,
        families=found.families,
        note=found.note,
    )


def _told(arm: Arm, stratum: str) -> bool:
    """Single heads are many: they are told over all strata together."""
    return stratum == ALL or arm.place.stream != HEAD_OUT


def _clean(values: Float[np.ndarray, "*arms unit"]) -> Float[np.ndarray, "*arms unit"]:
    return np.where(np.abs(values) < SAME, 0.0, values)


def _place(own: PatchReads, arm: Arm, stratum: str, base: str) -> dict[str, object]:
    at = arm.place
    return {
        "persona": own.persona,
        "base": base,
        "stratum": stratum,
        "read": own.read,
        "direction": arm.direction,
        "control": arm.control,
        "stream": at.stream,
        "layer": at.layer,
        "head": at.head,
        "group": at.group,
    }


def _must(own: PatchReads, arm: Arm, n_layers: int) -> float | None:
    read_group = ANSWER if own.read == STATED else PROMPT_END
    place, control = arm.place, arm.control
    return by_construction(place, n_layers=n_layers, read_group=read_group, control=control, matched=own.matched)


def patch_labels(reads: Sequence[PatchReads], base: str) -> pd.DataFrame:
    """Which labels a patch flips, and whether it moves the right cases: one row per cell of the grid.

    ``reached``: of the cases whose label differs between the two runs, the share in which the patched run says the
    donor's (``n_changed``). ``kept``: of the others, the share that still say their label (``n_kept``). Both with
    Wilson's interval, clustered by case. ``slope`` and ``fit``: with D the vectors of log-odds shifts over the cases,
    b = sum <Ds, Dp> / sum |Dp|^2 and F = 1 - sum |Ds - Dp|^2 / sum |Dp|^2, which is 1 where every case is moved as the
    donor moves it and may be below 0. The donor of noising is the base run. ``mass``: mean probability on the labels;
    where it falls, the patch broke the answer rather than moved it.
    """
    rows: list[dict[str, object]] = []
    for own in reads:
        for stratum in own.strata:
            kept = own.within(stratum)
            ends = {DENOISING: (own.base[kept], own.donor[kept]), NOISING: (own.donor[kept], own.base[kept])}
            for arm, logp, mass in zip(own.arms, own.patched[:, kept], own.mass[:, kept], strict=True):
                if not _told(arm, stratum):
                    continue
                told = _label_numbers(*ends[arm.direction], logp, own.case[kept])
                there = mass[~np.isnan(mass)]
                told["mass"] = float(there.mean()) if len(there) else np.nan
                rows.append(_place(own, arm, stratum, base) | told)
    columns = ["reached", "reached_low", "reached_high", "n_changed", "kept", "kept_low", "kept_high", "n_kept"]
    return pd.DataFrame(rows, columns=[*PLACE, *columns, "slope", "fit", "mass"])


def _label_numbers(
    start: Float[np.ndarray, "unit label"],
    goal: Float[np.ndarray, "unit label"],
    logp: Float[np.ndarray, "unit label"],
    case: np.ndarray,
) -> dict[str, object]:
    there = ~np.isnan(logp).any(1)
    start, goal, logp, case = start[there], goal[there], logp[there], case[there]
    before, wanted, now = (each.argmax(1) for each in (start, goal, logp))
    numbers: dict[str, object] = {}
    for name, count, among in (
        ("reached", "n_changed", before != wanted),
        ("kept", "n_kept", before == wanted),
    ):
        share = proportion((now == wanted)[among].astype(float), case[among])
        none = share.value is None
        numbers |= {name: np.nan if none else share.value, count: share.n}
        numbers |= {f"{name}_low": np.nan if none else share.low, f"{name}_high": np.nan if none else share.high}
    done, whole = (np.diff(each, axis=1) - np.diff(start, axis=1) for each in (logp, goal))
    size = float((whole**2).sum())
    if size == 0:
        return numbers | {"slope": np.nan, "fit": np.nan}
    return numbers | {"slope": float((done * whole).sum()) / size, "fit": 1 - float(((done - whole) ** 2).sum()) / size}


def run_totals(reads: Sequence[PatchReads], base: str) -> pd.DataFrame:
    """What there is to recover, and how far the neutral sentence itself lies from the study's base.

    Tidy: persona, base, stratum, read, outcome, quantity (``persona - neutral``, ``neutral - base``,
    ``persona - base``), value, low, high, n, families, note. Without a neutral sentence the first is against ``base``
    itself, and stands alone.
    """
    rows: list[dict[str, object]] = []
    for own in reads:
        runs = {"persona - neutral": (own.donor, own.base)}
        if own.study_base is None:
            runs = {"persona - base": (own.donor, own.base)}
        else:
            runs |= {"neutral - base": (own.base, own.study_base), "persona - base": (own.donor, own.study_base)}
        for stratum in own.strata:
            kept = own.within(stratum)
            case = np.unique(own.case[kept], return_inverse=True)[1]
            family = by_case(own.family[kept].astype(float), case).astype(int)
            for outcome in own.outcomes:
                for quantity, (one, other) in runs.items():
                    moved = own.outcome(outcome, one) - own.outcome(outcome, other)
                    found = change(by_case(_clean(moved[kept]), case), family, own.top(outcome))
                    rows.append(
                        {"persona": own.persona, "base": base, "stratum": stratum, "read": own.read}
                        | {"outcome": outcome, "quantity": quantity, "value": found.value, "low": found.low}
                        | {"high": found.high, "n": found.n, "families": found.families, "note": found.note}
                    )
    columns = ["persona", "base", "stratum", "read", "outcome", "quantity", "value", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "n", "families", "note"])


def construction_check(reads: Sequence[PatchReads], n_layers: int) -> pd.DataFrame:
    """Cells that must show all of the donor's run, or nothing of it, against what they show.

    Columns: persona, read, cells, largest (absolute difference of a label's log-probability among the labels, nats),
    tolerance, same. ``largest`` and ``same`` are empty where no such cell was run: nothing is known then.
    """
    rows = []
    for own in reads:
        ends = {DENOISING: (own.base, own.donor), NOISING: (own.donor, own.base)}
        off, cells = np.nan, 0
        for arm, logp in zip(own.arms, own.patched, strict=True):
            must = _must(own, arm, n_layers)
            if arm.control in CONTROLS or must is None:
                continue
            cells += 1
            apart = np.abs(logp - ends[arm.direction][int(must)])
            if not np.isnan(apart).all():
                off = float(np.fmax(off, np.nanmax(apart)))
        rows.append(
            {"persona": own.persona, "read": own.read, "cells": cells, "largest": off}
            | {"tolerance": TOLERANCE, "same": None if np.isnan(off) else off <= TOLERANCE}
        )
    return pd.DataFrame(rows, columns=["persona", "read", "cells", "largest", "tolerance", "same"])
