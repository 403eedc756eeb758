"""Why the stated label departs from the latent one. Knows outcomes; knows no model.

A cause is a property of a cell that can be seen whether or not its labels agree, so each has a rate among disagreeing
*and* among agreeing cells; only their ratio says that it matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool

from probe.behaviour import scores
from probe.behaviour.columns import ABSENT
from probe.behaviour.intervals import Z, proportion
from probe.behaviour.measures import split_by_columns
from probe.behaviour.outcomes import Outcomes, Told, argmax, read_outcomes
from probe.values import Estimate, ProbeError

NEAR_TIE = 0.1
"""Latent margin in nats below which batch composition or a kernel may flip a label: bf16 moves logits by .02-.06."""

Seen = Bool[np.ndarray, " row"]


@dataclass(frozen=True)
class Cause:
    """A property of cells, by name, how it is seen (given the near-tie margin), and the columns it is read from."""

    name: str
    seen: Callable[[Outcomes, float], Seen]
    columns: tuple[Told, ...]


def unparsed(outcomes: Outcomes, near_tie: float) -> Seen:
    """The answer states no label: a refusal, or it could not be parsed."""
    return np.asarray((outcomes.status != ABSENT) & (outcomes.status != "parsed"))


def tied(outcomes: Outcomes, near_tie: float) -> Seen:
    """The latent label leads by less than ``near_tie`` nats."""
    return np.asarray(scores.margin(outcomes) < near_tie)


def token_variant(outcomes: Outcomes, near_tie: float) -> Seen:
    """The letter written is not the most probable label at its own site, and the answer was decoded greedily.

    Another spelling of a letter was the most probable token then, though the variants of the letter that was not
    written weigh more together.
    """
    return np.asarray(_off_its_slot(outcomes) & ~_sampled(outcomes))


def draw(outcomes: Outcomes, near_tie: float) -> Seen:
    """The letter written is not the most probable label at its own site, and the answer was sampled: chance, mostly."""
    return np.asarray(_off_its_slot(outcomes) & _sampled(outcomes))


def _off_its_slot(outcomes: Outcomes) -> Seen:
    slot = argmax(outcomes.stated_logp)
    return np.asarray((outcomes.stated >= 0) & (slot >= 0) & (slot != outcomes.stated))


def _sampled(outcomes: Outcomes) -> Seen:
    return ~np.isin(outcomes.seed.astype(str), ["", "0"])


def late_letter(outcomes: Outcomes, near_tie: float) -> Seen:
    """Something stands before the letter: a preamble or reasoning."""
    return np.asarray(outcomes.letter_first == 0)


CAUSES: tuple[Cause, ...] = (
    Cause("unparsed", unparsed, ("y_gen",)),
    Cause("near_tie", tied, ("logp_<label>",)),
    Cause("token_variant", token_variant, ("stated_logp_<label>",)),
    Cause("draw", draw, ("stated_logp_<label>",)),
    Cause("late_letter", late_letter, ("letter_first",)),
)
"""In the order of precedence of the exclusive shares: what leaves no stated label at all, then what any perturbation
would flip, then what happens in the letter's own slot, then what was written before it. The rest is ``none``."""

COLUMNS = (
    *("cause", "persona", "stratum", "rate_disagree", "k_disagree", "n_disagree", "disagree_low", "disagree_high"),
    *("rate_agree", "k_agree", "n_agree", "agree_low", "agree_high", "ratio", "ratio_low", "ratio_high"),
    *("share", "k_share", "note"),
)


