"""Through the text, or at the answer itself: what a swap of texts says of a persona. Knows label reads; knows no model.

``Y(p, q)`` is the label distribution at the letter after the text that persona q wrote, under the prompt of persona p.
Of the four reads over a persona p and its base 0 the total Y(p,p) - Y(0,0) is a sum in two ways, one for each order in
which prompt and text are changed; the mean over both orders is what each contributes (Shapley value).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from probe.behaviour.columns import labels_of, log_softmax_of
from probe.behaviour.outcomes import options_of
from probe.behaviour.pairing import SHARED
from probe.mechanism.relation.verdicts import MARGIN, Change, Status, change, status
from probe.mechanism.splits import families_of
from probe.values import ALL, ProbeError
from probe.values.nearest import nearest

TEXT, DIRECT, LATENT = "through the text", "directly", "directly, latent label alone"
"""The verdicts beside ``both``, ``opposed``, ``neither`` and ``cannot tell``."""

BEFORE = "latent"
"""The persona's effect on the label at the end of the prompt, before any text."""

QUANTITIES: Mapping[str, tuple[float, float, float, float]] = {
    "total": (1, 0, 0, -1),
    "text": (0.5, -0.5, 0.5, -0.5),
    "direct": (0.5, 0.5, -0.5, -0.5),
    "text_first": (0, 0, 1, -1),
    "text_last": (1, -1, 0, 0),
    "direct_first": (0, 1, 0, -1),
    "direct_last": (1, 0, -1, 0),
    "interaction": (1, -1, -1, 1),
}
"""Weights of Y(p,p), Y(p,0), Y(0,p), Y(0,0). ``text`` and ``direct`` are the means over both orders and sum to
``total``; ``first`` is what is changed first, from the base, and ``last`` what is changed last, to the persona."""

_LATENT = f"{BEFORE}_logp_"

SAME = 1e-5
"""A contribution to one case that is smaller is none: both texts are the same tokens, or both prompts."""

UNITS: Mapping[str, str] = {
    "expected_urgency": "rank of the option, 0 to K-1, expected under the distribution",
    "p_high_risk": "probability of the high-risk option",
    "p_target": "probability of the reference label",
    "accuracy": "1 where the most probable label is the reference",
}
"""Outcomes of a read, each over the labels alone (their probabilities sum to 1)."""


@dataclass(frozen=True, eq=False)
class FourReads:
    """One persona and the base on the cases that both wrote a text for: ``y[outcome][case]`` holds Y(p,p), Y(p,0),
    Y(0,p), Y(0,0), each the mean over the conditions (rotation, seed, ...) under which both wrote one.

    ``before[outcome][case]`` is what persona and base read at the end of their prompts, before any text; empty where
    that was not read. ``top`` is the largest value of each outcome; ``masked``: persona words were masked.
    """

    persona: str
    masked: bool
    case: np.ndarray
    family: np.ndarray
    stratum: np.ndarray
    y: Mapping[str, Float[np.ndarray, "case 4"]]
    before: Mapping[str, Float[np.ndarray, "case 2"]]
    top: Mapping[str, float]

    def within(self, stratum: str) -> FourReads:
        """The cases of one stratum, or all."""
        kept = np.full(len(self.case), True) if stratum == ALL else self.stratum == stratum
        y, before = ({name: values[kept] for name, values in one.items()} for one in (self.y, self.before))
        case, family, named = self.case[kept], self.family[kept], self.stratum[kept]
        return replace(self, case=case, family=family, stratum=named, y=y, before=before)

    @property
    def quantities(self) -> tuple[str, ...]:
        """Those that these reads allow."""
        return (*QUANTITIES, *([BEFORE] if self.before else []))

    def quantity(self, name: str, outcome: str) -> Change:
        """The mean over the cases of one of :data:`QUANTITIES`, or of the persona's effect before any text, with its
        intervals."""
        weights = np.array((1, -1) if name == BEFORE else QUANTITIES[name])
        found = (self.before if name == BEFORE else self.y)[outcome] @ weights
        # Two reads of the same tokens differ in their low bits, by their batches: that is no variance between cases.
        found = np.where(np.abs(found) < SAME, 0.0, found)
        return change(found, self.family, self.top[outcome] * float(weights.clip(min=0).sum()))


