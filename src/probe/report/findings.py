"""What was found, in sentences made from the estimates. Knows tidy tables; computes no statistic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probe.behaviour import CONTROLS
from probe.behaviour.variance import RUN_SHARE
from probe.report.effect_sentences import (
    against_controls,
    base_name,
    beyond_floor,
    effects,
    in_words,
    omnibus,
    planned_contrasts,
)
from probe.report.effects import against, main_base
from probe.report.figures import Tables
from probe.report.numbers import decimal, interval, listed, plural
from probe.report.sites import LOW_MASS, cause_name, site_name
from probe.report.style import has_plan, shown
from probe.values import ALL

HEADLINES = {"accuracy": "Accuracy", "consistency_strict": "Consistency", "risk_propensity": "Risk"}
"""Tested metrics that are told persona by persona, with the topic they belong to; the others stand in the tables."""


@dataclass(frozen=True)
class Finding:
    """Sentences on one topic; every one carries numbers, intervals and counts. ``lead`` says how to read them.

    ``decided`` marks what was decided before the run (confirmatory); all else is exploratory.
    """

    topic: str
    sentences: tuple[str, ...]
    lead: str = ""
    decided: bool = False


def findings(tables: Tables) -> list[Finding]:
    """What the run shows: contrasts decided beforehand first, then effects by topic, calibration, sites, shift, plan.

    Tables may be empty: what they would say is then left out.
    """
    return [finding for finding in _all(tables) if finding.sentences]


def _all(tables: Tables) -> Iterator[Finding]:
    compared = tables.comparisons
    if len(compared):
        if "family" in compared:
            lead = "Named in the study's confirm list before the run; p is Holm-adjusted over these alone."
            told = tuple(planned_contrasts(compared, tables.floor))
            yield Finding("Decided beforehand", told, lead, decided=True)
        base = main_base(compared)
        lead = f"Paired differences from {base_name(base)} with 95 % intervals; p is Holm-adjusted."
        for metric, topic in HEADLINES.items():
            rows = compared[compared["metric"] == metric]
            main, neutral = against(rows, base), against(rows, CONTROLS)
            if len(main):
                told = (*omnibus(tables.omnibus, metric), *effects(main, tables.floor))
                if len(neutral) and base != CONTROLS:
                    told += tuple(against_controls(neutral))
                yield Finding(topic, (*told, *beyond_floor(main, tables.floor)), lead)
    yield Finding("Calibration", tuple(_calibration(tables.metrics)))
    yield Finding("Where labels part", (*_sites(tables.sites), *_causes(tables.causes)))
    yield Finding("What answers vary with", tuple(_variance(tables.variance)))
    if len(tables.shifts):
        yield Finding("Inside", tuple(_shift(tables.shifts)))
    yield Finding("Against the plan", tuple(_plan(tables.metrics)))


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
    lean = metrics[same & (metrics["metric"] == "overconfidence")]
    side = ""
    for _, row in lean.iterrows():
        side = f"; confidence minus accuracy is {decimal(row['value'])} {interval(row['low'], row['high'])}"
        side += f": {'over' if row['value'] > 0 else 'under'}confident"
    yield (
        f"The latent label is miscalibrated in {len(beyond)} of {plural(len(ece), 'arm')}: there the ECE lies above "
        "what the largest of so many arms would reach, in 19 of 20 studies, if all were calibrated. Largest: "
        f"{arm_name(worst)}, ECE {decimal(worst['value'])} (limit {decimal(worst['null_max'])}, "
        f"{plural(worst['n'], 'cell')}){side}. Taken one by one, {chance}."
    )


def _sites(sites: pd.DataFrame) -> Iterator[str]:
    """Consistency at every site, from the lowest persona to the highest, over all cases."""
    rows = sites[(sites["stratum"] == ALL) & sites["value"].notna()] if len(sites) else sites
    told = []
    for site, part in rows.groupby("site", sort=False) if len(rows) else ():
        low, high = _least(part, "value"), _largest(part, "value")
        ends = (
            f"{decimal(low['value'])} ({shown(low['persona'])}) and {decimal(high['value'])} ({shown(high['persona'])})"
        )
        same = decimal(low["value"]) == decimal(high["value"])
        text = f"{decimal(low['value'])} for every persona" if same else f"between {ends}"
        weak = part["label_mass"] < LOW_MASS
        mass = f", where the labels hold {decimal(part['label_mass'].mean())} of the probability" if weak.any() else ""
        told.append(f"{site_name(str(site))} {text}{mass}")
    if told:
        yield f"The written label is the one preferred, among parsed cells: {'; '.join(told)}."


def _causes(causes: pd.DataFrame) -> Iterator[str]:
    rows = causes[causes["stratum"] == ALL] if len(causes) else causes
    if rows.empty or not rows["n_disagree"].sum():
        return
    n = rows.groupby("persona")["n_disagree"].first().sum()
    counts = rows.groupby("cause", sort=False)["k_share"].sum()
    shares = [f"{decimal(k / n)} {cause_name(str(cause))}" for cause, k in counts.items() if k]
    yield f"Of {plural(n, 'cell')} whose labels disagree, each counted under its first cause: {listed(shares)}."
    both = rows[rows["ratio"].notna() & np.isfinite(rows["ratio"].astype(float)) & (rows["k_disagree"] >= _FEW)]
    if len(both):
        top = _largest(both, "ratio")
        yield (
            f"The most telling cause is “{cause_name(top['cause'])}” for {shown(top['persona'])}: it occurs in "
            f"{decimal(top['rate_disagree'])} of disagreeing and {decimal(top['rate_agree'])} of agreeing cells "
            f"(ratio {top['ratio']:.1f} {interval(top['ratio_low'], top['ratio_high'], 1)}, {top['k_disagree']:.0f} of "
            f"{top['n_disagree']:.0f} and {top['k_agree']:.0f} of {top['n_agree']:.0f})."
        )


_FEW = 5  # a ratio from fewer cells is not worth a sentence


def _variance(table: pd.DataFrame) -> Iterator[str]:
    """Shares of the variance of each metric over all cases; asking again against changing the persona, if known."""
    rows = table[table["stratum"] == ALL] if len(table) else table
    for metric, part in rows.groupby("metric", sort=False) if len(rows) else ():
        if metric not in HEADLINES:
            continue
        shares = part[part["share"].notna()]
        if len(shares):
            told = [f"{decimal(row['share'])} {row['component']}" for _, row in shares.iterrows()]
            yield f"Of the variance of {in_words(str(metric))} over all cells: {listed(told)}."
        again = part[(part["component"] == RUN_SHARE) & part["variance"].notna()]
        for _, row in again.iterrows():
            size = f"{decimal(row['variance'])} {interval(row['low'], row['high'])}".strip()
            what = in_words(str(metric))
            yield (
                f"Asking the same case again makes up {size} of how much its {what} varies over runs and personas "
                "together; at one half, output varies as much across runs as across personas."
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
        rows = metrics[(metrics["metric"] == metric) & metrics["value"].notna() & has_plan(metrics)]
        if rows.empty:
            continue
        off = (rows["value"] - rows["planned"]).abs().to_numpy()
        worst = rows.iloc[int(off.argmax())]
        told.append(
            f"{decimal(off.max())} in {in_words(metric)} (mean {decimal(off.mean())}; {arm_name(worst)}: "
            f"{decimal(worst['value'])} measured, {decimal(worst['planned'])} planned)"
        )
    if told:
        yield f"On the same cells, measured and planned differ by at most {listed(told)}."


def arm_name(row: pd.Series) -> str:
    """``ED nurse in emergency``; the persona alone for the pool."""
    return shown(row["persona"]) if row["stratum"] == ALL else f"{shown(row['persona'])} in {shown(row['stratum'])}"


def _largest(rows: pd.DataFrame, column: str) -> pd.Series:
    return rows.iloc[int(rows[column].to_numpy(dtype=float).argmax())]


def _least(rows: pd.DataFrame, column: str) -> pd.Series:
    return rows.iloc[int(rows[column].to_numpy(dtype=float).argmin())]
