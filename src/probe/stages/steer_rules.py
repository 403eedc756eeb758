"""Other rules than equal dose for a strength: equal norm, and the best fit, an upper bound. Runs sweeps.

With few labels a strength that is tuned to the answer lets almost any direction recover a mean; what such a rule gives
is read beside controls that were tuned in the same way, and never alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from probe.mechanism.steering.comparison import Arm, Comparison, patterns, recovery
from probe.mechanism.steering.controls import RANDOM
from probe.mechanism.steering.dose import GRID
from probe.mechanism.steering.label_reads import log_ratios
from probe.mechanism.steering.recovery import pattern
from probe.stages.steer_bench import Bench, Dosed
from probe.stages.steer_reads import Edits
from probe.stages.steer_scene import Prompted
from probe.values import ALL

EQUAL_NORM, BEST_FIT = "equal norm", "best fit"
"""``equal norm``: every direction as long as the persona's own is. ``best fit``: of the strengths that every direction
is tried at first, the one whose shifts fit the prompt's best on the validation cases."""

N_DRAWN = 20
"""Random directions of each kind under these rules."""


def by_rule(bench: Bench, found: Comparison, dosed: Sequence[Dosed]) -> pd.DataFrame:
    """What the persona's direction and its controls recover under the other rules, on the held-out cases.

    Tidy: persona, layer, position, rule, kind, arm, strength, recovered (first outcome; empty where the prompt's
    interval holds 0), fit, fit_centred, broken, n.
    """
    counts: dict[str, int] = {}
    kept = []
    for one in dosed:
        counts[one.push.kind] = counts.get(one.push.kind, 0) + 1
        if one.push.kind not in RANDOM or counts[one.push.kind] <= N_DRAWN:
            kept.append(one)
    own = dosed[0].push
    chosen = {EQUAL_NORM: [own.norm / own.scale] * len(kept), BEST_FIT: _best_fits(bench, found.persona, kept)}
    cases = bench.scene.parts["test"]
    arms: list[Edits] = [
        (one.push.edit(strength, bench.acts_at),)
        for strengths in chosen.values()
        for one, strength in zip(kept, strengths, strict=True)
    ]
    reads = bench.read(bench.base, cases, arms, what=f"{found.persona}: other rules")
    parts = []
    for k, (rule, strengths) in enumerate(chosen.items()):
        made = [
            reads.arm(1 + k * len(kept) + i, one.push.kind, one.push.name, strength=strength)
            for i, (one, strength) in enumerate(zip(kept, strengths, strict=True))
        ]
        parts.append(_told(found, made).assign(rule=rule))
    columns = ["persona", "layer", "position", "rule", "kind", "arm", "strength", "recovered", "fit", "fit_centred"]
    told = pd.concat(parts, ignore_index=True)
    return told[[*columns, "broken", "n"]]


def _told(found: Comparison, made: Sequence[Arm]) -> pd.DataFrame:
    fixed = [found.the("none"), found.the("prompted")]
    compared = Comparison(
        found.persona, found.base, found.layer, found.position, found.cases, [*fixed, *made], found.margin
    )
    rows = recovery(compared)
    rows = rows[(rows["stratum"] == ALL) & (rows["outcome"] == rows["outcome"].iloc[0])]
    shapes = patterns(compared)
    fits = shapes[shapes["stratum"] == ALL].pivot(index="arm", columns="quantity", values="value")
    kept = rows[~rows["kind"].isin(["none", "prompted"])].set_index("arm")
    joined: pd.DataFrame = kept.join(fits[["fit", "fit_centred"]])
    return joined.reset_index()


def _best_fits(bench: Bench, persona: str, dosed: Sequence[Dosed]) -> list[float]:
    """For each direction the strength of the grid with the best fit on the validation cases."""
    cases = bench.scene.settling()
    family = bench.scene.judged(cases).family
    arms: list[Edits] = [(one.push.edit(strength, bench.acts_at),) for one in dosed for strength in GRID]
    reads = bench.read(bench.base, cases, arms, what=f"{persona}: best fits")
    prompted = bench.read(Prompted(persona), cases).logp[0]
    none = log_ratios(reads.logp[0])
    fits = [pattern(log_ratios(logp) - none, log_ratios(prompted) - none, family).fit.value for logp in reads.logp[1:]]
    known = np.array([-np.inf if one is None else one for one in fits]).reshape(len(dosed), len(GRID))
    return [GRID[int(best)] for best in known.argmax(1)]