def text_keys(reads: pd.DataFrame) -> list[str]:
    """The columns that name, beside its author, a text: the case and the condition that it answered."""
    return ["case", *(name for name in SHARED if name in reads and name != "given")]


def read_scores(reads: pd.DataFrame, prefix: str = "logp_") -> dict[str, Float[np.ndarray, " row"]]:
    """The outcomes of every read; one that needs what is not known of the options is left out.

    ``prefix`` of the labels' columns: ``logp_`` at the letter, ``latent_logp_`` at the end of the prompt.

    Raises:
        ProbeError: there are fewer than two options, or a target is none of them.
    """
    options, ranked = options_of(reads, None)
    logp = log_softmax_of(reads, prefix, options)
    target = labels_of(reads, "target", options)
    p = np.exp(logp)
    scores: dict[str, Float[np.ndarray, " row"]] = {}
    if ranked:
        scores["expected_urgency"] = np.asarray(p @ np.arange(len(options)))
    high = reads.attrs.get("high_risk")
    if high is not None:
        scores["p_high_risk"] = np.asarray(p[:, options.index(str(high))])
    scores["p_target"] = p[np.arange(len(p)), target]
    scores["accuracy"] = (logp.argmax(1) == target).astype(float)
    return scores


def four_reads(reads: pd.DataFrame, base: str) -> Iterator[FourReads]:
    """Each persona with the base, plain and masked, over the texts whose four reads are all there.

    ``reads`` has a row for each read: persona (of the prompt), author (of the text), masked, case, stratum, target,
    logp_<label>; family and the parts of a condition where there are some.

    Raises:
        ProbeError: the base has no read.
    """
    authors = list(dict.fromkeys(reads["author"]))
    if base not in authors:
        raise ProbeError(f"the base persona {base!r} wrote none of these texts. {nearest(base, authors, 'persona')}")
    keys, scores = text_keys(reads), read_scores(reads)
    early = _latent_scores(reads)
    tops = {name: len(options_of(reads, None)[0]) - 1.0 if name == "expected_urgency" else 1.0 for name in scores}
    whole = reads[keys].assign(
        persona=reads["persona"],
        author=reads["author"],
        masked=reads["masked"].astype(bool),
        family=families_of(reads),
        stratum=reads.get("stratum", ""),
        **scores,
        **{f"{BEFORE} {name}": values for name, values in early.items()},
    )
    arms = {name: rows.set_index(keys) for name, rows in whole.groupby(["persona", "author", "masked"], sort=False)}
    for masked in (False, True):
        for persona in (one for one in authors if one != base):
            names = [(persona, persona), (persona, base), (base, persona), (base, base)]
            found = [arms.get((*name, masked)) for name in names]
            if any(arm is None for arm in found):
                continue
            first, *others = (arm for arm in found if arm is not None)
            index = first.index
            for arm in others:
                index = index[index.isin(arm.index)]
            cases = [arm.loc[index].groupby("case", sort=False) for arm in (first, *others)]
            told = cases[0][["family", "stratum"]].first()
            y = {name: np.stack([rows[name].mean().loc[told.index] for rows in cases], axis=1) for name in scores}
            own = (cases[0], cases[-1])  # the persona's and the base's own prompts
            before = {
                name: np.stack([rows[f"{BEFORE} {name}"].mean().loc[told.index] for rows in own], axis=1)
                for name in early
            }
            case, family, stratum = (
                values.to_numpy(object) for values in (told.index, told["family"], told["stratum"])
            )
            yield FourReads(persona, masked, case, family, stratum, y, before, tops)