def causes(table: pd.DataFrame, *, near_tie: float = NEAR_TIE, options: Sequence[str] | None = None) -> pd.DataFrame:
    """How often each possible cause is seen where the labels disagree and where they agree, per persona and stratum.

    A cell disagrees where its stated label is not its latent one; an unparsed answer disagrees. Causes overlap:
    ``rate_disagree`` and ``rate_agree`` (Wilson intervals) count every cell that shows the cause, ``ratio`` is the
    first over the second with a log-normal interval (Katz; at the effective n where cells cluster by case). ``share``
    counts every disagreeing cell once, under the first cause of :data:`CAUSES` that it shows, or ``none``: shares add
    up to 1. Causes whose columns the table lacks are absent (``attrs["absent"]``), and their cells fall to the next.
    An answer with a ``seed`` other than 0 was sampled: a letter that is not the most probable one at its own site is a
    ``draw`` there, and a ``token_variant`` in a greedy answer; of the two only those that the table can hold are shown.

    Raises:
        ProbeError: the table has no ``y_gen`` or no latent label.
    """
    outcomes = read_outcomes(table, options=options)
    if lack := [name for name in ("y_gen", "y_latent") if name not in outcomes.told]:
        raise ProbeError(
            f"causes of disagreement need a stated and a latent label; the table lacks {' and '.join(lack)}"
        )
    sampled = _sampled(outcomes)
    never = {*(() if sampled.any() else ("draw",)), *(("token_variant",) if sampled.all() else ())}
    present, absent = split_by_columns([cause for cause in CAUSES if cause.name not in never], outcomes)
    rows = [
        {"persona": persona, "stratum": stratum, **row}
        for persona in outcomes.personas
        for stratum in outcomes.strata
        for row in _of_arm(outcomes.arm(persona, stratum), present, near_tie)
    ]
    result = pd.DataFrame(rows, columns=list(COLUMNS))
    order = [*(cause.name for cause in CAUSES), "none"]
    result = result.sort_values("cause", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)
    result.attrs = {"absent": list(absent), "near_tie": near_tie}
    return result


def _of_arm(arm: Outcomes, present: Sequence[Cause], near_tie: float) -> list[dict[str, object]]:
    agrees = scores.consistency_strict(arm)
    seen = {cause.name: cause.seen(arm, near_tie) for cause in present}
    free = np.full(len(arm), True)
    rows = []
    for name, shown in [*seen.items(), ("none", np.full(len(arm), True))]:
        first = free & shown
        rates = [_rate(shown if name != "none" else free, agrees == side, arm.case) for side in (0, 1)]
        share = _rate(first, agrees == 0, arm.case)
        row: dict[str, object] = {
            "cause": name,
            "note": "",
            "share": share.value,
            "k_share": share.counts.get("k", 0.0),
        }
        for side, rate in zip(("disagree", "agree"), rates, strict=True):
            row |= {f"rate_{side}": rate.value, f"k_{side}": rate.counts.get("k", 0.0), f"n_{side}": rate.n}
            row |= {f"{side}_low": rate.low, f"{side}_high": rate.high}
        rows.append(row | _ratio(*rates, by_construction=name == "unparsed"))
        free &= ~shown
    return rows


def _rate(shown: Seen, side: Seen, case: np.ndarray) -> Estimate:
    return proportion(np.where(side, shown.astype(float), np.nan), case)


def _ratio(disagree: Estimate, agree: Estimate, *, by_construction: bool) -> dict[str, object]:
    if disagree.value is None or agree.value is None:
        return {"note": "undefined: no cell disagrees" if disagree.value is None else "undefined: no cell agrees"}
    if by_construction:
        return {"note": "ratio undefined: an unparsed answer disagrees by definition"}
    if agree.value == 0:
        return {"note": "ratio undefined: never seen where the labels agree"}
    ratio = disagree.value / agree.value
    if ratio == 0:
        return {"ratio": 0.0, "note": "never seen where the labels disagree: no interval"}
    spread = np.sqrt(
        sum((1 - rate.value) / (rate.value * _effective(rate)) for rate in (disagree, agree) if rate.value)
    )
    if spread == 0:
        return {"ratio": ratio, "note": "seen in every cell of both sides: no interval"}
    return {"ratio": ratio, "ratio_low": ratio * np.exp(-Z * spread), "ratio_high": ratio * np.exp(Z * spread)}


def _effective(rate: Estimate) -> float:
    """The number of rows behind Wilson's interval: all of them, or the effective number where they cluster by case."""
    return float(rate.counts.get("effective", rate.n))
