"""What was found, in sentences made from the estimates. Knows tidy tables; computes no statistic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probe.report.numbers import DASH, decimal, interval, listed, p_value, plural, points
from probe.report.style import METRIC_NAMES, shown
from probe.values import ALL

SIGNIFICANT = 0.05
LOW_MASS = 0.5
"""Below this probability on all labels together a latent label means little."""

HEADLINES = {"accuracy": "Accuracy", "consistency_strict": "Consistency", "risk_propensity": "Risk"}
"""Tested metrics that are told persona by persona, with the topic they belong to; the others stand in the tables."""


@dataclass(frozen=True)
class Finding:
    """Sentences on one topic; every one carries numbers, intervals and counts. ``lead`` says how to read them."""

    topic: str
    sentences: tuple[str, ...]
    lead: str = ""


def findings(metrics: pd.DataFrame, comparisons: pd.DataFrame, shifts: pd.DataFrame | None = None) -> list[Finding]:
    """What the run shows, by topic: tested effects first, then calibration, the shift inside and the plan.

    ``comparisons`` and ``shifts`` may be empty: what they would say is then left out.
    """
    told = []
    if len(comparisons):
        base = shown(str(comparisons["base"].iloc[0]))
        lead = f"Paired differences from {base} with 95 % intervals; p is Holm-adjusted."
        for metric, topic in HEADLINES.items():
            rows = comparisons[comparisons["metric"] == metric]
            told.append(Finding(topic, tuple(_effects(rows, METRIC_NAMES[metric].lower())), lead))
    told.append(Finding("Calibration", tuple(_calibration(metrics))))
    if shifts is not None and len(shifts):
        told.append(Finding("Inside", tuple(_shift(shifts))))
    told.append(Finding("Against the plan", tuple(_plan(metrics))))
    return [finding for finding in told if finding.sentences]


def cautions(metrics: pd.DataFrame, comparisons: pd.DataFrame) -> list[str]:
    """What to keep in mind while reading: selection, undefined quantities, tests made, weak latent labels."""
    tests = _tests(comparisons) if len(comparisons) else ()
    return [*_weak_latent(metrics), *_unparsed(metrics), *_undefined(metrics), *tests]


def _effects(rows: pd.DataFrame, what: str) -> Iterator[str]:
    unresolved: list[str] = []
    untested: list[str] = []
    for persona, part in rows.groupby("persona", sort=False):
        resolved = part["p_holm"] < SIGNIFICANT
        name = shown(str(persona))
        if not resolved.any():
            (unresolved if part["p"].notna().any() else untested).append(name)
            continue
        hidden = bool(part["signs_differ"].any())
        told = part[(resolved | hidden) & (part["stratum"] != ALL)]
        strata = [_moves(row) for _, row in told.iterrows()]
        pool = _moves(part[part["stratum"] == ALL].iloc[0])
        text = f"{listed(strata)}; it {pool}" if strata else pool
        warning = " Strata and pool differ in sign: read the strata." if hidden else ""
        yield f"{name}: {what} {text}.{warning}"
    if unresolved:
        yield f"No change of {what} is resolved for {listed(unresolved)} (Holm-adjusted p ≥ .05 everywhere)."
    if untested:
        yield f"No change of {what} could be tested for {listed(untested)}: no pair of cases qualifies."


def _moves(row: pd.Series) -> str:
    """``rises by 19.3 pp in emergency [+11.2, +27.3] (300 pairs, p < .001)``."""
    where = "over all cases" if row["stratum"] == ALL else f"in {shown(row['stratum'])}"
    if np.isnan(row["difference"]):
        return f"is undefined {where}"
    verb = "rises" if row["difference"] > 0 else "falls" if row["difference"] < 0 else "moves"
    size = f"{verb} by {points(abs(row['difference'])).removeprefix('+')}\u00a0pp"
    p = p_value(row["p_holm"])
    test = "untested" if p == DASH else f"p\u00a0{p}" if p.startswith("<") else f"p\u00a0=\u00a0{p}"
    unresolved = "" if row["p_holm"] < SIGNIFICANT else ", unresolved"
    limits = f"[{points(row['low'])}, {points(row['high'])}] ({plural(row['n'], 'pair')}, {test}{unresolved})"
    return f"{size} {where} {limits}"


def _calibration(metrics: pd.DataFrame) -> Iterator[str]:
    ece = metrics[(metrics["metric"] == "ece") & metrics["null_max"].notna() & metrics["value"].notna()]
    if ece.empty:
        return
    alone = int((ece["value"] > ece["null_high"]).sum())
    chance = (
        f"{alone} of {plural(len(ece), 'arm')} exceed{'s' if alone == 1 else ''} the upper end of the null band, "
        f"where {decimal(0.025 * len(ece), 1)} would by chance"
    )
    beyond = ece[ece["value"] > ece["null_max"]]
    if beyond.empty:
        yield f"No miscalibration of the latent label is resolved: {chance}; none exceeds the limit for all together."
        return
    worst = _largest(beyond, "value")
    same = (metrics["persona"] == worst["persona"]) & (metrics["stratum"] == worst["stratum"])
    lean = metrics[same & (metrics["metric"] == "overconfidence")].iloc[0]
    side = "over" if lean["value"] > 0 else "under"
    yield (
        f"The latent label is miscalibrated in {len(beyond)} of {plural(len(ece), 'arm')}: there the ECE lies above "
        "what the largest of so many arms would reach, in 19 of 20 studies, if all were calibrated. Largest: "
        f"{_arm(worst)}, ECE {decimal(worst['value'])} (limit {decimal(worst['null_max'])}, "
        f"{plural(worst['n'], 'cell')}); confidence minus accuracy is {decimal(lean['value'])} "
        f"{interval(lean['low'], lean['high'])}: {side}confident. Taken one by one, {chance}."
    )


def _shift(shifts: pd.DataFrame) -> Iterator[str]:
    pooled = shifts[shifts["stratum"] == ALL]
    # The largest of many layers is compared with the largest that noise gives over the same layers.
    above = pooled[(pooled["value"] > pooled["floor_max"]) & pooled["value"].notna()]
    if above.empty:
        yield "No persona shifts the residual stream beyond the noise floor at any captured layer."
        return
    largest = [_largest(part, "value") for _, part in above.groupby("persona", sort=False)]
    largest.sort(key=lambda row: -float(row["value"]))
    told = [
        f"{shown(row['persona'])} {decimal(row['value'])} {interval(row['low'], row['high'])} at point {row['layer']}"
        for row in largest
    ]
    first = largest[0]
    yield (
        f"Largest common shift of the residual stream from {shown(first['base'])} at "
        f"{str(first['position']).replace('_', ' ')}, as a share of the residual norm: {listed(told)} "
        f"(noise reaches at most {decimal(max(row['floor_max'] for row in largest))} at the noisiest layer, 95 % "
        f"quantile; {plural(first['n'], 'case')})."
    )
    hidden = [str(name) for name in pooled["persona"].drop_duplicates() if name not in set(above["persona"])]
    if hidden:
        yield f"At no layer above the noise floor: {listed([shown(name) for name in hidden])}."


def _plan(metrics: pd.DataFrame) -> Iterator[str]:
    told = []
    for metric in ("accuracy", "accuracy_latent", "consistency", "risk_propensity"):
        rows = metrics[(metrics["metric"] == metric) & metrics["planned"].notna() & metrics["value"].notna()]
        if rows.empty:
            continue
        off = (rows["value"] - rows["planned"]).abs().to_numpy()
        worst = rows.iloc[int(off.argmax())]
        told.append(
            f"{decimal(off.max())} in {METRIC_NAMES[metric].lower()} (mean {decimal(off.mean())}; {_arm(worst)}: "
            f"{decimal(worst['value'])} measured, {decimal(worst['planned'])} planned)"
        )
    if told:
        yield f"On the same cells, measured and planned differ by at most {listed(told)}."


def _weak_latent(metrics: pd.DataFrame) -> Iterator[str]:
    mass = metrics[metrics["metric"] == "label_mass"]
    rows = mass[mass["value"] < LOW_MASS]
    if rows.empty:
        return
    where = listed([f"{_arm(row)} ({decimal(row['value'])})" for _, row in rows.iterrows()])
    if len(rows) == len(mass) > 1:
        ends = dict.fromkeys((decimal(rows["value"].min()), decimal(rows["value"].max())))
        where = f"every persona in every stratum ({' to '.join(ends)})"
    yield (
        f"The labels together hold less than half of the probability at the end of the prompt for {where}: "
        "there the latent label, consistency and calibration mean little."
    )


def _unparsed(metrics: pd.DataFrame) -> Iterator[str]:
    rows = metrics[(metrics["metric"] == "parse_rate") & (metrics["stratum"] == ALL) & (metrics["value"] < 1)]
    if not rows.empty:
        told = [
            f"{shown(row['persona'])} {row['n'] - row['counts']['k']:.0f} of {row['n']}" for _, row in rows.iterrows()
        ]
        yield (
            f"Answers without a parsed label: {listed(told)}. They count as wrong, as not high-risk and, in strict "
            "consistency, as mismatches; plain consistency leaves them out."
        )


def _undefined(metrics: pd.DataFrame) -> Iterator[str]:
    rows = metrics[(metrics["metric"] == "risk_sensitivity") & metrics["note"].str.contains("type II|error at all")]
    if not rows.empty:
        yield (
            f"Risk sensitivity is undefined in {plural(len(rows), 'arm')} without a type II error; the smoothed "
            "log-ratio and both counts stand in the tables."
        )


def _tests(comparisons: pd.DataFrame) -> Iterator[str]:
    tested = comparisons[comparisons["p"].notna()]
    if len(tested):
        names = listed([METRIC_NAMES[name].lower() for name in tested["metric"].drop_duplicates()])
        yield (
            f"{plural(len(tested), 'test')} were made, of {names}; every p in a sentence or behind a star is "
            "Holm-adjusted over all of them. Differences of ECE, log loss and stated urgency are described, not tested."
        )


def _largest(rows: pd.DataFrame, column: str) -> pd.Series:
    return rows.iloc[int(rows[column].to_numpy(dtype=float).argmax())]


def _arm(row: pd.Series) -> str:
    return shown(row["persona"]) if row["stratum"] == ALL else f"{shown(row['persona'])} in {shown(row['stratum'])}"