def _latent_scores(reads: pd.DataFrame) -> dict[str, Float[np.ndarray, " row"]]:
    """The outcomes of what every row's prompt read before any text; none where some row lacks it."""
    names = [name for name in reads if str(name).startswith(_LATENT)]
    if not names or reads[names].isna().any(axis=None):
        return {}
    return read_scores(reads, _LATENT)


def path_effects(reads: pd.DataFrame, base: str) -> pd.DataFrame:
    """How far a persona moves the stated label through its text, and how far directly at the answer.

    Tidy: persona, base, stratum, outcome (:data:`UNITS`), masked, quantity (:data:`QUANTITIES`, and ``latent``: the
    effect on the label before any text), value, low, high (95 %, clustered by case family), n (cases), families,
    method, note. Source: ESTIMATORS, the text swap.

    Raises:
        ProbeError: as :func:`four_reads`.
    """
    rows = []
    for pairs in four_reads(reads, base):
        for stratum in _strata(pairs.stratum):
            inside = pairs.within(stratum)
            for outcome in inside.y:
                for quantity in inside.quantities:
                    found = inside.quantity(quantity, outcome)
                    rows.append(
                        {"persona": pairs.persona, "base": base, "stratum": stratum, "outcome": outcome}
                        | {"masked": pairs.masked, "quantity": quantity, "value": found.value, "low": found.low}
                        | {"high": found.high, "n": found.n, "families": found.families, "method": found.method}
                        | {"note": found.note}
                    )
    columns = ["persona", "base", "stratum", "outcome", "masked", "quantity", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=[*columns, "families", "method", "note"])


def path_verdicts(reads: pd.DataFrame, base: str, margin: float = MARGIN) -> pd.DataFrame:
    """Where a persona acts on its stated label, by equivalence at a margin: through the text, directly, both, opposed,
    neither, or one cannot tell; and directly on the latent label alone, where both are still and that moved.

    Judged are the two Shapley contributions to the expected urgency, or to the probability of the reference label where
    the options have no order. Columns ``total``, ``text``, ``direct``, ``interaction`` and ``latent`` say of each
    whether it moved, stood still, or one cannot tell; where the interaction moved, ``note`` says so: the orders differ.

    Raises:
        ProbeError: as :func:`four_reads`.
    """
    rows = []
    for pairs in four_reads(reads, base):
        outcome = next(iter(pairs.y))
        if outcome == "p_high_risk":  # without an order of the options the reference is the one that has a meaning
            outcome = "p_target"
        for stratum in _strata(pairs.stratum):
            inside = pairs.within(stratum)
            parts = {name: inside.quantity(name, outcome) for name in ("total", "text", "direct", "interaction")}
            told = {name: status(part, margin) for name, part in parts.items()}
            early = status(inside.quantity(BEFORE, outcome), margin) if inside.before else None
            note = parts["total"].note
            if told["interaction"] == "moved":
                note = "the orders differ (the interaction moved): read text_first and text_last"
            same_sign = parts["text"].value * parts["direct"].value > 0
            verdict = _verdict(told["text"], told["direct"], same_sign=same_sign)
            rows.append(
                {"persona": pairs.persona, "base": base, "stratum": stratum, "outcome": outcome}
                | {"masked": pairs.masked, "verdict": LATENT if (verdict, early) == ("neither", "moved") else verdict}
                | told
                | {BEFORE: early, "margin": margin, "n": parts["total"].n, "note": note}
            )
    columns = ["persona", "base", "stratum", "outcome", "masked", "verdict", "total", "text", "direct", "interaction"]
    return pd.DataFrame(rows, columns=[*columns, BEFORE, "margin", "n", "note"])


def _verdict(text: Status, direct: Status, *, same_sign: bool) -> str:
    """That nothing excludes 0 is not ``neither``: both must be still."""
    if "cannot tell" in (text, direct):
        return "cannot tell"
    if text == direct == "moved":
        return "both" if same_sign else "opposed"
    return TEXT if text == "moved" else DIRECT if direct == "moved" else "neither"


def _strata(stratum: np.ndarray) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(str(name) for name in stratum))
    return (ALL, *found) if len(found) > 1 else (ALL,)
